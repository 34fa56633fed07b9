r"""Which questions are sampled: --select NAME. Questions in turn and their history in, those of the next batch out.

`order` holds all questions, this batch's `count` first; `history` is {question id: its bare success rates, oldest
first}, kept in the checkpoint. Behind `*` stand options, and what is at hand: `policy`, `templated` (the history of
what was sampled under templates). A batch may be smaller than `count`, never empty.
"""

from __future__ import annotations

import random

from support.data import Question
from variants.gps import gps

__all__ = ["greso", "gps", "mopps", "unlockable", "unsolved"]

History = dict[str, list[float]]


def in_a_row(rates: list[float], what) -> int:
    """How often in a row, up to now.

    >>> in_a_row([0.5, 1.0, 1.0], lambda rate: rate == 1)
    2
    """
    return next((k for k, rate in enumerate(reversed(rates)) if not what(rate)), len(rates))


def greso(order: list[Question], history: History, count: int, rng: random.Random) -> list[Question]:
    r"""GRESO (arXiv:2506.02177). A question without contrast k times in a row is drawn with probability 0.5^k.

    Against GRPO: batches are filled up with questions that taught something when they were last sampled. (The paper
    adapts the 0.5, for easy and hard ones apart.) It starves P2O's hard set, in which nothing has contrast.

    >>> history = {"all": [1.0] * 20, "none": [0.0] * 20, "some": [0.5]}
    >>> [q.id for q in greso(asked("all", "none", "some", "new"), history, 2, random.Random(0))]
    ['some', 'new']
    """
    dull = {q.id: in_a_row(history.get(q.id, []), lambda rate: rate in (0, 1)) for q in order}
    drawn = [q for q in order if rng.random() < 0.5 ** dull[q.id]]
    return (drawn + [q for q in order if q not in drawn])[:count]


def mopps(
    order: list[Question], history: History, count: int, rng: random.Random, fade: float = 0.5, *, group_size: int
) -> list[Question]:
    r"""MoPPS (arXiv:2507.04632). p ~ Beta(a, b) for each question; those nearest 1/2 are sampled.

    a <- fade a + (1 - fade) + successes, and the same for b with failures. Against GRPO: a bandit for questions half
    solved, each by itself.

    >>> history = {"all": [1.0], "none": [0.0], "some": [0.5]}
    >>> [q.id for q in mopps(asked("all", "none", "some"), history, 1, random.Random(0), group_size=100)]
    ['some']
    """

    def distance(rates: list[float]) -> float:
        a = b = 1.0
        for rate in rates:
            a, b = fade * a + 1 - fade + group_size * rate, fade * b + 1 - fade + group_size * (1 - rate)
        return abs(rng.betavariate(a, b) - 0.5)

    distances = {q.id: distance(history.get(q.id, [])) for q in order}
    return sorted(order, key=lambda q: distances[q.id])[:count]


def unsolved(order: list[Question], history: History, count: int, rng: random.Random) -> list[Question]:
    r"""P2O's own. A question solved bare by its whole group k times in a row is sampled with probability 0.5^k.

    Against GRPO: fewer rollouts. Questions never solved stay, for the hard set is made of them.

    >>> history = {"all": [1.0] * 20, "none": [0.0] * 20, "some": [0.5]}
    >>> [q.id for q in unsolved(asked("all", "none", "some", "new"), history, 3, random.Random(0))]
    ['none', 'some']
    """
    solved = {q.id: in_a_row(history.get(q.id, []), lambda rate: rate == 1) for q in order}
    return [q for q in order[:count] if rng.random() < 0.5 ** solved[q.id]] or order[:1]


def unlockable(
    order: list[Question], history: History, count: int, rng: random.Random, k: int = 2, *, templated: History
) -> list[Question]:
    r"""P2O's own. `unsolved`, without the questions that no template solved k times in a row, nor the bare prompt ever.

    Against GRPO: no rollouts and no calls of GEPA for questions that are out of reach, or whose reference is wrong.

    >>> history, templated = {"lost": [0.0], "late": [0.0]}, {"lost": [0.0, 0.0], "late": [0.0]}
    >>> [q.id for q in unlockable(asked("lost", "late"), history, 2, random.Random(0), templated=templated)]
    ['late']
    >>> history, templated = {"once": [0.5, 0.0], "lost": [0.0]}, {"once": [0.0, 0.0], "lost": [0.0, 0.0]}
    >>> [q.id for q in unlockable(asked("lost", "once"), history, 2, random.Random(0), templated=templated)]
    ['once']
    """
    retired = {
        i for i, rates in templated.items() if in_a_row(rates, lambda r: r == 0) >= k and not any(history.get(i, []))
    }
    left = [q for q in order[:count] if q.id not in retired]
    return unsolved(left, history, count, rng) if left else order[:1]
