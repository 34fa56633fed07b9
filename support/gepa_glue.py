"""What gepa asks for: an object that evaluates candidates, one that proposes new ones. Batches throughout."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gepa.core.adapter import EvaluationBatch
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal

from support.errors import UserError
from support.messages import SYSTEM_ENDS, as_template, count_tokens, shortened

BUDGETS = {"light": 6, "medium": 12, "heavy": 18, "heavy_2": 36, "heavy_3": 54, "heavy_4": 72, "heavy_16": 288}
MAX_FAILED_REFLECTIONS = 12  # in a row; then the search ends rather than burn its budget


def check_budget(budget: str, dev_set_size: int) -> None:
    """Refuse what is no budget, or one that the scores of candidate 0 use up. `dev_set_size`: of the smallest hard set.

    >>> check_budget("light", 6), check_budget("7", 6)
    (None, None)
    """
    if budget not in BUDGETS and not re.fullmatch("[0-9]{1,15}", budget):
        raise UserError(f"--gepa-budget {budget[:80]}: a number, or one of {', '.join(BUDGETS)}")
    if metric_call_budget(budget, dev_set_size) <= dev_set_size:
        told = f"the first template alone is scored on {dev_set_size} dev questions or more"
        raise UserError(f"--gepa-budget {budget}: {told}, and nothing is left to propose others; give more")


def metric_call_budget(auto: str, dev_size: int) -> int:
    """Metric calls of a budget: a number, or a name, as DSPy computes it for GEPA with one prompt.

    >>> metric_call_budget("light", 50), metric_call_budget("500", 50)
    (580, 500)
    """
    if auto not in BUDGETS:
        return int(auto)
    candidates = BUDGETS[auto]
    trials = int(max(4 * math.log2(candidates), 1.5 * candidates))
    full_evaluations = (trials + 1) // 5 + 1 + (trials < 5)
    return dev_size + 5 * candidates + 35 * trials + full_evaluations * dev_size


def best_only(dev_scores: list[list[float]]) -> list[list[float]]:
    """The scores [K][N], with 0 in place of each that another candidate beats on that dev question.

    For the cover, to which any score above 0 is a success. With rewards of 0 and 1 nothing changes. With partial credit
    the bare prompt may earn a little everywhere: it would cover every question, and no template would be chosen.

    >>> best_only([[0.2, 0.2, 1.0], [1.0, 0.2, 0.0]])
    [[0.0, 0.2, 1.0], [1.0, 0.2, 0.0]]
    """
    best = [max(scores) for scores in zip(*dev_scores, strict=True)]
    return [[score if score == top else 0.0 for score, top in zip(row, best, strict=True)] for row in dev_scores]


@dataclass(frozen=True)
class TextLimits:
    """What a search has to know of texts: how long one is, how long a template may be, what reflection is shown."""

    count: Callable[[str], int] = len  # tokens of a text; by default, its characters
    room: float = math.inf  # a template has fewer tokens
    quote: Callable[[str], str] = str  # a response, shortened for the reflection prompt

    def fits(self, template: str) -> bool:
        return self.count(template) < self.room

    def require_room_for_seed(self, template: str) -> None:
        if not self.fits(template):
            room = f"beside the longest question there is room for {max(self.room - 1, 0)}"
            told = f"--gepa-seed-template: it has {self.count(template)} tokens, and {room}"
            raise UserError(f"{told}; shorten it, or raise --max-prompt-tokens")


def text_limits(tokenizer, room: int, quoted_tokens: int) -> TextLimits:
    """The limits in tokens of a tokenizer."""
    count, quote = partial(count_tokens, tokenizer), partial(shortened, tokenizer, limit=quoted_tokens)
    return TextLimits(count, room, quote)


def leave_out_long_templates(evolution, limits: TextLimits, log: Callable[[str], None]) -> None:
    """Choose no template that leaves no room for the longest question.

    The search finds none. `--evolve` may: its templates may come from an earlier epoch, with other questions.
    """
    texts = [evolution.candidates[k] for k in evolution.chosen]
    short = [k for k, text in zip(evolution.chosen, texts, strict=True) if not text or limits.fits(text)]
    if len(short) < len(texts):
        log(f"{len(texts) - len(short)} of {len(texts)} templates leave no room for the longest question: left out")
        evolution.chosen = short


@dataclass
class Meter:
    """How many tokens a search has sampled, and whether that is all it may: `budget`, 0 for no limit.

    They are counted from the texts. So answers from a journal count as before, and a resumed search ends where it would
    have ended.

    >>> meter = Meter(count=lambda text: len(text.split()), budget=3)
    >>> meter.add(["one two"]), meter.full, meter.add(["three"]), meter.full
    (None, False, None, True)
    """

    count: Callable[[str], int]  # tokens of a text
    budget: int
    spent: int = 0

    def add(self, texts: list[str]) -> None:
        self.spent += sum(map(self.count, texts))

    @property
    def full(self) -> bool:
        return 0 < self.budget <= self.spent


@dataclass
class Evaluator:
    """gepa's adapter: `run` takes (template, question) pairs and gives (response, verdict, record) of each.

    A verdict's reward is the score; reward and form are the objectives. Reflection is shown the records.
    """

    run: Callable[[list[tuple]], list[tuple]]
    meter: Meter
    propose_new_texts = None  # the reflection strategy proposes

    def evaluate(self, batch: list, candidate: dict[str, str], capture_traces: bool = False) -> EvaluationBatch:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(self, items: list[tuple[dict[str, str], list]]) -> list[EvaluationBatch]:
        """All candidates' questions at once, so that a GPU has enough to do."""
        asked = [(as_template(candidate), question) for candidate, questions in items for question in questions]
        results = iter(self.run(asked))
        return [self.batch_of([next(results) for _ in questions]) for _, questions in items]

    def batch_of(self, results: list[tuple]) -> EvaluationBatch:
        outputs, verdicts, records = map(list, zip(*results, strict=True))
        self.meter.add(outputs)
        scores, formed = [verdict.reward for verdict in verdicts], [float(verdict.well_formed) for verdict in verdicts]
        objectives = [{"reward": score, "well formed": form} for score, form in zip(scores, formed, strict=True)]
        return EvaluationBatch(outputs, scores, trajectories=records, objective_scores=objectives)

    def make_reflective_dataset(self, candidate, eval_batch: EvaluationBatch, components_to_update: list[str]):
        return {name: eval_batch.trajectories for name in components_to_update}


