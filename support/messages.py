"""From texts to token ids, and back: which part of a prompt is whose message, and that a text stays a text.

A template may come with a system part of its own. GEPA keeps a candidate's parts by name. Everything else here knows a
template as one string: the state, rollouts, the assignment, transcripts, the report. So the system part stands in the
same string, in front of a line that a reader sees as well, and is taken out of it in one place: where a template and a
question become one message, `templated`. A question, a response and a reflection's prompt are plain strings; they are
the user's from end to end, whatever stands in them.

Nor does a question that holds `<|im_end|>` end its message: see `encode_chat`.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
import secrets

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
    # Between two stand-ins stands what the chat format writes. Cut there first: a name may be found in a stand-in, too.
    pieces = re.split(f"{mark}-([0-9]+)-", _render(tokenizer, messages, tokenize=False, **switches))
    pieces[::2] = [names.sub(lambda name: secret_names[name.group()], piece) for piece in pieces[::2]]
    pieces[1::2] = [hidden[int(number)] for number in pieces[1::2]]
    return [ids.get(token, token) for token in twin.encode("".join(pieces), add_special_tokens=False).ids]


def _render(tokenizer, messages: list[dict], add_generation_prompt: bool = True, **switches):
    if takes_parts(tokenizer):
        messages = [message | {"content": _parts(message["content"])} for message in messages]
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **switches)
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
    """Does the chat template want a message as a list of parts, as those of models that also see may do?

    Given a string, such a template finds no part in it and leaves the question out, without a word. UserError for one
    that leaves it out either way.
    """
    text, reason = (
        'Is it so that 7 < 9 & "yes"?\n\\boxed{}, ' * 20 + "or is it?",
        "it leaves out, or changes, the question",
    )
    for parts in (False, True):
        try:
            question = [{"role": "user", "content": _parts(text) if parts else text}]
            rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            reason, rendered = reason if parts else str(error), ""
        if text in rendered:
            return parts
    raise UserError(f"the model's chat template refuses messages of user: {reason}")


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
    conversation = [{"role": "user", "content": "7 + 9?"}, {"role": "assistant", "content": "sixteen"}]
    try:
        text = _render(tokenizer, conversation, add_generation_prompt=False, tokenize=False)
    except UserError:  # a template for questions only
        return ""
    _, response, behind = text.rpartition("sixteen")
    return behind.lstrip() if response else ""


def not_begun(tokenizer) -> str:
    """What the chat template writes in front of a response that is known, but not at the end of a prompt; "" for none.

    Some templates know no add_generation_prompt. The model would have to begin its own turn, which it has never done.
    """
    question, response = [{"role": "user", "content": "7 + 9?"}], {"role": "assistant", "content": "sixteen"}
    try:
        prompt = _render(tokenizer, question, tokenize=False)
        same = prompt == _render(tokenizer, question, add_generation_prompt=False, tokenize=False)
        conversation = _render(tokenizer, [*question, response], add_generation_prompt=False, tokenize=False)
    except UserError:  # a template for questions only
        return ""
    if not same or not conversation.startswith(prompt):
        return ""
    return conversation.removeprefix(prompt).partition("sixteen")[0].strip()


def writes_the_same(tokenizer, chat_template: str) -> bool:
    """Does another chat template write the same prompt?"""
    question = as_messages("7 + 9?")
    other = _render(tokenizer, question, tokenize=False, chat_template=chat_template)
    return other == _render(tokenizer, question, tokenize=False)


def encode_text(tokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text, in which the name of a control token is text as well."""
    if not control_tokens(tokenizer).search(text):
        return tokenizer(text, add_special_tokens=add_special_tokens).input_ids
    twin, _, ids = twin_of(tokenizer)
    return [ids.get(token, token) for token in twin.encode(text, add_special_tokens=add_special_tokens).ids]


def count_tokens(tokenizer, text: str) -> int:
    """How many tokens a text has; the one that begins a sequence, where there is one, is counted, too."""
    return len(encode_text(tokenizer, text, add_special_tokens=True))


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
        rendered = _render(tokenizer, as_messages("7 + 9?", text), tokenize=False)
    except UserError:
        rendered = ""
    if text not in rendered:
        raise UserError(
            f"{option}: this model's chat template has no system role. Leave it away; what stands in --question-suffix "
            "or --gepa-seed-template goes into the user's message"
        )


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


def as_its_file_says(model: str, tokenizer) -> None:
    """Make a tokenizer cut texts as its tokenizer.json says.

    Some classes of transformers 5 put a way of their own in its place (transformers#45488, #45701): GPT2Tokenizer and
    Qwen2Tokenizer another pattern of words, GemmaTokenizer other spaces. Which class it is hangs on a name in
    tokenizer_config.json, and on the kind of model. The prompts would be made of tokens that the model hardly knows,
    and nothing would say so.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

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
