"""From texts to token ids, and back: which part of a prompt is whose message, and that a text stays a text.

A template may begin with a system part (`--gepa-system`). GEPA keeps the two parts by name. The state, the rollouts and
the report keep one string: the system part, a line that ends it, the rest. Only `templated` takes them apart again. In
a question, a response or a reflection prompt such a line is text like any other, and so is `<|im_end|>`: `encode_chat`.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections.abc import Callable

from tokenizers import Tokenizer
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

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


def seed_candidate(cfg) -> dict[str, str]:
    """Candidate 0, a text for each component. GEPA changes them in this order, so the template comes first.

    >>> from types import SimpleNamespace
    >>> seed_candidate(SimpleNamespace(gepa_seed_template="Add.", gepa_system=True))
    {'template': 'Add.', 'system': ''}
    """
    return {"template": cfg.gepa_seed_template} | ({"system": ""} if cfg.gepa_system else {})


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
    wherever they stand in it: a question could end its own message and begin one of the system's. So each name of a
    control token in a message is put between two marks, which no text can forge. transformers spells what it finds
    between them in ordinary tokens.
    """
    if messages[0]["role"] == "system":
        need_system_role(tokenizer, "a template with a system part, or --system-prompt")
    names = control_tokens(tokenizer)

    def encoded(mark: Callable[[str], str]) -> list[int]:
        marked = [message | {"content": mark(message["content"])} for message in messages]
        return _encode(tokenizer, _render(tokenizer, marked, **switches), [message["content"] for message in marked])

    return _spelled(encoded, names)


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of a text, in which the name of a control token is text as well."""
    return _spelled(lambda mark: _encode(tokenizer, mark(text), [mark(text)]), control_tokens(tokenizer))


def _encode(tokenizer, text: str, contents: list[str]) -> list[int]:
    """Token ids of a text with these contents. Where no name stands in them, no mark does.

    Looking for marks goes through all added tokens each time, which takes 9 ms where there are 6,400.
    """
    if any(map(control_tokens(tokenizer).search, contents)):
        return encode_marked_chat(tokenizer, text)
    return tokenizer.encode(text, add_special_tokens=False)


def _spelled(encoded: Callable[[Callable[[str], str]], list[int]], names: re.Pattern) -> list[int]:
    """What `encoded` gives with the names marked; or with a space in each name, where no ordinary tokens spell them."""
    try:
        return encoded(lambda text: mark_control_tokens(text, names))
    except ValueError:  # of a Unigram vocabulary in which the name itself is a piece as any other
        return encoded(lambda text: names.sub(lambda name: f"{name[0][0]} {name[0][1:]}", text))


def _render(tokenizer, messages: list[dict], add_generation_prompt: bool = True, **switches) -> str:
    """What the chat template writes of these messages; UserError if it refuses them."""
    if takes_parts(tokenizer):
        messages = [message | {"content": _parts(message["content"])} for message in messages]
    switches |= {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template(messages, **switches)
    except Exception as error:  # the template is a program, and may raise anything
        roles = " and ".join(message["role"] for message in messages)
        raise UserError(f"the model's chat template refuses messages of {roles}: {error}") from None


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def on_one_day(chat_template: str) -> str:
    """The same chat template, for which it is always 26 July 2024, the day that Llama's own falls back to.

    Some write today's date (Llama 3.2, SmolLM3, gpt-oss). A run that is resumed after midnight would have other prompts
    than before, and the same seed other numbers. transformers takes no function for a template, but a macro in it wins.

    >>> on_one_day("{{ strftime_now('%Y') }}")[-36:], on_one_day("{{ messages }}")
    ("endmacro -%}{{ strftime_now('%Y') }}", '{{ messages }}')
    """
    chat_template = chat_template.removeprefix("\ufeff")  # which some editors of Windows write in front of any text
    if "strftime_now" not in chat_template:
        return chat_template
    day = datetime.datetime(2024, 7, 26)
    codes = {f"%{letter}": day.strftime(f"%{letter}") for letter in "YymdBbhAaHIMSpjeFDTRcxXuwUWVG"}
    codes |= {f"%-{letter}": f"{int(codes[f'%{letter}'])}" for letter in "ymdHIMSj"}  # without a zero in front
    filled_in = "".join(f" | replace('{code}', '{text}')" for code, text in codes.items())
    return f"{{%- macro strftime_now(layout) -%}}{{{{ layout{filled_in} }}}}{{%- endmacro -%}}{chat_template}"


@functools.lru_cache(maxsize=8)
def takes_parts(tokenizer) -> bool:
    """Does the chat template want a message as a list of parts, as that of a model that also sees may do?

    Given a string, such a template finds no part in it, and silently leaves the question out. UserError for a template
    that does so either way.
    """
    text = 'Is it so that 7 < 9 & "yes"?\n\\boxed{}, ' * 20 + "or is it?"
    reason = "it leaves out, or changes, the question"
    for parts in (False, True):
        try:
            question = [{"role": "user", "content": _parts(text) if parts else text}]
            rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            reason, rendered = reason if parts else str(error), ""
        if text in rendered:
            return parts
    raise UserError(f"the model's chat template refuses messages of user: {reason}")


QUESTION, RESPONSE = as_messages("7 + 9?"), {"role": "assistant", "content": "sixteen"}  # to see what a template writes


@functools.lru_cache(maxsize=8)
def end_of_turn(tokenizer) -> int | None:
    """The control token that the chat format writes behind a response; None if it writes none.

    It may be another one than the tokenizer's and the config's end token, as in Qwen's base models. A response that
    went on behind it would play the user's part as well.
    """
    token = control_tokens(tokenizer).match(_behind_a_response(tokenizer))
    return tokenizer.convert_tokens_to_ids(token.group()) if token else None


def end_in_plain_text(tokenizer) -> str:
    """What the chat format writes behind a response, if no control token is in it; "" for nothing.

    As `<|im_end|>`, where a chat template was given to a tokenizer that has no such token.
    """
    behind = _behind_a_response(tokenizer).rstrip()
    return "" if control_tokens(tokenizer).search(behind) else behind


def _behind_a_response(tokenizer) -> str:
    try:
        text = _render(tokenizer, [*QUESTION, RESPONSE], add_generation_prompt=False)
    except UserError:  # a template for questions only
        return ""
    _, response, behind = text.rpartition("sixteen")
    return behind.lstrip() if response else ""


def not_begun(tokenizer) -> str:
    """What the chat template writes in front of a response that is known, but not at the end of a prompt; "" for none.

    Some templates know no add_generation_prompt. The model would have to begin its own turn, which it has never done.
    """
    try:
        prompt = _render(tokenizer, QUESTION)
        same = prompt == _render(tokenizer, QUESTION, add_generation_prompt=False)
        conversation = _render(tokenizer, [*QUESTION, RESPONSE], add_generation_prompt=False)
    except UserError:  # a template for questions only
        return ""
    if not same or not conversation.startswith(prompt):
        return ""
    return conversation.removeprefix(prompt).partition("sixteen")[0].strip()


def writes_the_same(tokenizer, chat_template: str) -> bool:
    """Does another chat template write the same prompt?"""
    return _render(tokenizer, QUESTION, chat_template=chat_template) == _render(tokenizer, QUESTION)


def count_tokens(tokenizer, text: str) -> int:
    """How many tokens a text has; the one that begins a sequence, where there is one, is counted, too."""
    return len(encode_text(tokenizer, text)) + tokenizer.num_special_tokens_to_add()


def shortened(tokenizer, text: str, limit: int) -> str:
    """The text, or of a longer one its first and last tokens, `limit` in all: how it starts, where it arrives."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) <= limit:
        return text
    return f"{tokenizer.decode(ids[: limit // 2])} [...] {tokenizer.decode(ids[-(limit // 2) :])}"


