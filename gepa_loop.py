"""Which prompts unlock hard questions: the GEPA call, the greedy cover, and who gets which template.

In goes the hard set of an epoch, out come G templates for each hard question:

    split        at random into a GEPA train half and a dev set                        split_hard_set
    evolve       GEPA from the empty template: sample parents by Pareto weight,        evolve
                 run a minibatch, reflect on the transcripts, keep the child if it
                 beats its parent, then score it on the whole dev set
    cover        greedily, until every solved dev question is solved by one of them    greedy_cover
    assign       G draws per question, from the templates that solve it                assign_templates

This module does not know how the policy is trained. It sees three callables: `respond` (user messages in, greedy
responses of the current policy out), `judge` (responses in, verdicts out) and `reflect` (reflection prompts in, replies
out). Equations and algorithms have the numbers of arXiv:2603.21877v3.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Literal

import gepa
from gepa.strategies.instruction_proposal import InstructionProposalSignature
from gepa.strategies.proposal_sampling import IndependentSampling

import verify
from support.data import Question
from support.gepa_glue import BUDGETS, Evaluator, Meter, Reflection, SearchConfig, is_budget, metric_call_budget
from support.messages import as_template, templated
from support.teacher import TeacherConfig

Respond = Callable[[list[str]], list[tuple[str, bool]]]  # user messages -> (response, truncated) of each
Reflect = Callable[[list[str]], list[str]]  # reflection prompts -> replies


@dataclass(frozen=True)
class EvolutionConfig(SearchConfig, TeacherConfig):
    """When templates are evolved, what that may cost, who reflects, and how templates are given out."""

    hard_set_min: int = 12  # With fewer hard questions than this, no templates are evolved and the next epoch runs bare
    gepa_dev_size: int = 40  # Dev questions that score a template
    gepa_minibatch: int = 3  # Questions shown in one reflection
    gepa_parents: int = 4  # Parents advanced per iteration, as one batch
    gepa_budget: str = "500"
    """Metric calls of one evolution: a number, or GEPA's light, medium, heavy, heavy_2, heavy_3, heavy_4, heavy_16.
    An iteration that has begun is finished: up to gepa-parents x (2 x gepa-minibatch + dev questions) more."""
    reflection: Literal["self", "policy", "teacher"] = "self"
    """Who reflects: the base policy (adapter off), the policy as it is trained, or a model behind an endpoint."""
    reflection_tokens: int = 60  # Length limit of a reflection
    reflection_quote: int = 1024  # Tokens of each response that a reflection is shown: its beginning and its end
    reflection_temperature: float = 1.0  # Of sampling reflections
    one_template_per_group: bool = False  # all G rollouts of a hard question share one template
    leave_one_bare: bool = False  # One rollout of each templated group is sampled from the bare question

    def rules(self) -> dict[str, bool]:
        budget, teacher, dev_size = self.gepa_budget, (self.teacher_url, self.teacher_model), smallest_dev_set(self)
        return {
            f"--hard-set-min {self.hard_set_min}: at least 4, two to train and two to score": self.hard_set_min >= 4,
            f"--gepa-dev-size {self.gepa_dev_size}: at least 2": self.gepa_dev_size >= 2,
            f"--gepa-minibatch {self.gepa_minibatch}: at least 1": self.gepa_minibatch >= 1,
            f"--gepa-parents {self.gepa_parents}: at least 1": self.gepa_parents >= 1,
            f"--gepa-budget {budget}: a number, or one of {', '.join(BUDGETS)}": is_budget(budget),
            f"--gepa-budget {budget}: the first template alone is scored on {dev_size} dev questions or more, and a "
            "budget that is spent on that proposes none; give more": (
                not is_budget(budget) or metric_call_budget(budget, dev_size) > dev_size
            ),
            f"--reflection-tokens {self.reflection_tokens}: at least 1": self.reflection_tokens >= 1,
            f"--reflection-quote {self.reflection_quote}: at least 2": self.reflection_quote >= 2,
            f"--reflection-temperature {self.reflection_temperature}: must be positive, and a number": (
                0 < self.reflection_temperature < float("inf")
            ),
            "--reflection teacher and --teacher-url, --teacher-model (an OpenAI-compatible endpoint) need each other": (
                all(teacher) if self.reflection == "teacher" else not any(teacher)
            ),
        }


def apply_template(template: str, question: str) -> str:
    """T(x, z) (v3, eq. 2): the template, an empty line, the question; the empty template leaves the question as it is.

    A template may begin with a system part (`--gepa-system`), which the chat format puts where it belongs.

    >>> apply_template("Add one digit at a time.", "Add these digits: 7, 9.")
    'Add one digit at a time.\\n\\nAdd these digits: 7, 9.'
    """
    return templated(template, question) if template else question


# ---------------------------------------------------------------------------------------------------- the GEPA call


@dataclass
class Evolution:
    """What one evolution found. K candidates, N dev questions; candidate 0 is the seed, by default empty."""

    candidates: list[str]  # [K]
    parents: list[list[int | None]]  # [K], each candidate's parents
    dev_scores: list[list[float]]  # [K][N]
    dev_ids: list[str]  # [N]
    train_ids: list[str]
    chosen: list[int]  # the greedy cover, indices of candidates
    metric_calls: int  # responses that the search spent
    rejected_replies: int  # reflections that were empty, cut off or too long
    stopped_early: str | None  # why the search ended before its budget
    tokens: int = 0  # of these responses, and of the reflections

    @property
    def weights(self) -> list[float]:
        """Mean dev score of each chosen template, with a floor of 1e-6."""
        return [max(sum(self.dev_scores[k]) / len(self.dev_ids), 1e-6) for k in self.chosen]


def evolve(
    hard: Sequence[Question], respond: Respond, reflect: Reflect, cfg: EvolutionConfig, *,
    judge: verify.Judge = verify.judge, tokens: Callable[[str], int] = len, room: float = float("inf"),
    quote: Callable[[str], str] = str, seed: int = 0, log: Callable[[str], None] = lambda line: None,
) -> Evolution:  # fmt: skip
    """Evolve templates for the hard questions and choose those that cover them (v3, Algorithm 3).

    `tokens` counts those of a text (by default, its characters), and a template has fewer than `room`. `quote` gives
    what reflection is shown of a response.
    The search ends early when a template solves the whole dev set, for then nothing is left to gain, and, saying why,
    when many replies in a row were of no use.
    """
    train, dev = split_hard_set(hard, cfg.gepa_dev_size, random.Random(seed))
    budget, meter = metric_call_budget(cfg.gepa_budget, len(dev)), Meter(tokens, cfg.gepa_tokens)
    reflection = Reflection(reflect, reflection_prompt, parse_reflection, lambda z: tokens(z) < room, log, meter)
    result = gepa.optimize(
        seed_candidate=cfg.gepa_seed,
        trainset=train,
        valset=dev,
        adapter=Evaluator(partial(run_templates, respond=respond, judge=judge, quote=quote), meter),
        reflection_strategy=reflection,
        sampling_strategy=IndependentSampling(cfg.gepa_parents),
        frontier_type=cfg.gepa_front,
        use_merge=cfg.gepa_merge,
        merge_val_overlap_floor=1,  # all candidates are scored on the whole dev set, so any two overlap
        reflection_minibatch_size=cfg.gepa_minibatch,
        max_metric_calls=budget,
        stop_callbacks=lambda state: reflection.useless or meter.full or max(state.program_full_scores_val_set) >= 1.0,
        logger=SimpleNamespace(log=log),
        seed=seed,
        raise_on_exception=True,  # an adapter that always fails would loop for ever otherwise
    )
    stopped_early = reflection.useless
    if budget <= len(dev):
        stopped_early = f"scoring the first template on {len(dev)} dev questions took all of --gepa-budget {budget}"
    if stopped_early:
        log(f"prompt evolution ends after {result.total_metric_calls} of {budget} metric calls: {stopped_early}")
    dev_scores = [[scores[n] for n in range(len(dev))] for scores in result.val_subscores]
    return Evolution(
        candidates=[as_template(candidate) for candidate in result.candidates],
        parents=[list(parents) for parents in result.parents],
        dev_scores=dev_scores,
        dev_ids=[question.id for question in dev],
        train_ids=[question.id for question in train],
        chosen=greedy_cover(dev_scores),
        metric_calls=result.total_metric_calls,
        rejected_replies=reflection.rejected,
        stopped_early=stopped_early,
        tokens=meter.spent,
    )


def run_templates(
    pairs: list[tuple[str, Question]], respond: Respond, judge: verify.Judge, quote: Callable[[str], str] = str
) -> list[tuple[str, verify.Verdict, dict]]:
    """(response, verdict, what reflection is shown of it) for each template and question."""
    responses = respond([apply_template(template, question.text) for template, question in pairs])
    texts, asked = [text for text, _ in responses], [question for _, question in pairs]
    verdicts = judge(texts, asked, [truncated for _, truncated in responses])
    shown = [
        reflection_record(q.text, quote(text), v.feedback) for q, text, v in zip(asked, texts, verdicts, strict=True)
    ]
    return list(zip(texts, verdicts, shown, strict=True))


def split_hard_set(
    hard: Sequence[Question], dev_size: int, rng: random.Random
) -> tuple[list[Question], list[Question]]:
    """(GEPA train questions, dev questions), at random: half and half if there are fewer than 1.5 * dev_size.

    >>> train, dev = split_hard_set([Question(str(i), "", "") for i in range(12)], 10, random.Random(0))
    >>> len(train), len(dev)
    (6, 6)
    """
    shuffled = rng.sample(list(hard), len(hard))
    size = dev_questions(len(hard), dev_size)
    return shuffled[size:], shuffled[:size]


def dev_questions(hard: int, dev_size: int) -> int:
    """How many of so many hard questions score the templates."""
    return hard // 2 if hard < 1.5 * dev_size else dev_size


def smallest_dev_set(cfg: EvolutionConfig) -> int:
    """The size of the dev set of the smallest hard set that evolves templates."""
    return dev_questions(cfg.hard_set_min, cfg.gepa_dev_size)


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


def reflection_prompt(instruction: str, records: list[dict[str, str]]) -> str:
    """The prompt as it is sent: REFLECTION_PROMPT with the records in GEPA's own layout."""
    # GEPA would look for <side_info> in the instruction, too, after it has put it in, and paste the records twice.
    only_records = {"current_instruction_doc": "", "prompt_template": "<curr_param><side_info>"}
    shown = InstructionProposalSignature.prompt_renderer(only_records | {"dataset_with_feedback": records})
    before, _, rest = REFLECTION_PROMPT.partition("<curr_param>")
    between, _, after = rest.partition("<side_info>")
    return f"{before}{instruction}{between}{shown}{after}"


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


