r"""Are two answers the same? Asked of many pairs at once: most are decided here, the rest in sympy's workers.

Beside it: which text has the letter of an option, and is an answer one at all, or empty, hostile or copied?
"""

from __future__ import annotations

import functools
import re

from support.answers import sandbox
from support.answers.equivalence import choice, number, quick, same_choice, words
from support.answers.latex import canonical, tidy
from support.answers.places import FORMULA, unboxed

MAX_ANSWER = 2_000  # characters; a longer boxed answer is wrong unless it is the reference
MAX_DIGITS = 1_000  # in a row
# null bytes, bidirectional overrides and half characters: no answer has them, and they can look like another one
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]" + rf"|[0-9]{{{MAX_DIGITS}}}"
)


# --- multiple choice --------------------------------------------------------------------------------------------------

_OPTION = re.compile(  # (A) in any font, or A. at the start of a line
    r"(?:\\[a-z]+ ?\{ ?)?\(([A-H])\)(?: ?\})?|^[ \t]*([A-H])[.):](?=[ \t])", re.MULTILINE
)


@functools.lru_cache(1024)
def options(question: str) -> dict[str, str]:
    r"""The letters of a multiple choice and their texts; nothing if the question lists none.

    >>> options(r"Which is prime? $\textbf{(A)}\ 10\qquad\textbf{(B)}\ 11$"), options("(B) 7")
    ({'a': '\\ 10\\qquad', 'b': '\\ 11$'}, {})
    """
    marks = list(_OPTION.finditer(question))
    letters = [mark[1] or mark[2] for mark in marks]
    if len(letters) < 2 or letters != list("ABCDEFGH"[: len(letters)]):
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end].partition("\n")[0] for mark, end in zip(marks, ends, strict=True)]
    return {letter.lower(): text for letter, text in zip(letters, texts, strict=True)}


def by_option(answer: str, reference: str, question: str) -> tuple[str, str]:
    """Both as texts where one is the letter of an option and the other a text.

    >>> question = "(A) 10 (B) 11"
    >>> by_option("11", "B", question), by_option("B", "11", question), by_option("A", "B", question)
    (('11', ' 11'), (' 11', '11'), ('A', 'B'))
    """
    if "B" not in question or not (texts := options(question)):
        return answer, reference
    said, asked = (_letter(text) for text in (answer, reference))
    if asked in texts and not said:
        return (asked, reference) if _names_both(answer, asked, texts[asked]) else (answer, texts[asked])
    if said in texts and not asked:
        return texts[said], reference
    return answer, reference


def _names_both(answer: str, letter: str, text: str) -> bool:
    """Is the answer the letter and the text of this option, in either order?

    >>> _names_both("11 (B)", "b", "11"), _names_both("B - 11", "b", "11"), _names_both("B - 12", "b", "11")
    (True, True, False)
    """
    before, found, after = canonical(answer[:MAX_ANSWER]).partition(canonical(text))
    return bool(found) and re.fullmatch(rf"[ .:,()=-]*{letter}[ .:,()=-]*", before + after, re.IGNORECASE) is not None


def _letter(text: str) -> str | None:
    """The letter of `B`, and of `(B) 11`."""
    word = words(tidy(text[:MAX_ANSWER]))
    option = choice(tidy(text[:MAX_ANSWER]))
    return word[0] if word and len(word[0]) == 1 else option[0] if option else None


# --- what an answer is ------------------------------------------------------------------------------------------------

_FORMULA = rf"{FORMULA}|\d[\d.]*(?: ?[-+*/^×] ?\d[\d.]*)+"  # also 17 + 25 in plain text


