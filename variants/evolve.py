"""Where the templates of the hard questions come from: --evolve NAME. `(hard, search) -> gepa_loop.Evolution`.

`hard` are the hard questions, and `search(hard)` is prompt evolution as it is without a variant: GEPA, and the greedy
cover. Who gets which template is decided afterwards, from what is returned here (gepa_loop.assign_templates): a
question draws from the chosen templates that solve it. One that leaves no room for the longest question is left out
first. Behind `*`: options, `folder` and `epoch` of the run, and `respond`, which gives the policy's greedy responses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import gepa_loop
import verify
from support.data import Question
from support.gepa_glue import best_only

Search = Callable[[list[Question]], gepa_loop.Evolution]


def given(hard: list[Question], templates: list[str], scores: list[list[float]]) -> gepa_loop.Evolution:
    """An evolution that nobody had to search: scores[k][n] says how well template k does on hard question n.

    As in one that was searched, candidate 0 is the empty template.

    >>> found = given(asked("a", "b"), ["Count.", "Add."], [[1, 0], [1, 1]])
    >>> found.chosen, found.weights, found.metric_calls
    ([1, 2], [0.5, 1.0], 0)
    """
    return gepa_loop.Evolution(
        candidates=["", *templates], parents=[[None], *([0] for _ in templates)], train_ids=[],
        dev_scores=[[0.0] * len(hard), *scores], dev_ids=[q.id for q in hard],
        chosen=list(range(1, len(templates) + 1)), metric_calls=0, rejected_replies=0, stopped_early=None,
    )  # fmt: skip


def scored(hard: list[Question], templates: list[str], respond: gepa_loop.Respond, reward: str) -> gepa_loop.Evolution:
    """Templates from elsewhere, each tried on every hard question; those that cover the questions are chosen.

    `reward` is the option of that name: "" for the verifier. A mutation or a crossover of one's own begins here.

    >>> def respond(messages):
    ...     return [(r"\\boxed{1}" if "Count" in message else "no", False) for message in messages]
    >>> found = scored(asked("a", "b"), ["Add.", "Count."], respond, reward="")
    >>> found.dev_scores, found.chosen, found.metric_calls
    ([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [2], 4)
    """
    pairs = [(template, question) for template in templates for question in hard]
    tried = gepa_loop.run_templates(pairs, respond, verify.judge_of(reward))
    rewards = [verdict.reward for _, verdict, _ in tried]
    scores = [rewards[start : start + len(hard)] for start in range(0, len(rewards), len(hard))]
    found = given(hard, templates, scores)
    chosen = gepa_loop.greedy_cover(best_only(found.dev_scores))  # as in a search
    return dataclasses.replace(found, chosen=chosen, metric_calls=len(pairs))


def frozen(hard: list[Question], search: Search, *, folder: Path, epoch: int) -> gepa_loop.Evolution:
    """P2O's own. The templates of the first evolution serve all epochs, drawn by the weights that they had there.

    Against GRPO: templates, but no alternation: what the first ones do not unlock stays locked.
    """
    files = [folder / "templates" / f"epoch-{earlier}.json" for earlier in range(epoch)]
    known = next((json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()), None)
    if known is None:
        return search(hard)
    templates = [known["candidates"][k] for k in known["chosen"]]
    return given(hard, templates, [[weight] * len(hard) for weight in known["weights"]])


def uncovered(hard: list[Question], search: Search) -> gepa_loop.Evolution:
    """P2O's own. Every candidate but the empty one is drawn from, evenly, whatever it solves.

    Against GRPO: templates, but no selection among them, neither by the cover nor by their scores.
    """
    found, evenly = search(hard), [1.0] * len(hard)
    everything = given(hard, found.candidates[1:], [evenly for _ in found.candidates[1:]])
    return dataclasses.replace(everything, parents=found.parents, metric_calls=found.metric_calls)
