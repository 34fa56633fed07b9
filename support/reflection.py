"""The reflection model's reply: what to adopt of it, and what never; and a teacher, which replies from elsewhere.

Models are asked to put the new instruction between ``` marks. Large ones do, small ones hardly ever. GEPA itself takes
all between the first mark and the last, and adopts replies that were cut off (gepa#390).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gepa.strategies.instruction_proposal import InstructionProposalSignature

from support.errors import UserError
from support.messages import THINKING

# "Here is the new instruction:", "Sure! A better instruction would be:", "**New instruction:**"
_ANNOUNCED = re.compile(
    r"""\s*(?:(?:sure|certainly|of\ course|okay|ok|absolutely)\b[^\n:]{0,20}[!,.]\s*)?[*_#\s]*
    (?:(?:here(?:'s|\ is|\ are)\b|(?:the\ |an?\ |my\ )?(?:new|better|improved|revised|updated)\b)[^\n:]{0,80}
    |(?:new\ |the\ )?instructions?\s*)
    :[*_]*[ \t]*\n*
    |\s*\#+[ ][^\n]{0,40}(?:instruction|prompt)\b[^\n]{0,20}\n  # a heading
    |[^\n]{0,400}\b(?:instruction|prompt)\b[^\n.]{0,60}:[*_]*[ ]*\n\s*\n  # a paragraph that leads to it""",
    re.IGNORECASE | re.VERBOSE,
)
# A later paragraph that speaks about the instruction, or to whoever asked for it, is no part of it.
_ABOUT_IT = re.compile(
    r"(?:this|the|these)\s(?:\w+\s){0,2}(?:instructions?|prompt|template|response|feedback)\b|explanation|reasoning\b"
    r"|i (?:have|hope|changed|added)|let me know|note:|\**explanation",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "„": "“", "`": "`"}


def read_wording(file: str, default: str) -> str:
    """The words of a reflection prompt: those of a file (--reflection-prompt), or without one the default."""
    if not file:
        return default
    try:
        wording = Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--reflection-prompt {file}: cannot be read ({error}); give a text file") from None
    if "<side_info>" not in wording:
        raise UserError(f"--reflection-prompt {file}: has no <side_info>, where questions, responses and feedback go")
    return wording


def fill_prompt(wording: str, instruction: str, records: list[dict[str, str]]) -> str:
    """The words of a reflection prompt with the instruction and the records, these in GEPA's own layout.

    Both are put in at once, so that an instruction with `<side_info>` in it stays as it is.
    """
    layout = {"current_instruction_doc": "", "dataset_with_feedback": records}
    layout["prompt_template"] = "<curr_param><side_info>"
    parts = {"<curr_param>": instruction, "<side_info>": InstructionProposalSignature.prompt_renderer(layout)}
    return re.sub("<curr_param>|<side_info>", lambda place: parts[place[0]], wording)


def parse_reflection(reply: str) -> str | None:
    """The new instruction, or None if there is none: thinking or a fenced block that never ended, or nothing at all.

    With fences it is the last block; without, the first paragraphs, up to one that speaks about the instruction.

    >>> parse_reflection("The old one:\\n```\\nAdd.\\n```\\nBetter:\\n```\\nAdd one digit at a time.\\n```")
    'Add one digit at a time.'
    >>> parse_reflection('Here is a better one:\\n\\n"Add one digit at a time."\\n\\nThis instruction is clearer.')
    'Add one digit at a time.'
    >>> parse_reflection("```\\nAdd one") is None, parse_reflection("<think>Perhaps\\n```\\nAdd.\\n```\\nor") is None
    (True, True)
    """
    if THINKING.match(reply.lstrip()):  # by whatever name the model calls it
        reply = THINKING.sub(r"<\1think>", reply, count=2)
    reply = _after_thinking(reply)
    if reply is None:
        return None
    text = (_fenced(reply) or [""])[-1] if "```" in reply else _unfenced(reply)
    return text if re.search(r"\w", text) else None


def _after_thinking(reply: str) -> str | None:
    """What follows the model's thinking; None if it was still thinking when it stopped.

    Some chat templates put the opening tag into the prompt. A tag inside a block is a word of the instruction.

    >>> _after_thinking("<think>Hm.</think>Add."), _after_thinking("Hm.</think>Add."), _after_thinking("<think>Hm.")
    ('Add.', 'Add.', None)
    >>> _after_thinking("```\\nThink between <think> and </think>.\\n```")
    '```\\nThink between <think> and </think>.\\n```'
    """
    while "</think>" in reply and not _is_quoted(reply):
        reply = reply.partition("</think>")[2]
    return None if "<think>" in reply and not _is_quoted(reply) else reply


def _is_quoted(reply: str) -> bool:
    """Does the first <think> stand inside a block, that is behind an odd number of ``` marks?"""
    before, found, _ = reply.partition("<think>")
    return bool(found) and before.count("```") % 2 == 1


def _fenced(text: str) -> list[str] | None:
    """The contents of the blocks between ``` marks, in order; None if the last one is not closed.

    A block that opens with four marks is closed by four, so three inside belong to it. So do blocks inside a block,
    which begin with a word behind the marks (```python) or end on the same line.

    >>> _fenced("````\\nDo A.\\n````"), _fenced("``` Do A. ``` or ```text\\nDo B.\\n```")
    (['Do A.'], ['Do A.', 'Do B.'])
    >>> _fenced("```\\nPut code between marks:\\n```python\\n1 + 1\\n```\\nNothing else.\\n```")
    ['Put code between marks:\\n```python\\n1 + 1\\n```\\nNothing else.']
    """
    blocks, opening, depth = [], None, 0
    for marks in re.finditer("`{3,}", text):
        if opening is None:
            opening, depth = marks, 1
        elif len(marks[0]) >= len(opening[0]):
            opens_another = re.match(r"[\w+-]+[ \t]*\r?\n|[^\s`][^\n`]*`{3,}", text[marks.end() :])
            depth += 1 if opens_another else -1
            if depth == 0:
                content = text[opening.end() : marks.start()]
                blocks.append(re.sub(r"\A[\w+-]*[ \t]*\r?\n", "", content).strip())  # without the language
                opening = None
    return None if opening else blocks


def _unfenced(reply: str) -> str:
    """The instruction in a reply that is complete and has no fences.

    >>> _unfenced("Sure! Here's the new instruction: Add one digit at a time.\\n\\nWrite every sum.")
    'Add one digit at a time.\\n\\nWrite every sum.'
    >>> _unfenced("“Add.”"), _unfenced('Write "sum" before each "total"'), _unfenced("Add.\\n\\nI hope this helps!")
    ('Add.', 'Write "sum" before each "total"', 'Add.')
    """
    reply = reply.strip()
    reply = reply[announced.end() :] if (announced := _ANNOUNCED.match(reply)) else reply
    adopted = []
    for paragraph in re.split(r"\n\s*\n", _unwrapped(reply.strip())):
        if adopted and (_ABOUT_IT.match(paragraph.strip(" *_")) or not re.search(r"\w", paragraph)):
            break
        adopted.append(paragraph.strip())
    return _unquoted("\n\n".join(adopted))


def _unwrapped(text: str) -> str:
    """Without one pair of tags around the whole of it: <instruction>, <answer>, a box.

    >>> _unwrapped("<instruction>\\nAdd.\\n</instruction>"), _unwrapped(r"\\boxed{Add.}")
    ('Add.', 'Add.')
    >>> _unwrapped("<b>Add</b> or <b>double</b>")
    '<b>Add</b> or <b>double</b>'
    """
    whole = re.fullmatch(r"<([\w-]+)>((?:(?!</?\1>).)*)</\1>|\\boxed\{([^{}]*)\}", text, re.DOTALL)
    return (whole[2] or whole[3] or "").strip() if whole else text


def _unquoted(text: str) -> str:
    """Without the quotation marks around the whole of it; or what is quoted, if the rest is a later paragraph."""
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    if closing is None:
        return text
    first = text.split("\n\n")[0]
    for whole in (text, first):
        inner = whole[1:-1]
        if len(whole) > 1 and whole.endswith(closing) and not {whole[0], closing} & set(inner):
            return inner.strip()
    return text


# ------------------------------------------------------------------------------------------------------------ a teacher


def teacher(cfg, timeout: float = 120.0, retries: int = 5) -> Callable[..., list[str]]:
    """A reflection model behind an OpenAI-compatible endpoint: the one thing here that may cost money.

    Prompts in, replies out, several at once. The endpoint's key is written nowhere. cfg: gepa_loop.EvolutionConfig. The
    client tries `retries` times again after rate limits, server errors and time-outs, with growing pauses. An endpoint
    that stays down, or a limit that is used up, raises, and the search ends with that reason.
    """
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = OpenAI(base_url=cfg.teacher_url, api_key=key, timeout=timeout, max_retries=retries)
    calls = tokens = 0

    def ask(prompt: str) -> str:
        nonlocal calls, tokens
        if calls >= cfg.teacher_max_calls or tokens >= cfg.teacher_max_tokens:
            raise RuntimeError(f"the teacher's limit is used up ({calls} calls, {tokens} tokens)")
        calls += 1
        try:
            reply = client.chat.completions.create(
                model=cfg.teacher_model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=cfg.reflection_tokens,
                temperature=cfg.reflection_temperature,
            )
            choice = reply.choices[0]
            text = (choice.message.content or "").encode("utf-8", "replace").decode()  # no half characters
        except Exception as error:  # refused, silent for too long, or no completion at all
            told = f"{cfg.teacher_url}: {type(error).__name__}: {error}".replace(key, "***")
            raise ConnectionError(told) from None
        tokens += reply.usage.total_tokens if reply.usage else 0
        return "" if choice.finish_reason == "length" else text

    def batch(prompts: list[str], call_number: int = 0) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, prompts))

    return batch
