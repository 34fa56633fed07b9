"""Which prompts unlock hard questions: the GEPA call, the greedy cover, and who gets which template.

In goes the hard set of an epoch, out come G templates for each hard question:

    split        at random into a part to reflect on and a dev set to score with      split_hard_set
    evolve       GEPA from the empty template: sample parents by Pareto weight,        evolve
                 run a minibatch, reflect on the transcripts, keep the child if it
                 beats its parent, then score it on the whole dev set
    cover        greedily, until every solved dev question is solved by one of them    greedy_cover
    assign       G draws per question, from the templates that solve it                assign_templates

This module does not know how the policy is trained. It sees three functions: `respond` (user messages in, greedy
responses of the current policy out), `judge` (responses in, verdicts out) and `reflect` (reflection prompts in, replies
out). Equations and algorithms have the numbers of arXiv:2603.21877v3. What stands behind `# --- solution: part N ---`
is taken out for the students of the course in assignment/.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import gepa
from gepa.strategies.proposal_sampling import IndependentSampling

import verify
from support.data import Question
from support.gepa_glue import Evaluator, Meter, Reflection, TextLimits, best_only, check_budget, metric_call_budget
from support.messages import as_template, seed_candidate, templated
from support.reflection import fill_prompt, parse_reflection, read_wording
from support.settings import Settings, at_least, require

Respond = Callable[[list[str]], list[tuple[str, bool]]]  # user messages -> (response, truncated) of each
Reflect = Callable[[list[str]], list[str | tuple[str, bool]]]  # reflection prompts -> replies, or (reply, truncated)


@dataclass(frozen=True)
class EvolutionConfig(Settings):
    """When templates are evolved, what that may cost, who reflects, and how templates are given out."""

    # Number of hard questions below which no templates are evolved. The next epoch then runs bare.
    hard_set_min: int = 12
    # Number of dev questions that score a template, at most: of a small hard set it is half.
    gepa_dev_size: int = 40
    # Number of questions that one reflection is shown.
    gepa_minibatch: int = 3
    # Number of parents that an iteration advances, as one batch.
    gepa_parents: int = 4
    # Metric calls of one evolution: a number, or GEPA's light, medium, heavy, heavy_2, heavy_3, heavy_4, heavy_16.
    # An iteration that has begun is finished: up to gepa-parents x (2 x gepa-minibatch + dev questions) calls more.
    gepa_budget: str = "500"
    # Tokens that an evolution may sample, responses and reflections together. 0 is no limit.
    gepa_tokens: int = 0
    # Template that evolution starts from. Empty, as in the paper, for none.
    gepa_seed_template: str = ""
    # Evolve a system message, too, in turn with the template.
    gepa_system: bool = False
    # Parents are the best candidates on each dev question (instance), by reward and by form (objective), on both
    # (hybrid), or on each pair of question and objective (cartesian).
    gepa_front: Literal["instance", "objective", "hybrid", "cartesian"] = "instance"
    # Model that reflects: the base policy (adapter off), the policy as it is trained, or one behind an endpoint.
    reflection: Literal["self", "policy", "teacher"] = "self"
    # Folder or hub id of another model that reflects in place of the base policy. It is loaded beside the policy.
    reflection_model: str = ""
    # File with the words of the reflection prompt, in place of gepa_loop.REFLECTION_PROMPT.
    reflection_prompt: str = ""
    # Longest reflection in tokens. One that was cut off is never adopted.
    reflection_tokens: int = 60
    # Tokens of each response that a reflection is shown. Of a longer response it sees the beginning and the end.
    reflection_quote: int = 1024
    # Temperature of reflections. The higher it is, the more they differ from each other.
    reflection_temperature: float = 1.0
    # Base URL of the teacher's OpenAI-compatible endpoint. The environment variable OPENAI_API_KEY holds the key.
    teacher_url: str = ""
    # Name of the teacher at that endpoint.
    teacher_model: str = ""
    # Calls of the teacher that one evolution may make.
    teacher_max_calls: int = 1000
    # Tokens of the teacher that one evolution may use, prompts and replies together.
    teacher_max_tokens: int = 2_000_000
    # Give all G rollouts of a hard question the same template.
    one_template_per_group: bool = False
    # Sample one rollout of each templated group from the bare question.
    leave_one_bare: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(4, self, "hard_set_min")  # two to reflect on, two to score with
        at_least(2, self, "gepa_dev_size", "reflection_quote")
        at_least(1, self, "gepa_minibatch", "gepa_parents", "reflection_tokens")
        at_least(1, self, "teacher_max_calls", "teacher_max_tokens")
        at_least(0, self, "gepa_tokens")
        check_budget(self.gepa_budget, dev_set_size(self.hard_set_min, self.gepa_dev_size))
        temperature, reflection, model = self.reflection_temperature, self.reflection, self.reflection_model
        require(0 < temperature < float("inf"), f"--reflection-temperature {temperature}: must be positive")
        require(reflection == "self" or not model, f"--reflection-model {model}: not beside --reflection {reflection}")
        teacher = {reflection == "teacher", bool(self.teacher_url), bool(self.teacher_model)}
        require(len(teacher) == 1, "--reflection teacher, --teacher-url and --teacher-model need each other")


def apply_template(template: str, question: str) -> str:
    """T(x, z) (eq. 2): the template, an empty line, the question; the empty template leaves the question as it is.

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
    rejected_replies: int  # reflections that were not adopted: empty, cut off, too long, or without an instruction
    stopped_early: str | None  # what was wrong, if anything: useless reflections, or too small a budget
    tokens: int = 0  # of these responses, and of the reflections

    @property
    def weights(self) -> list[float]:
        """Mean dev score of each chosen template, at least 1e-6: a --reward may be negative, a weight may not."""
        return [max(sum(self.dev_scores[k]) / len(self.dev_ids), 1e-6) for k in self.chosen]


