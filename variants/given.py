"""What rivals are given and P2O does without, at the tiny world's scale: a judge, and demonstrations."""

from __future__ import annotations

import re
from pathlib import Path

from support.data import Question
from tiny.problems import FAMILIES
from tiny.worlds import UNITED, WORLDS


def family_of(question: Question) -> str:
    ask = question.text.partition(": ")[0]
    return next(name for name, family in FAMILIES.items() if family.ask == ask)


def states_of(question: Question) -> list[str]:
    """The state after each element: what a teacher who knows the task would write down.

    >>> states_of(Question("q", "Add these digits: 7, 9, 8.", "24"))
    ['7', '16', '24']
    """
    step = FAMILIES[family_of(question)].step
    first, *others = question.text.rstrip(".").partition(": ")[2].split(", ")
    states = [int(first)]
    for element in others:
        states.append(step(states[-1], element))
    return [str(state) for state in states]


def demonstration(question: Question, model: str) -> str:
    r"""A right response, all steps written, with the marks of the world whose base model that is.

    >>> demonstration(Question("q", "Add these digits: 7, 9, 8.", "24"), "tiny/united/model")
    '7; 16; 24. \\boxed{24}'
    """
    world = next((world for world in WORLDS.values() if world.model == Path(model).resolve()), UNITED)
    states = states_of(question)
    return f"{f'{world.marks[family_of(question)]} '.join(states)}. \\boxed{{{states[-1]}}}"


def right_steps(question: Question, response: str) -> float:
    r"""The share of the steps that are right, up to the first wrong one: below 1, however right.

    >>> right_steps(Question("q", "Add these digits: 7, 9, 8.", "24"), "7; 16; 25. \\boxed{25}")
    0.5
    """
    states = states_of(question)
    shown = [state.split()[-1:] for state in re.split("[;,!?]", response.partition(".")[0])]  # the accent left out
    right = [ours == [theirs] for ours, theirs in zip(shown, states, strict=False)] + [False]
    return right.index(False) / (len(states) + 1)
