"""Which prompts unlock hard questions: the GEPA call, the reflection model, cover and assignment.

In goes the hard set of an epoch, out come G templates for each hard question:

    split        at random into a GEPA train half and a dev set                        split_hard_set
    evolve       GEPA from the empty template: sample parents by Pareto weight,        evolve
                 run a minibatch, reflect on the transcripts, keep the child if it
                 beats its parent, then score it on the whole dev set
    cover        the smallest set of candidates that solves every solved dev question  greedy_cover
    assign       G draws per question, from the templates that solve it                assign_templates

This module does not know how the policy is trained. It sees two callables: `answer` (user messages in, greedy responses
of the current policy out) and `reflect` (`str -> str`).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import gepa
from gepa.core.adapter import EvaluationBatch
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal
from gepa.strategies.instruction_proposal import InstructionProposalSignature
from gepa.strategies.proposal_sampling import IndependentSampling
from gepa.visualization import candidate_tree_html_from_data

import verify
from support.data import Problem

Answer = Callable[[list[str]], list[tuple[str, bool]]]  # user messages -> (response, truncated) of each
Reflect = Callable[[str], str]  # reflection prompt -> reply; a `batch` attribute, if it has one, takes several at once


def apply_template(template: str, question: str) -> str:
    """T(x, z): the template, an empty line, the question; the empty template leaves the question as it is.

    >>> apply_template("Add one digit at a time.", "Add these digits: 7, 9.")
    'Add one digit at a time.\\n\\nAdd these digits: 7, 9.'
    """
    return f"{template}\n\n{question}" if template else question


# ---------------------------------------------------------------------------------------------------- the GEPA call


@dataclass
class Evolution:
    """What one evolution found. K candidates, N dev questions; candidate 0 is the empty template."""

    candidates: list[str]  # [K]
    parents: list[list[int | None]]  # [K], each candidate's parents
    dev_scores: list[list[float]]  # [K][N]
    dev_ids: list[str]  # [N]
    train_ids: list[str]
    chosen: list[int]  # the greedy cover, indices of candidates
    metric_calls: int  # responses that the search spent
    rejected_replies: int  # reflections that were empty, cut off or too long
    stopped_early: str | None  # why the search ended before its budget
    tree_html: str = field(repr=False, default="")  # GEPA's own drawing of the lineage

    @property
    def weights(self) -> list[float]:
        """Mean dev score of each chosen template, with a floor of 1e-6."""
        return [max(sum(self.dev_scores[k]) / len(self.dev_ids), 1e-6) for k in self.chosen]


def evolve(
    hard: Sequence[Problem],
    answer: Answer,
    reflect: Reflect,
    *,
    dev_size: int,
    minibatch: int = 3,
    parents_per_iteration: int = 1,
    budget: str = "light",
    fits: Callable[[str], bool] = lambda template: True,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> Evolution:
    """Evolve templates for the hard questions and choose a covering set (design, section 2, steps 5 and 6).

    `budget` is GEPA's name for a number of metric calls ("light", ..., see metric_call_budget) or the number itself.
    `fits` says whether a template leaves room for the questions. The search ends early, and says why, when
    `MAX_FAILED_REFLECTIONS` replies in a row were of no use.
    """
    train, dev = split_hard_set(hard, dev_size, random.Random(seed))
    reflection = _Reflection(reflect, fits, log)
    calls = int(budget) if budget.isdigit() else metric_call_budget(budget, len(dev))
    result = gepa.optimize(
        seed_candidate={"template": ""},
        trainset=train,
        valset=dev,
        adapter=_PolicyAdapter(answer),
        reflection_strategy=reflection,
        sampling_strategy=IndependentSampling(parents_per_iteration),
        reflection_minibatch_size=minibatch,
        max_metric_calls=calls,
        # Nothing is left to gain once a template solves the whole dev set.
        stop_callbacks=lambda state: (
            reflection.failed_in_a_row >= MAX_FAILED_REFLECTIONS or max(state.program_full_scores_val_set) >= 1.0
        ),
        logger=SimpleNamespace(log=log),
        seed=seed,
        raise_on_exception=True,  # an adapter that always fails would loop for ever otherwise
    )
    dev_scores = [[scores[n] for n in range(len(dev))] for scores in result.val_subscores]
    early = None
    if reflection.failed_in_a_row >= MAX_FAILED_REFLECTIONS:
        early = (
            f"{reflection.failed_in_a_row} replies of the reflection model in a row were of no use: {reflection.why}"
        )
        log(f"prompt evolution ends after {result.total_metric_calls} of {calls} metric calls: {early}")
    return Evolution(
        candidates=[candidate["template"] for candidate in result.candidates],
        parents=[list(parents) for parents in result.parents],
        dev_scores=dev_scores,
        dev_ids=[problem.id for problem in dev],
        train_ids=[problem.id for problem in train],
        chosen=greedy_cover(dev_scores),
        metric_calls=result.total_metric_calls,
        rejected_replies=reflection.rejected,
        stopped_early=early,
        tree_html=lineage_html(result),
    )


def lineage_html(result: gepa.core.result.GEPAResult) -> str:
    """GEPA's own drawing of who came from whom.

    It puts templates into a script as they are, so one that holds `</script>` could run code of its own: `<` goes in
    as \\u003c.
    """
    html = candidate_tree_html_from_data(
        candidates=[{"template": candidate["template"].replace("<", "\ue000")} for candidate in result.candidates],
        parents=result.parents,
        val_scores=result.val_aggregate_scores,
        pareto_front_programs=result.per_val_instance_best_candidates,
    )
    return html.replace("\\ue000", "\\u003c").replace("\ue000", "\\u003c")


def split_hard_set(hard: Sequence[Problem], dev_size: int, rng: random.Random) -> tuple[list[Problem], list[Problem]]:
    """(GEPA train questions, dev questions), at random: half and half if there are fewer than 1.5 * dev_size.

    >>> train, dev = split_hard_set([Problem(str(i), "", "") for i in range(12)], 10, random.Random(0))
    >>> len(train), len(dev)
    (6, 6)
    """
    shuffled = rng.sample(list(hard), len(hard))
    size = len(hard) // 2 if len(hard) < 1.5 * dev_size else dev_size
    return shuffled[size:], shuffled[:size]


def metric_call_budget(auto: str, dev_size: int) -> int:
    """Metric calls of a budget name, as DSPy computes them for GEPA with one prompt (design, section 2).

    >>> metric_call_budget("light", 50)
    580
    """
    candidates = BUDGETS[auto]
    trials = int(max(4 * math.log2(candidates), 1.5 * candidates))
    full_evaluations = (trials + 1) // 5 + 1 + (trials < 5)
    return dev_size + 5 * candidates + 35 * trials + full_evaluations * dev_size


BUDGETS = {"light": 6, "medium": 12, "heavy": 18, "heavy_2": 36, "heavy_3": 54, "heavy_4": 72, "heavy_16": 288}


class _PolicyAdapter:
    """GEPA's view of the policy: (template, questions) pairs in; responses, rewards and transcripts out."""

    propose_new_texts = None  # the reflection strategy proposes

    def __init__(self, answer: Answer):
        self.answer = answer

    def evaluate(
        self, batch: list[Problem], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(self, items: list[tuple[dict[str, str], list[Problem]]]) -> list[EvaluationBatch]:
        pairs = [(candidate["template"], problem) for candidate, problems in items for problem in problems]
        responses = self.answer([apply_template(template, problem.question) for template, problem in pairs])
        grades = verify.grade_batch([text for text, _ in responses], [problem.answer for _, problem in pairs])
        records = [
            reflection_record(problem.question, text, verify.feedback(grade, problem.answer, truncated))
            for (_, problem), (text, truncated), grade in zip(pairs, responses, grades, strict=True)
        ]
        batches, start = [], 0
        for _, problems in items:
            part = slice(start, start + len(problems))
            texts, scores = [text for text, _ in responses[part]], [grade.reward for grade in grades[part]]
            batches.append(EvaluationBatch(outputs=texts, scores=scores, trajectories=records[part]))
            start += len(problems)
        return batches

    def make_reflective_dataset(self, candidate, eval_batch: EvaluationBatch, components_to_update: list[str]):
        return {name: eval_batch.trajectories for name in components_to_update}


# ------------------------------------------------------------------------------------------------------- reflection

REFLECTION_PROMPT = """\
An assistant was given this instruction:
```
<curr_param>
```
These are questions, its responses and feedback:
<side_info>
Write a better instruction for such questions. Keep what works. Add what the feedback shows to be missing: \
facts about the task and the steps of a strategy that generalizes, not the answers. \
Put the new instruction between ``` marks."""

MAX_FAILED_REFLECTIONS = 12  # in a row; then the search ends rather than burn its budget


def reflection_prompt(instruction: str, records: list[dict[str, str]]) -> str:
    """The prompt as it is sent: REFLECTION_PROMPT with the records in GEPA's own layout."""
    return InstructionProposalSignature.prompt_renderer(
        {"current_instruction_doc": instruction, "dataset_with_feedback": records, "prompt_template": REFLECTION_PROMPT}
    )


def reflection_record(question: str, response: str, feedback: str) -> dict[str, str]:
    """One graded example, as the reflection model sees it."""
    return {"Question": question, "Response": response, "Feedback": feedback}


def parse_reflection(reply: str) -> str | None:
    """The new instruction between the fences, or None for a reply without one: empty, or cut off before its end.

    GEPA itself adopts such replies as candidates (gepa#390). What a thinking model thought is left out.

    >>> parse_reflection("Better:\\n```\\nAdd one digit at a time.\\n```"), parse_reflection("```\\nAdd one")
    ('Add one digit at a time.', None)
    """
    reply = reply.rpartition("</think>")[2]
    if reply.count("```") < 2:
        return None
    return InstructionProposalSignature.output_extractor(reply.strip())["new_instruction"] or None


class _Reflection:
    """GEPA's reflection strategy: all prompts of an iteration in one batch, useless replies dropped and counted."""

    def __init__(self, reflect: Reflect, fits: Callable[[str], bool], log: Callable[[str], None]):
        self.reflect_batch = getattr(reflect, "batch", lambda prompts: [reflect(prompt) for prompt in prompts])
        self.fits, self.log = fits, log
        self.rejected = self.failed_in_a_row = 0
        self.why = ""

    def reflect(self, candidate, reflective_dataset, components_to_update):
        return self.reflect_many([(candidate, reflective_dataset, components_to_update)])[0]

    def reflect_many(self, jobs):
        prompts = [reflection_prompt(candidate["template"], dataset["template"]) for candidate, dataset, _ in jobs]
        try:
            replies = self.reflect_batch(prompts)
        except Exception as error:  # GEPA would swallow it and go on paying for evaluations
            replies, self.why = [""] * len(prompts), f"{type(error).__name__}: {error}"
            self.failed_in_a_row = max(self.failed_in_a_row, MAX_FAILED_REFLECTIONS - len(prompts))
        proposals = []
        for prompt, reply in zip(prompts, replies, strict=True):
            template = parse_reflection(reply)
            if template is None or not self.fits(template):
                self.rejected += 1
                self.failed_in_a_row += 1
                if reply:
                    self.why = "it leaves no room for the question" if template else f"no fenced text in {reply[:80]!r}"
                self.log(f"a reflection was not adopted: {self.why or 'it was empty'}")
                proposals.append(ReflectionProposal(new_texts={}))
            else:
                self.failed_in_a_row = 0
                texts = {"template": template}
                proposals.append(
                    ReflectionProposal(texts, prompts={"template": prompt}, raw_lm_outputs={"template": reply})
                )
        return [(proposal, self) for proposal in proposals]


def one_or_many(batch: Callable[[list[str]], list[str]]) -> Reflect:
    """A `str -> str` callable that keeps, as its `batch`, the one for several prompts that it is made of."""

    def reflect(prompt: str) -> str:
        return batch([prompt])[0]

    reflect.batch = batch
    return reflect


def teacher(
    base_url: str,
    model: str,
    *,
    max_tokens: int,
    temperature: float,
    max_calls: int,
    max_total_tokens: int,
    timeout: float = 120.0,
    retries: int = 5,
) -> Reflect:
    """A reflection model behind an OpenAI-compatible endpoint. Its key is read from OPENAI_API_KEY and written nowhere.

    Rate limits, server errors and time-outs are tried again `retries` times with growing pauses (by the client). An
    endpoint that stays down, or a limit that is used up, raises, and the search ends with that reason.
    """
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)
    calls = tokens = 0

    def ask(prompt: str) -> str:
        nonlocal calls, tokens
        if calls >= max_calls or tokens >= max_total_tokens:
            raise RuntimeError(f"the teacher's limit is used up ({calls} calls, {tokens} tokens)")
        calls += 1
        try:
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=temperature,
            )
            choice = reply.choices[0]
            text = choice.message.content or ""
        except Exception as error:  # refused, silent for too long, or no completion at all
            raise ConnectionError(f"{base_url}: {type(error).__name__}: {error}".replace(key, "***")) from None
        tokens += reply.usage.total_tokens if reply.usage else 0
        return "" if choice.finish_reason == "length" else text

    def batch(prompts: list[str]) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, prompts))

    return one_or_many(batch)