# --------------------------------------------------------------------------------------------- cover and assignment


def greedy_cover(dev_scores: list[list[float]]) -> list[int]:
    """The candidates that together solve every solved dev question, chosen greedily (v3, Algorithm 2, step 1).

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
    evolution: Evolution, group_size: int, rng: random.Random, cfg: EvolutionConfig | None = None
) -> dict[str, list[str]]:
    """{question id: its G templates}, by draws with replacement weighted by mean dev score (v3, Algorithm 2, step 2).

    A dev question draws from the chosen templates that solve it (from all chosen ones if none does), a train question
    from all chosen ones. No template that solves anything: no assignment, the next epoch runs bare.
    """
    # --- solution: part 6 ---
    cfg = cfg or EvolutionConfig()
    chosen, weights = evolution.chosen, evolution.weights
    assignment = {}
    for question_id in [*evolution.dev_ids, *evolution.train_ids] if chosen else []:
        pool = list(range(len(chosen)))
        if question_id in evolution.dev_ids:
            n = evolution.dev_ids.index(question_id)
            pool = [i for i in pool if evolution.dev_scores[chosen[i]][n] > 0] or pool
        draws = 1 if cfg.one_template_per_group else group_size
        picks = rng.choices(pool, [weights[i] for i in pool], k=draws)
        templates = [evolution.candidates[chosen[i]] for i in picks] * (group_size // draws)
        # Where a template solves every sample, contrast is gone again: collapse at the top. One bare rollout keeps it.
        assignment[question_id] = [*templates[:-1], ""] if cfg.leave_one_bare else templates
    return assignment