def is_copied(answer: str, reference: str, question: str) -> bool:
    r"""Does the answer stand in the question, and is there still something to be done to it?

    >>> is_copied(r"17 \cdot 3", "51", r"What is $17\cdot 3$?")
    True
    >>> is_copied(r"\frac68", r"\frac34", r"Reduce $\frac68$.")
    True
    >>> is_copied("0.5", "1/2", "Write 0.5 as a fraction.")  # plain numbers stand in many questions
    False
    """
    answer, reference = by_option(answer, reference, question)  # the text of an option stands in the question
    if plain := number(tidy(answer)):
        reduced = [str(abs(plain.value.numerator)), str(plain.value.denominator)]
        if not re.search("frac|/", answer) or re.findall(r"\d+", answer) == reduced:
            return False
    if same_choice(tidy(answer), tidy(reference)):  # the letter and the text of an option
        return False
    answer = canonical(answer)
    own = answer == canonical(reference) if "," in answer else _symbols(answer) == _symbols(reference)
    if words(answer) or own:  # 1+x is the reference's x+1, but 3, 1, 2 is not sorted
        return False
    spaced = " ?".join(map(re.escape, answer))
    if re.search(rf"(?<![\w\\^_.]){spaced}(?![\w^_]|\.\d)", tidy(question)):
        return True
    return any(_symbols(formula) == _symbols(answer) for formula in re.findall(_FORMULA, question, re.DOTALL))


def _symbols(formula: str) -> list[str]:
    r"""What a formula is made of, in any order and without brackets: nobody has worked out `(x+3)(x+2)` or `\log_2(8)`.

    >>> _symbols("$(x+2)(x+3)$") == _symbols("(x+3)(x+2)"), _symbols("2x+3") == _symbols("3x-2")
    (True, False)
    """
    return sorted(re.sub(r"\\cdot|\\times|[(){} *]", "", canonical(formula).replace(r"\frac", "/")))


def is_empty(text: str) -> bool:
    r"""Nothing but layout: `{}`, `$$`, `\text{ }`."""
    return not re.search("[^{} ]", tidy(re.sub(r"\\(?:boxed|text)(?![a-zA-Z])", "", text[:MAX_ANSWER])))


def is_hopeless(text: str) -> bool:
    return len(text) > MAX_ANSWER or bool(_HOSTILE.search(text)) or is_empty(text)


def decide_at_once(answer: str, reference: str) -> bool | None:
    """The verdict on two answers that needs no sympy, or None."""
    if answer.strip() == reference.strip():
        return not is_empty(reference)
    return False if is_hopeless(answer) or is_hopeless(reference) else quick(answer, reference)


def same_answers(pairs: list[tuple[str, str]], questions: list[str] | None = None) -> list[bool]:
    """Are the two answers of each pair the same? With questions, the text of an option counts as its letter.

    Most pairs are decided at once. The others go to sympy's workers in one batch. In a group of rollouts many answers
    are alike, so pairs that differ only in layout are asked once.
    """
    at_once: dict[tuple[str, str], bool | None] = {}  # pair -> verdict; None: sympy has to say
    keys: dict[tuple[str, str], tuple[str, str]] = {}  # pair that sympy has to decide -> the pair without its layout
    to_ask: dict[tuple[str, str], tuple[str, str]] = {}  # pair without its layout -> the first pair that has it
    if questions:
        pairs = [by_option(*pair, question) for pair, question in zip(pairs, questions, strict=True)]
    for pair in pairs:
        if pair in at_once:
            continue
        answer, reference = pair
        at_once[pair] = decide_at_once(answer, reference)
        if at_once[pair] is None:
            keys[pair] = (canonical(answer), canonical(reference))
            to_ask.setdefault(keys[pair], pair)
    verdict_of_key = dict(zip(to_ask, sandbox.ask(list(to_ask.values())), strict=True))
    return [verdict_of_key[keys[pair]] if pair in keys else at_once[pair] for pair in pairs]


def readable(references: list[str]) -> list[bool]:
    """Can each reference answer be read, or could only its own text ever match it?"""
    verdicts: dict[str, bool] = {}
    to_ask: list[str] = []  # references that only sympy can try to read
    for reference in dict.fromkeys(references):
        answer = unboxed(reference)
        if is_hopeless(answer):
            verdicts[reference] = False
        elif number(tidy(answer)) or words(tidy(answer)):
            verdicts[reference] = True
        else:
            to_ask.append(reference)
    verdicts |= zip(to_ask, sandbox.ask([(unboxed(reference),) for reference in to_ask]), strict=True)
    return [verdicts[reference] for reference in references]
