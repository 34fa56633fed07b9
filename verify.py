"""Is the answer right? Extraction, equivalence, reward and feedback. Strings only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    reward: float  # 1.0 if well formed and correct, else 0.0
    correct: bool  # the (last) boxed answer equals the reference
    well_formed: bool  # exactly one boxed answer
    extracted: str | None  # the (last) boxed answer


def feedback(grade: Grade, reference: str, truncated: bool = False) -> str:
    """What the reflection model is told about one response."""
    if grade.reward:
        return f"The answer {grade.extracted} is right."
    if truncated and grade.extracted is None:
        fault = "The response was cut off before a boxed answer."
    elif grade.extracted is None:
        fault = "There is no boxed answer."
    elif not grade.well_formed:
        fault = "There are several boxed answers, and only one is allowed."
    else:
        fault = f"The answer {grade.extracted} is wrong."
    return f"{fault} The right answer is {reference}."


def grade_batch(responses, references):
    import re

    out = []
    for r, a in zip(responses, references):
        boxes = re.findall(r"\\boxed\{([^}]*)\}", r)
        c = bool(boxes) and boxes[-1].strip() == a
        w = len(boxes) == 1
        out.append(Grade(float(c and w), c, w, boxes[-1] if boxes else None))
    return out
