"""A prompt's two parts in one string: a template that comes with a system part of its own.

GEPA keeps a candidate's parts by name. Everything else here knows a template as one string: the state, rollouts, the
assignment, transcripts, the report. So the system part stands in the same string, in front of a line that a reader
sees as well, and is taken out of it in one place, where a message is put into the model's chat format.
"""

from __future__ import annotations

SYSTEM_ENDS = "<the system message ends here>"  # a paragraph's last line; no token of it reaches a model


def as_template(parts: dict[str, str]) -> str:
    """A candidate's parts as one string; without a system part, the template as it is.

    >>> as_template({"system": "", "template": "Add one digit at a time."})
    'Add one digit at a time.'
    >>> as_template({"system": "Be brief.", "template": "Add one digit at a time."})
    'Be brief.\\n<the system message ends here>\\n\\nAdd one digit at a time.'
    """
    system = f"{parts['system']}\n{SYSTEM_ENDS}" if parts.get("system") else ""
    return "\n\n".join(filter(None, (system, parts["template"])))


def as_messages(message: str, system_prompt: str = "") -> list[dict[str, str]]:
    """The chat messages of a prompt: what is no system part is the user's. The configured system prompt comes first.

    >>> as_messages("7 + 9?")
    [{'role': 'user', 'content': '7 + 9?'}]
    >>> as_messages(as_template({"system": "Be brief.", "template": "Add."}) + "\\n\\n7 + 9?")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Add.\\n\\n7 + 9?'}]
    >>> as_messages(as_template({"system": "Be brief.", "template": ""}) + "\\n\\n7 + 9?", "Be kind.")
    [{'role': 'system', 'content': 'Be kind.\\n\\nBe brief.'}, {'role': 'user', 'content': '7 + 9?'}]
    """
    system_part, _, user = message.rpartition(f"\n{SYSTEM_ENDS}\n\n")
    system = "\n\n".join(filter(None, (system_prompt, system_part)))
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": user}]