# --------------------------------------------------------------------------------------------- cover and assignment


def greedy_cover(dev_scores: list[list[float]]) -> list[int]:
    """The candidates that together solve every solved dev question, chosen greedily.

    dev_scores: K lists of N scores; a score above 0 is solved. Each time the candidate that solves most still uncovered
    questions, the first one on ties; stop when none adds any.

    >>> greedy_cover([[0, 0, 0], [1, 1, 0], [0, 1, 1]])
    [1, 2]
    """
    # --- solution: part 5 ---
    solves = [{n for n, value in enumerate(scores) if value > 0} for scores in dev_scores]
    chosen: list[int] = []
    covered: set[int] = set()
    while True:
        gains = [len(solved - covered) for solved in solves]
        if not any(gains):
            return chosen
        best = gains.index(max(gains))
        chosen.append(best)
        covered |= solves[best]


def assign_templates(
    evolution: Evolution, group_size: int, rng: random.Random, one_per_group: bool = False
) -> dict[str, list[str]]:
    """{question id: its G templates}, by draws with replacement weighted by mean dev score.

    A dev question draws from the chosen templates that solve it (from all chosen ones if none does), a train question
    from all chosen ones. No template that solves anything: no assignment, the next epoch runs bare.
    """
    # --- solution: part 6 ---
    chosen, weights = evolution.chosen, evolution.weights
    if not chosen:
        return {}
    draws = 1 if one_per_group else group_size
    assignment = {}
    for question_id in [*evolution.dev_ids, *evolution.train_ids]:
        pool = list(range(len(chosen)))
        if question_id in evolution.dev_ids:
            n = evolution.dev_ids.index(question_id)
            pool = [i for i in pool if evolution.dev_scores[chosen[i]][n] > 0] or pool
        picks = rng.choices(pool, [weights[i] for i in pool], k=draws)
        templates = [evolution.candidates[chosen[i]] for i in picks]
        assignment[question_id] = templates * group_size if one_per_group else templates
    return assignment