@dataclass
class Reflection:
    """gepa's reflection strategy: all prompts of an iteration in one batch, useless replies dropped and counted.

    gepa itself adopts an empty or truncated reply as a candidate (gepa#390), and searches on if reflection fails.
    """

    ask: Callable[[list[str]], list[str | tuple[str, bool]]]  # reflection prompts -> replies, or (reply, truncated)
    prompt: Callable[[str, list[dict]], str]  # (a component's text, records) -> reflection prompt
    parse: Callable[[str], str | None]  # reply -> new instruction
    fits: Callable[[str], bool]  # does a template leave room for the questions?
    log: Callable[[str], None]
    meter: Meter
    adopted: int = 0
    rejected: int = 0
    failed_in_a_row: int = 0
    why: str = ""

    @property
    def useless(self) -> str | None:
        """Why the search should end, if it should."""
        if self.failed_in_a_row < MAX_FAILED_REFLECTIONS:
            return None
        return f"{self.failed_in_a_row} replies of the reflection model in a row could not be adopted: {self.why}"

    def why_it_ended(self, metric_calls: int, budget: int, dev_set_size: int) -> str | None:
        """Log how many reflections could be adopted. If the search ended before its budget, log why, and return it."""
        self.log(f"{self.adopted} of {self.adopted + self.rejected} reflections named a usable instruction")
        why = self.useless
        if budget <= dev_set_size:
            why = f"scoring the first template on {dev_set_size} dev questions took all of --gepa-budget {budget}"
        if why:
            self.log(f"prompt evolution ends after {metric_calls} of {budget} metric calls: {why}")
        return why

    def reflect(self, candidate, reflective_dataset, components_to_update):
        return self.reflect_many([(candidate, reflective_dataset, components_to_update)])[0]

    def reflect_many(self, jobs):
        """A child for each job: (its parent, the records for each component, [the component whose turn it is])."""
        prompts = [self.prompt(parent[name], records[name]) for parent, records, (name,) in jobs]
        try:
            replies = self.ask(prompts)
        except Exception as error:  # gepa would catch it, and ask prompt by prompt
            replies, self.why = [""] * len(prompts), f"{type(error).__name__}: {error}"
            # Together with the empty replies to these prompts it is enough to end the search.
            self.failed_in_a_row = max(self.failed_in_a_row, MAX_FAILED_REFLECTIONS - len(prompts))
        replies = [(reply, False) if isinstance(reply, str) else tuple(reply) for reply in replies]
        self.meter.add([reply for reply, _ in replies])
        tasks = zip(jobs, prompts, replies, strict=True)
        return [(self.proposal(job, prompt, *reply), self) for job, prompt, reply in tasks]

    def proposal(self, job: tuple, prompt: str, reply: str, truncated: bool) -> ReflectionProposal:
        """The child that a reply proposes; an empty proposal if the reply cannot be adopted."""
        parent, _, (name,) = job
        text = None if truncated else self.parse(reply)
        forged = text is not None and SYSTEM_ENDS in text  # what follows such a line would leave the system message
        if text is not None and not forged and self.fits(as_template(parent | {name: text})):
            self.adopted += 1
            self.failed_in_a_row = 0
            return ReflectionProposal({name: text}, prompts={name: prompt}, raw_lm_outputs={name: reply})
        self.rejected += 1
        self.failed_in_a_row += 1
        if truncated:
            self.why = f"it was cut off (--reflection-tokens) at {reply[-80:]!r}"
        elif forged:
            self.why = f"it holds the line {SYSTEM_ENDS}"
        elif text:
            self.why = "it leaves no room for the question"
        elif reply:
            self.why = f"no instruction in {reply[:80]!r}"
        self.log(f"a reflection was not adopted: {self.why or 'it was empty'}")
        return ReflectionProposal(new_texts={})
