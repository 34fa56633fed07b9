r"""Where does the answer stand in a text that boxes none? Training has no use for this, since only boxes earn a reward;
`verify.equivalent` compares whatever it is given, as math-verify does.

    >>> locate("So $a=3$, and the area is $12$."), locate("The area is 12 square metres."), locate(r"\frac12")
    ('$12$', '12', '\\frac12')
"""

from __future__ import annotations

import re

from support.answers.equivalence import number, words
from support.answers.latex import tidy

_FORMULA = r"(?:(?<!\\)\$\$.+?\$\$|(?<!\\)\$(?:[^$\\]|\\.)+\$|(?<!\\)\\\(.+?\\\)|(?<!\\)\\\[.+?\\\])"
_PLAIN = r"[-+]?[$€£]?(?:\d[\d,. ]*\d|\d|\.\d+)(?:/\d+)?(?:\s?\\?%|\s(?:percent|pct)\b)?"
_CANDIDATE = re.compile(rf"{_FORMULA}(?:\s*(?:,?\s*(?:and|or)|,)?\s*{_FORMULA})*|{_PLAIN}", re.DOTALL)
_FINALLY = re.compile(r"(?is).*final (answer.*?\d.*?)(?:I hope it is correct.*)?$")


def ending(text: str) -> str:
    """What follows the last "final answer", if that holds a number; else the whole text.

    >>> ending("It is 3. Final Answer: The answer is 4. I hope it is correct."), ending("It is 3.")
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


def locate(text: str) -> str:
    """The last formula or number of a sentence; all of what is no sentence."""
    text = re.sub(r"\\+boxed ?\{(?! ?\})", "", text.strip())  # never closed
    if re.search(_FORMULA, text, re.DOTALL) or _is_prose(text):
        return (_CANDIDATE.findall(text) or [text])[-1]
    return text
