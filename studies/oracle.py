"""A selection that knows which questions can be learned, for studies/selection.toml: what any selection could gain."""

from __future__ import annotations


def between(order, history, count, rng):
    """Only questions of the third in between, least often tried first."""
    known = [question for question in order if question.columns["kind"] == "between"]
    return sorted(known, key=lambda question: len(history.get(question.id, [])))[:count]
