"""What rivals are given and P2O does without, at the tiny world's scale: a judge, and demonstrations."""

from __future__ import annotations

from support.data import Question
from tiny.problems import FAMILIES


def states_of(question: Question) -> list[str]:
    """The state after each element: what a teacher who knows the task would write down.

    >>> states_of(Question("q", "Add these digits: 7, 9, 8.", "24"))
    ['7', '16', '24']
    """
    ask, _, elements = question.text.rstrip(".").partition(": ")
    step = next(family.step for family in FAMILIES.values() if family.ask == ask)
    first, *others = elements.split(", ")
    states = [int(first)]
    for element in others:
        states.append(step(states[-1], element))
    return [str(state) for state in states]


def demonstration(question: Question) -> str:
    r"""A right response, all steps written.

    >>> demonstration(Question("q", "Add these digits: 7, 9, 8.", "24"))
    '7; 16; 24. \\boxed{24}'
    """
    states = states_of(question)
    return f"{'; '.join(states)}. \\boxed{{{states[-1]}}}"


def right_steps(question: Question, response: str) -> float:
    r"""The share of the steps that are right, up to the first wrong one: below 1, however right.

    >>> right_steps(Question("q", "Add these digits: 7, 9, 8.", "24"), "7; 16; 25. \\boxed{25}")
    0.5
    """
    states = states_of(question)
    shown = [state.strip() for state in response.partition(".")[0].split(";")]
    right = [ours == theirs for ours, theirs in zip(shown, states, strict=False)] + [False]
    return right.index(False) / (len(states) + 1)
