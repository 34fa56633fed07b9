"""Where two outputs differ first, with both numbers, and what is said of it."""

from __future__ import annotations

import math

# The first figure in which a run differs says most about what its loop left out.
FIGURES = {
    "hard_set": "state.hard holds the hard questions of this epoch: emptied at its first batch, no question twice.",
    "templated": "Hard questions are sampled under state.templates, which an epoch's first batch has evolved.",
    "gepa_calls": "Templates are evolved at an epoch's first batch, on last epoch's hard questions, for P2O only.",
    "masked": "grpo.score_old finds old log-probs and token weights, before the first update of a batch.",
    "old_logprobs": "grpo.score_old comes before the first update: what was distilled needs its bare log-probs.",
    "token_weight": "grpo.score_old weighs the tokens of what was distilled, before the first update.",
    "approx_kl": "grpo.score_old comes before the first update, and every update knows its rollouts' old log-probs.",
    "clip_fraction": "The second update of a batch is off-policy: score_old, then in_updates' parts in their order.",
    "loss": "Updates: those that choose_rollouts keeps, in_updates' parts, at grpo.learning_rate_at's rate.",
    "grad_norm": "The learning rate is grpo.learning_rate_at of the share of all steps that is done with this one.",
    "history": "remember(state, rollouts) is what --select goes by.",
    "states": "run.save(state) ends each step, and state.step counts the steps that are done.",
    "unfinished": "A saved step leaves no journal of its rollouts: run.once keeps them until run.save.",
    "calls": "Something ran more or less often: run.once keeps a batch's rollouts, so that a resumed run samples anew "
    "only what was not sampled.",
    "reward": "Each step has its own seed, seed_for(cfg, 'rollout', step), and the questions that choose_questions "
    "finds with state.history.",
    "tokens": "Each step has its own seed, seed_for(cfg, 'rollout', step), and the questions of choose_questions.",
    "kind": "The lines of a run come in the order of the loop: an accuracy before training, then for each step "
    "evolution if it is due, rollouts, updates, and the epoch's line behind its last one.",
    "epoch": "Epochs are logged from 1; 0 is the accuracy before training, which is measured once.",
    "transcripts": "Each step has its own seed, its chosen questions and their templates.",
}


def difference(expected: object, got: object, tolerance: float, where: str = "") -> str | None:
    """The first place where they differ, or None. Numbers may differ by the tolerance, absolute or relative.

    >>> difference({"loss": [0.5, 1.0]}, {"loss": [0.5, 2.0]}, 1e-5)
    'loss[1]: expected 1, got 2'
    >>> difference([1.0], [1.0 + 1e-7], 1e-5) is None
    True
    """
    if isinstance(expected, dict) and isinstance(got, dict):
        return difference_of_keys(expected, got, tolerance, where)
    if isinstance(expected, list) and isinstance(got, list):
        pairs = zip(expected, got, strict=False)
        found = (difference(*pair, tolerance, f"{where}[{i}]") for i, pair in enumerate(pairs))
        first = next(filter(None, found), None)
        if first is None and len(expected) != len(got):
            return f"{where or 'output'}: expected {len(expected)} values, got {len(got)}"
        return first
    if same(expected, got, tolerance):
        return None
    return f"{where or 'output'}: expected {shown(expected)}, got {shown(got)}"


def difference_of_keys(expected: dict, got: dict, tolerance: float, where: str) -> str | None:
    prefix = f"{where} ({got['kind']})." if "kind" in got else f"{where}." if where else ""
    for name in expected:
        if name not in got:
            return f"{prefix}{name}: expected {shown(expected[name])}, got nothing"
        found = difference(expected[name], got[name], tolerance, f"{prefix}{name}")
        if found:
            return found
    more = [name for name in got if name not in expected]
    return f"{prefix}{more[0]}: expected nothing, got {shown(got[more[0]])}" if more else None


def same(expected: object, got: object, tolerance: float) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (expected, got))
    if not numbers:
        return type(expected) is type(got) and expected == got
    both_nan = math.isnan(expected) and math.isnan(got)
    return both_nan or math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)


def shown(value: object) -> str:
    """Short enough for a line."""
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hint_of(case: dict, got: object, mistaken: list, message: str) -> str:
    """The known mistake that gives just this answer; else what the first wrong figure says, or the case's own hint."""
    for hint, output in mistaken:
        if difference(output, got, case["tol"]) is None:
            return hint
    place = message.partition(":")[0]
    if case["call"] == "train":
        names = place.replace("[", ".").split(".")
        return next((FIGURES[name] for name in reversed(names) if name in FIGURES), case["hint"])
    return case["hint"]
