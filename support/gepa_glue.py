"""The two objects that gepa asks for: one that evaluates candidates, one that proposes new ones. Batches throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gepa.core.adapter import EvaluationBatch
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal

BUDGETS = {"light": 6, "medium": 12, "heavy": 18, "heavy_2": 36, "heavy_3": 54, "heavy_4": 72, "heavy_16": 288}
MAX_FAILED_REFLECTIONS = 12  # in a row; then the search ends rather than burn its budget


def metric_call_budget(auto: str, dev_size: int) -> int:
    """Metric calls of a budget name, as DSPy computes them for GEPA with one prompt (design, section 2).

    >>> metric_call_budget("light", 50)
    580
    """
    candidates = BUDGETS[auto]
    trials = int(max(4 * math.log2(candidates), 1.5 * candidates))
    full_evaluations = (trials + 1) // 5 + 1 + (trials < 5)
    return dev_size + 5 * candidates + 35 * trials + full_evaluations * dev_size


@dataclass
class Evaluator:
    """gepa's adapter: `run` takes (template, question) pairs and gives (response, reward, record) of each.

    The records are what the reflection model reads.
    """

    run: Callable[[list[tuple]], list[tuple[str, float, dict]]]
    propose_new_texts = None  # the reflection strategy proposes

    def evaluate(self, batch: list, candidate: dict[str, str], capture_traces: bool = False) -> EvaluationBatch:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(self, items: list[tuple[dict[str, str], list]]) -> list[EvaluationBatch]:
        """All candidates' questions at once, so that a GPU has enough to do."""
        results = iter(self.run([(c["template"], question) for c, questions in items for question in questions]))
        batches = []
        for _, questions in items:
            outputs, scores, records = zip(*(next(results) for _ in questions), strict=True)
            batches.append(EvaluationBatch(outputs=list(outputs), scores=list(scores), trajectories=list(records)))
        return batches

    def make_reflective_dataset(self, candidate, eval_batch: EvaluationBatch, components_to_update: list[str]):
        return {name: eval_batch.trajectories for name in components_to_update}


@dataclass
class Reflection:
    """gepa's reflection strategy: all prompts of an iteration in one batch, useless replies dropped and counted.

    gepa itself adopts an empty or truncated reply as a candidate (gepa#390), and goes on paying for evaluations when
    the reflection model fails.
    """

    ask: Callable[[list[str]], list[str]]  # reflection prompts -> replies
    prompt: Callable[[str, list[dict]], str]  # (instruction, records) -> reflection prompt
    parse: Callable[[str], str | None]  # reply -> new instruction
    fits: Callable[[str], bool]  # does a template leave room for the questions?
    log: Callable[[str], None]
    rejected: int = 0
    failed_in_a_row: int = 0
    why: str = ""

    @property
    def useless(self) -> str | None:
        """Why the search should end, if it should."""
        if self.failed_in_a_row < MAX_FAILED_REFLECTIONS:
            return None
        return f"{self.failed_in_a_row} replies of the reflection model in a row were of no use: {self.why}"

    def reflect(self, candidate, reflective_dataset, components_to_update):
        return self.reflect_many([(candidate, reflective_dataset, components_to_update)])[0]

    def reflect_many(self, jobs):
        prompts = [self.prompt(candidate["template"], dataset["template"]) for candidate, dataset, _ in jobs]
        try:
            replies = self.ask(prompts)
        except Exception as error:  # gepa would swallow it
            replies, self.why = [""] * len(prompts), f"{type(error).__name__}: {error}"
            self.failed_in_a_row = max(self.failed_in_a_row, MAX_FAILED_REFLECTIONS - len(prompts))
        return [(self.proposal(prompt, reply), self) for prompt, reply in zip(prompts, replies, strict=True)]

    def proposal(self, prompt: str, reply: str) -> ReflectionProposal:
        """The child that a reply proposes; an empty proposal if the reply is of no use."""
        template = self.parse(reply)
        if template is not None and self.fits(template):
            self.failed_in_a_row = 0
            texts = {"template": template}
            return ReflectionProposal(texts, prompts={"template": prompt}, raw_lm_outputs={"template": reply})
        self.rejected += 1
        self.failed_in_a_row += 1
        if reply:
            self.why = "it leaves no room for the question" if template else f"no fenced text in {reply[:80]!r}"
        self.log(f"a reflection was not adopted: {self.why or 'it was empty'}")
        return ReflectionProposal(new_texts={})