@functools.lru_cache(maxsize=8)
def need_system_role(tokenizer, option: str) -> None:
    """Refuse an option that puts text into a system message, if the chat template raises at one, or leaves it out."""
    text = "Be brief."
    try:
        rendered = _render(tokenizer, as_messages("7 + 9?", text))
    except UserError:
        rendered = ""
    if text not in rendered:
        cure = "--question-suffix and --gepa-seed-template go into the user's message"
        raise UserError(f"{option}: this model's chat template has no system role. Leave it away; {cure}")


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer) -> re.Pattern:
    """A pattern of the names of the tokens that steer a model: the special ones, and those of the chat format.

    Some models mark the tokens of their chat format as ordinary ones, DeepSeek's `<｜User｜>` among them. A token for
    which the model has no embedding must not be read as one either. White space, numbers and single characters are
    text, whatever they are marked as: some models have tokens of their own for digits, and their template says
    `messages[0]`. So are words, unless they are marked.
    """
    rows, template = getattr(tokenizer, "rows", math.inf), str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.items()
    marked = {token.content for place, token in added if token.special or place >= rows}
    named = {token.content for _, token in added if token.content in template and not token.content.strip().isalnum()}
    names = [name for name in marked | named if len(name.strip()) > 1 and not name.strip().isdecimal()]
    names = sorted(names, key=len, reverse=True)  # the longest match counts
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def as_its_file_says(model: str, tokenizer) -> None:
    """Make a tokenizer cut texts as its tokenizer.json says.

    Some classes of transformers 5 put a way of their own in its place (transformers#45488, #45701): GPT2Tokenizer and
    Qwen2Tokenizer another pattern of words, GemmaTokenizer other spaces. A name in tokenizer_config.json decides which
    class it is. The prompts would silently be made of tokens that the model hardly knows.
    """
    from transformers import AutoTokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    file = cached_file(model, "tokenizer.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip
    if backend is None or file is None:
        return
    own = Tokenizer.from_file(file)
    if getattr(own.model, "dropout", None):
        own.model.dropout = None  # would cut the same text in another way each time
    for part in ("model", "normalizer", "pre_tokenizer", "decoder"):
        setattr(backend, part, getattr(own, part))
    if getattr(backend, "fix_mistral_regex", None) is False:  # transformers doubts the file, in a warning
        mended = AutoTokenizer.from_pretrained(model, trust_remote_code=False, fix_mistral_regex=True)
        words = "eBay, mL, NaOH, pH"
        if mended(words).input_ids != tokenizer(words).input_ids:
            print(
                f"--model {model}: transformers says that its tokenizer.json cuts words otherwise than Mistral's "
                "models have learned them. If it is one of these, save into its folder what "
                "AutoTokenizer.from_pretrained(..., fix_mistral_regex=True) gives"
            )


# -------------------------------------------------------------------------------------------- from token ids to texts

# <think>, [THINK], <seed:think>, ◁think▷, and their ends
THINKING = re.compile(r"[<\[◁](/?)(?:\w+:)?(?:think|thinking|thought)[>\]▷]", re.IGNORECASE)
THINK = ("<think>", "</think>")  # as they stand in the text of a response
# What Cohere, Apertus and Gemma 4 have in their place.
OTHER_THINKING = {
    "<|START_THINKING|>": "<think>", "<|END_THINKING|>": "</think>", "<|inner_prefix|>": "<think>",
    "<|inner_suffix|>": "</think>", "<|channel>": "<think>", "<channel|>": "</think>",
}  # fmt: skip
# gpt-oss writes its messages to channels: tokens around a name that is text.
CHANNELS = {"<|channel|>analysis<|message|>": "<think>", "<|channel|>final<|message|>": "</think>"}


@functools.lru_cache(maxsize=8)
def thinking_tags(tokenizer) -> dict[str, tuple[str, bool]]:
    """{what the model writes around its thinking: (<think> or </think>, are special tokens in it?)}."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    tags = {name: (f"<{tag[1]}think>", added[name]) for name in added if (tag := THINKING.fullmatch(name))}
    tags |= {name: (tag, added[name]) for name, tag in OTHER_THINKING.items() if name in added}
    if {"<|channel|>", "<|message|>"} <= added.keys():
        tags |= {name: (tag, True) for name, tag in CHANNELS.items()}
    return tags


def response_texts(tokenizer, contexts: list[list[int]], responses: list[list[int]]) -> list[str]:
    """The responses as texts without control tokens, but with `<think>` and `</think>` around what is only thought.

    An answer inside of thinking is none. So its tags must be there for whoever reads the text: also where the model
    marks them as special, calls them otherwise, or the chat template has put the first one into the prompt.
    """
    tags, names = thinking_tags(tokenizer), control_tokens(tokenizer)
    keeps_special = any(special for _, special in tags.values())
    texts = tokenizer.batch_decode(responses, skip_special_tokens=not keeps_special)
    for name, (tag, _) in tags.items():
        texts = [text.replace(name, tag) for text in texts]
    if keeps_special:
        texts = [names.sub(lambda name: name.group() * (name.group() in THINK), text) for text in texts]
    if not tags and not THINKING.search(str(tokenizer.chat_template)):
        return texts
    openings = ("<think>", *(name for name, (tag, _) in tags.items() if tag == "<think>"))
    prompts = [tokenizer.decode(context[-16:]).rstrip() for context in contexts]
    return ["<think>" * prompt.endswith(openings) + text for prompt, text in zip(prompts, texts, strict=True)]


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text of each token, spaces and all: joined they are the whole text. (Decoding one by one loses spaces.)

    A letter that several tokens share, as an emoji's bytes may be, is the last one's: before it, U+FFFD stands for it.
    """
    read = [*[tokenizer.decode(ids[:t]).rstrip("\ufffd") for t in range(len(ids))], tokenizer.decode(ids)]
    return [longer[len(shorter) :] for shorter, longer in zip(read, read[1:], strict=False)]
