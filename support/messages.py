"""From texts to token ids: which part of a prompt is whose message, and that a text stays a text.

A template may come with a system part of its own. GEPA keeps a candidate's parts by name. Everything else here knows a
template as one string: the state, rollouts, the assignment, transcripts, the report. So the system part stands in the
same string, in front of a line that a reader sees as well, and is taken out of it in one place: where a template and a
question become one message, `templated`. A question, a response and a reflection's prompt are plain strings; they are
the user's from end to end, whatever stands in them.

Nor does a question that holds `<|im_end|>` end its message: see `encode_chat`.
"""

from __future__ import annotations

import functools
import json
import re
import secrets

from jinja2 import TemplateError
from tokenizers import Tokenizer

from support.errors import UserError

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


class Templated(str):
    """A template and a question as one string, which knows its two parts: the system's, and the user's."""

    system = ""
    user = ""


def templated(template: str, question: str) -> Templated:
    """The template, an empty line, the question. Only the template is searched for the line that ends a system part."""
    message = Templated(f"{template}\n\n{question}")
    message.system, _, rest = f"{template}\n\n".rpartition(f"\n{SYSTEM_ENDS}\n\n")
    message.user = f"{rest}{question}"
    return message


def as_messages(message: str, system_prompt: str = "") -> list[dict[str, str]]:
    """The chat messages of a prompt: what is no system part is the user's. The configured system prompt comes first.

    >>> as_messages("7 + 9?")
    [{'role': 'user', 'content': '7 + 9?'}]
    >>> as_messages(templated(as_template({"system": "Be brief.", "template": "Add."}), "7 + 9?"))
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Add.\\n\\n7 + 9?'}]
    >>> as_messages(templated(as_template({"system": "Be brief.", "template": ""}), "7 + 9?"), "Be kind.")
    [{'role': 'system', 'content': 'Be kind.\\n\\nBe brief.'}, {'role': 'user', 'content': '7 + 9?'}]
    """
    system_part, user = (message.system, message.user) if isinstance(message, Templated) else ("", message)
    system = "\n\n".join(filter(None, (system_prompt, system_part)))
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": user}]


# ---------------------------------------------------------------------------------------------------- data is data


def encode_chat(tokenizer, messages: list[dict[str, str]], **switches) -> list[int]:
    """Token ids of these messages in the model's chat format, up to where the response begins.

    What is in a message is text. transformers renders all messages into one string first, and reads control tokens
    wherever they stand in it: a question could end its own message and begin one of the system's. So where a message
    holds the name of a control token, it is rendered under a stand-in, and the real names of the chat format's own
    control tokens are exchanged for secret ones, which only `twin_of` the tokenizer knows as tokens.
    """
    if messages[0]["role"] == "system":
        need_system_role(tokenizer, "a template with a system part, or --system-prompt")
    names = control_tokens(tokenizer)
    if not any(names.search(message["content"]) for message in messages):
        return _render(tokenizer, messages, return_dict=False, **switches)
    mark = secrets.token_hex(16)  # nobody can have written it into a question
    hidden: list[str] = []

    def stand_in(name: re.Match) -> str:
        hidden.append(name.group())
        return f"{mark}-{len(hidden) - 1}-"

    messages = [message | {"content": names.sub(stand_in, message["content"])} for message in messages]
    twin, secret_names, ids = twin_of(tokenizer)
    text = _render(tokenizer, messages, tokenize=False, **switches)
    text = names.sub(lambda name: secret_names[name.group()], text)
    text = re.sub(f"{mark}-([0-9]+)-", lambda number: hidden[int(number.group(1))], text)
    return [ids.get(token, token) for token in twin.encode(text, add_special_tokens=False).ids]


def _render(tokenizer, messages: list[dict[str, str]], **switches):
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **switches)
    except TemplateError as error:
        roles = " and ".join(message["role"] for message in messages)
        raise UserError(f"the model's chat template refuses messages of {roles}: {error}") from None


def encode_text(tokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text, in which the name of a control token is text as well."""
    if not control_tokens(tokenizer).search(text):
        return tokenizer(text, add_special_tokens=add_special_tokens).input_ids
    twin, _, ids = twin_of(tokenizer)
    return [ids.get(token, token) for token in twin.encode(text, add_special_tokens=add_special_tokens).ids]


def count_tokens(tokenizer, text: str) -> int:
    """How many tokens a text has; the one that begins a sequence, where there is one, is counted, too."""
    return len(encode_text(tokenizer, text, add_special_tokens=True))


@functools.lru_cache(maxsize=8)
def need_system_role(tokenizer, option: str) -> None:
    """Refuse an option that puts text into a system message, if the chat template raises at one, or leaves it out."""
    text, messages = "Be brief.", as_messages("7 + 9?", "Be brief.")
    try:
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        rendered = ""
    if text not in rendered:
        raise UserError(
            f"{option}: this model's chat template has no system role. Leave it away; what stands in --question-suffix "
            "or --gepa-seed-template goes into the user's message"
        )


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer) -> re.Pattern:
    """A pattern of the names of the tokens that steer a model: the special ones, and those of the chat format.

    Some models mark the tokens of their chat format as ordinary ones, DeepSeek's `<｜User｜>` among them. A token of
    white space is text, whatever it is marked as.
    """
    added = tokenizer.added_tokens_decoder.values()
    names = [token.content for token in added if token.special or token.content in str(tokenizer.chat_template)]
    names = sorted((name for name in names if name.strip()), key=len, reverse=True)  # the longest match counts
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


@functools.lru_cache(maxsize=8)
def twin_of(tokenizer) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
    """The same tokenizer with control tokens of other, secret names: to it, the known names are text.

    Returns the twin, {name: secret name}, and {the twin's id: the tokenizer's id} where the two differ.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: there are few, and each splits texts in its own way
        raise UserError(
            "a question or template holds the name of a control token, and this model's tokenizer "
            f"({type(tokenizer).__name__}) cannot read it as text; take it out of the data"
        )
    plan = json.loads(backend.to_str())
    secret_names, known_ids = {}, {}
    for token in plan["added_tokens"]:
        name = token["content"]
        if control_tokens(tokenizer).fullmatch(name):
            secret_names[name] = token["content"] = f"control-{secrets.token_hex(16)}-"
        known_ids[token["content"]] = backend.token_to_id(name)
    # Out of the vocabulary, too, where a text could meet them: a model of whole words would find the name there.
    model = plan["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {secret_names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[secret_names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("merges"):  # vocabularies of sentencepiece have been given some that spell a control token
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & secret_names.keys()]
    if model.get("unk_token"):
        model["unk_token"] = secret_names.get(model["unk_token"], model["unk_token"])
    twin = Tokenizer.from_str(json.dumps(plan))
    twin.no_padding()
    twin.no_truncation()
    return twin, secret_names, {twin.token_to_id(name): known for name, known in known_ids.items()}
