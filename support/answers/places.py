r"""Where does the answer stand in a text: in a box, or if there is none, in its last formula or number?

Only boxes earn a reward, so training has no use for the latter; `verify.equivalent` compares whatever it is given, as
math-verify does.

    >>> find_answer("So $a=3$, and the area is $12$."), find_answer("The area is 12 square metres.")
    ('$12$', '12')
"""

from __future__ import annotations

import re

from support.answers.equivalence import number, words
from support.answers.latex import tidy

MAX_TEXT = 20_000  # characters of a whole response given to `equivalent`; the end counts
_BOX_TOKEN = re.compile(r"\\\\?boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` skips the braces in \{ and \}
FORMULA = r"(?:(?<!\\)\$\$.+?\$\$|(?<!\\)\$(?:[^$\\]|\\.)+\$|(?<!\\)\\\(.+?\\\)|(?<!\\)\\\[.+?\\\])"
_PLAIN = r"[-+]?[$€£]?(?:\d[\d,. ]*\d|\d|\.\d+)(?:/\d+)?(?:\s?\\?%|\s(?:percent|pct)\b)?"
_CANDIDATE = re.compile(rf"{FORMULA}(?:\s*(?:,?\s*(?:and|or)|,)?\s*{FORMULA})*|{_PLAIN}", re.DOTALL)
_FINALLY = re.compile(r"(?is).*final (answer.*?\d.*?)(?:I hope it is correct.*)?$")


def boxes_in(text: str) -> list[tuple[int, int, str]]:
    """(start, end, contents) of the outermost closed, non-empty boxes, in one pass however many braces are open."""
    open_braces: list[tuple[int, int] | None] = []  # a box as (start, start of its contents); another brace as None
    boxes: list[tuple[int, int, str]] = []
    for token in _BOX_TOKEN.finditer(text):
        kind = token.group()
        if kind == "{":
            open_braces.append(None)
        elif kind == "}" and open_braces:
            box = open_braces.pop()
            if box and (contents := text[box[1] : token.start()].strip()):
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()  # it lies inside this one
                boxes.append((box[0], token.end(), contents))
        elif kind.endswith("{") and "boxed" in kind:
            open_braces.append((token.start(), token.end()))
    return boxes


def _is_list(between: str) -> bool:
    """Do two boxes belong together, with this between them?"""
    return len(between) < 10 or len(between) < 70 and bool(re.search(r"\b(?:and|or)\b|[,;]", between))


def unboxed(text: str) -> str:
    r"""What is in the boxes at the end of a text, the text itself if there are none.

    >>> unboxed(r"So \boxed{1} and \boxed{2}."), unboxed("3")
    ('1, 2', '3')
    """
    if not (boxes := boxes_in(text)):
        return text
    start = len(boxes) - 1
    while start and _is_list(text[boxes[start - 1][1] : boxes[start][0]]):
        start -= 1
    return ", ".join(dict.fromkeys(contents for _, _, contents in boxes[start:]))


def _ending(text: str) -> str:
    """What follows the last "final answer", if that holds a number; else the whole text.

    >>> _ending("It is 3. Final Answer: The answer is 4. I hope it is correct."), _ending("It is 3.")
    ('Answer: The answer is 4. ', 'It is 3.')
    """
    final = _FINALLY.match(text)
    return final[1] if final and final[1].count("{") == final[1].count("}") else text  # not in \\text{Final answer: 4}


def _is_prose(text: str) -> bool:
    """More than an answer with its name and its unit: a long word or three short ones beside other things."""
    text = tidy(text)
    if not text or text[0].isdigit() or words(text) or number(text):
        return False
    found = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z][a-z]+", re.sub(r"\\(?:text|begin|end) ?\{[^{}]*\}", " ", text))
    return len(found) > 2 or any(len(word) > 3 for word in found)


def find_answer(text: str) -> str:
    """What is boxed at the end of a text; else the last formula or number of a sentence; all of what is no sentence."""
    text = _ending(text[-MAX_TEXT:])
    if boxes_in(text):
        return unboxed(text)
    text = re.sub(r"\\+boxed ?\{(?! ?\})", "", text.strip())  # never closed
    if re.search(FORMULA, text, re.DOTALL) or _is_prose(text):
        return (_CANDIDATE.findall(text) or [text])[-1]
    return text