def evolve(
    hard: Sequence[Question], respond: Respond, reflect: Reflect, cfg: EvolutionConfig, *,
    judge: verify.Judge = verify.judge, limits: TextLimits | None = None, seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> Evolution:  # fmt: skip
    """Evolve templates for the hard questions, and choose those that cover them (Algorithm 3; step 1 of Algorithm 2).

    `limits` says how long a template may be, and shortens the responses that reflection is shown.
    """
    limits = limits or TextLimits()
    # Algorithm 3, line 1: one part of the hard questions is for reflection, the other scores. A template that only
    # repeats the answers that reflection was shown gains nothing on the dev set.
    train, dev = split_hard_set(hard, cfg.gepa_dev_size, random.Random(seed))
    budget = metric_call_budget(cfg.gepa_budget, len(dev))
    meter = Meter(limits.count, cfg.gepa_tokens)  # counts the tokens that the search samples
    wording = read_wording(cfg.reflection_prompt, REFLECTION_PROMPT)

    def prompt_for(instruction: str, records: list[dict]) -> str:
        return reflection_prompt(instruction, records, wording)

    def run_candidates(pairs: list[tuple[str, Question]]) -> list[tuple[str, verify.Verdict, dict]]:
        return run_templates(pairs, respond, judge, limits.quote)

    # A reply is adopted if `parse_reflection` finds an instruction in it that leaves room for the question.
    reflection = Reflection(reflect, prompt_for, parse_reflection, limits.fits, log, meter)

    def should_stop(state) -> bool:
        """GEPA asks before each iteration. Beside its budget, the search has three reasons to end."""
        one_solves_all = max(state.program_full_scores_val_set) >= 1.0  # nothing is left to gain
        tokens_used_up = meter.full  # --gepa-tokens
        reflection_fails = reflection.useless is not None  # many replies in a row could not be adopted
        return one_solves_all or tokens_used_up or reflection_fails

    # Algorithm 3. GEPA owns the loop: it keeps the candidates, draws parents (line 7), runs each on a minibatch, and
    # keeps the child if it beats its parent there (lines 13 to 17). We give it the parts that know our task.
    result = gepa.optimize(
        seed_candidate=seed_candidate(cfg),  # candidate 0: no template at all, unless --gepa-seed-template gives one
        trainset=train,  # questions that reflection sees, a minibatch at a time (line 9)
        valset=dev,  # questions that score the seed and every child that is kept; the cover is chosen on these scores
        adapter=Evaluator(run_candidates, meter),  # no LoRA adapter: it runs candidates and judges them (10, 11)
        reflection_strategy=reflection,  # shows a minibatch to the reflection model, proposes its reply (12, eq. 5)
        # Parents are drawn by GEPA's rule, as in the authors' code. (Algorithm 4 draws by mean dev score.) A candidate
        # that is best on some dev question is on the front, and the more such questions it has, the more often it is
        # drawn. Several parents go on at once, so that a GPU stays busy.
        sampling_strategy=IndependentSampling(cfg.gepa_parents),
        frontier_type=cfg.gepa_front,  # the default, "instance", is this front; others count objectives as well
        reflection_minibatch_size=cfg.gepa_minibatch,  # the minibatch size of the paper, 3
        max_metric_calls=budget,  # responses (line 5); checked between iterations only, so the last one overshoots
        stop_callbacks=should_stop,
        logger=SimpleNamespace(log=log),
        display_progress_bar=True,  # responses so far, and the time left
        seed=seed,
        raise_on_exception=True,  # otherwise a policy that fails at every call would keep GEPA in its loop for ever
    )
    stopped_early = reflection.why_it_ended(result.total_metric_calls, budget, len(dev))
    # GEPA gives a dict {dev question: score} for each candidate.
    dev_scores = [[scores[n] for n in range(len(dev))] for scores in result.val_subscores]  # [K][N]
    return Evolution(
        candidates=[as_template(candidate) for candidate in result.candidates],
        parents=[list(parents) for parents in result.parents], dev_scores=dev_scores, tokens=meter.spent,
        chosen=greedy_cover(best_only(dev_scores)),
        dev_ids=[question.id for question in dev], train_ids=[question.id for question in train],
        metric_calls=result.total_metric_calls, rejected_replies=reflection.rejected, stopped_early=stopped_early,
    )  # fmt: skip


def run_templates(
    pairs: list[tuple[str, Question]], respond: Respond, judge: verify.Judge, quote: Callable[[str], str] = str
) -> list[tuple[str, verify.Verdict, dict]]:
    """(response, verdict, the record that reflection is shown) for each template and question."""
    # All pairs in one batch: the candidates of an iteration are sampled together.
    responses = respond([apply_template(template, question.text) for template, question in pairs])
    texts = [text for text, _ in responses]
    questions = [question for _, question in pairs]
    verdicts = judge(texts, questions, [truncated for _, truncated in responses])
    results = []
    for question, text, verdict in zip(questions, texts, verdicts, strict=True):
        record = reflection_record(question.text, quote(text), verdict.feedback)
        results.append((text, verdict, record))
    return results


def split_hard_set(
    hard: Sequence[Question], dev_size: int, rng: random.Random
) -> tuple[list[Question], list[Question]]:
    """(GEPA train questions, dev questions), at random: half and half if there are fewer than 1.5 * dev_size.

    >>> train, dev = split_hard_set([Question(str(i), "", "") for i in range(12)], 10, random.Random(0))
    >>> len(train), len(dev)
    (6, 6)
    """
    require(len(hard) >= 2, f"prompt evolution needs 2 hard questions, to reflect on and score with; got {len(hard)}")
    # At random, or the dev set would hold the questions of the first batches only. With few hard questions both parts
    # get half: a dev set of 300 and a train part of 2 would leave reflection nothing to see.
    shuffled = rng.sample(list(hard), len(hard))
    size = dev_set_size(len(hard), dev_size)
    return shuffled[size:], shuffled[:size]


def dev_set_size(hard: int, dev_size: int) -> int:
    """How many of so many hard questions score the templates."""
    return hard // 2 if hard < 1.5 * dev_size else dev_size


# ------------------------------------------------------------------------------------------------------- reflection

# The current instruction and the records go into the two places. The fences show where the new instruction begins and
# ends. GEPA's own prompt says more; this one is short enough for a small model.
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


def reflection_prompt(instruction: str, records: list[dict[str, str]], wording: str = REFLECTION_PROMPT) -> str:
    """The prompt as it is sent: `wording` with the instruction and the records in their places."""
    return fill_prompt(wording, instruction, records)


def reflection_record(question: str, response: str, feedback: str) -> dict[str, str]:
    """One graded example, as the reflection model sees it."""
    return {"Question": question, "Response": response, "Feedback": feedback}


# --------------------------------------------------------------------------------------------- cover and assignment


def greedy_cover(dev_scores: list[list[float]]) -> list[int]:
    """The candidates that together solve every solved dev question, chosen greedily (Algorithm 2, step 1).

    dev_scores: K lists of N scores; a score above 0 is solved. Each time the candidate that solves most still uncovered
    questions, the first one on ties; stop when none adds any.

    >>> greedy_cover([[0, 0, 0], [1, 1, 0], [0, 1, 1]])
    [1, 2]
    """
    # --- solution: part 5 ---
    # One greedy response decides whether a template solves a dev question. Many candidates solve the same questions, so
    # a few of them cover all that any of them solves.
    solves = [{n for n, score in enumerate(scores) if score > 0} for scores in dev_scores]  # K sets of dev questions
    chosen: list[int] = []
    covered: set[int] = set()
    while True:
        gains = [len(solved - covered) for solved in solves]
        if not any(gains):  # every question that any candidate solves is covered; or there is no candidate at all
            return chosen
        best = gains.index(max(gains))  # the first one on ties: the older candidate
        chosen.append(best)
        covered |= solves[best]


def assign_templates(
    evolution: Evolution, group_size: int, rng: random.Random, cfg: EvolutionConfig | None = None
) -> dict[str, list[str]]:
    """{question id: its G templates}, by draws with replacement weighted by mean dev score (Algorithm 2, step 2).

    A dev question draws from the chosen templates that solve it (from all chosen ones if none does), a train question
    from all chosen ones. No template that solves anything: no assignment, the next epoch runs bare. Where the empty
    template is among the chosen ones, a rollout that draws it is sampled bare.
    """
    # --- solution: part 6 ---
    cfg = cfg or EvolutionConfig()
    chosen, weights = evolution.chosen, evolution.weights
    assignment: dict[str, list[str]] = {}
    if not chosen:
        return assignment
    for question_id in [*evolution.dev_ids, *evolution.train_ids]:
        pool = list(range(len(chosen)))  # places in `chosen`, which are those in `weights`, too; no candidates' numbers
        if question_id in evolution.dev_ids:
            # It is known which templates solve this question. A train question was never scored by all of them.
            n = evolution.dev_ids.index(question_id)
            pool = [i for i in pool if evolution.dev_scores[chosen[i]][n] > 0] or pool
        # With replacement: the template that solves twice as many dev questions is drawn twice as often.
        draws = 1 if cfg.one_template_per_group else group_size
        picks = rng.choices(pool, [weights[i] for i in pool], k=draws)
        templates = [evolution.candidates[chosen[i]] for i in picks] * (group_size // draws)
        if cfg.leave_one_bare:
            # Where a template solves every sample, all advantages are 0 again: collapse at the top. One bare rollout,
            # which most likely fails, keeps the contrast.
            templates = [*templates[:-1], ""]
        assignment[question_id] = templates
    return assignment
