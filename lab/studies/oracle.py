"""Functions that know what nobody could: what a selection, or an evolution, could gain at most in our worlds."""

from __future__ import annotations

from tiny.problems import FAMILIES, USELESS_HINTS
from tiny.worlds import held_hint
from variants.evolve import given


def between(order, history, count, rng):
    """--select: only questions of the third in between (lab/studies/make_worlds.py), least often tried first."""
    known = [question for question in order if question.columns["kind"] == "between"]
    return sorted(known, key=lambda question: len(history.get(question.id, [])))[:count]


def hints() -> list[str]:
    return [family.hints[0] for family in FAMILIES.values()]


def right_hint(hard, search):
    """--evolve: each question gets the hint of its family, and no response is spent on finding it."""
    fits = [[float(held_hint(q.columns["family"], hint) is not None) for q in hard] for hint in hints()]
    return given(hard, hints(), fits)


def any_hint(hard, search):
    """--evolve: each rollout gets a hint that the reflection model may write, right, wrong or useless, by chance."""
    templates = [hint for family in FAMILIES.values() for hint in family.hints] + list(USELESS_HINTS)
    return given(hard, templates, [[1.0] * len(hard) for _ in templates])
