"""Grade a student's folder, a submission.zip, or a folder of them: points for each part, what is wrong, and a hint.

    python assignment/grade.py student               # points, student/grade.xml, student/submission.zip
    python assignment/grade.py student --part 2      # one part, with the tracebacks
    python assignment/grade.py submission.zip        # the instructor's side
    python assignment/grade.py handed-in/            # zips or clones: grades.csv, similar.csv, an XML for each
    python grader/grade.py .                         # in a student's own folder

The exit code is 0 for all points, 1 if any is lost, 2 if there was nothing to grade.

The student's code runs in a process of its own, which holds no expected values (process.py). It is asked call by call;
its outputs come back as data and are compared here. The instructor's inputs are drawn under a secret seed; a student's
folder has cases.json, drawn once. Parts 1 to 7 run on the student's modules. Part 8 runs the student's p2o.py on the
reference's other modules, so that an earlier mistake costs its points once (in a student's folder, on the student's
own). What part 8 says is kept short, and holds nothing that the submission could have put there.
"""

from __future__ import annotations

import argparse
import builtins
import csv
import json
import math
import re
import secrets
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from process import HERE, ROOT, SUBMITTED, NotLocked, Process  # noqa: E402

BELOW = ("grpo.py", "gepa_loop.py", "verify.py")  # what part 8 stands on
LIMIT = 20  # seconds of processor time for a part
RUN_LIMIT = 180  # for part 8, which trains
OPEN_CASES = HERE / "cases.json"
Mistaken = Callable[[dict], list]  # a case -> (hint, output) of the known mistakes

# ------------------------------------------------------------------------------------------------ comparing two outputs

RATE = "The rate is grpo.learning_rate_at of the share of all steps that is done with this one: never 0, in the end 1."
DRAWN = (
    "Other responses. Compare, in this order: the seed, seed_for(cfg, 'rollout', step); the templates, "
    "state.templates; what sample_groups does; the updates before. " + RATE
)
# The first figure in which an answer differs says most about what was left out. Of a run:
FIGURES = {
    "hard_set": "state.hard holds the ids of this epoch's hard questions, bare and templated ones: what mine_hard "
    "finds in all rollouts of each batch; emptied at the epoch's first batch, no question twice.",
    "hard": "state.hard holds the ids of this epoch's hard questions, in the order they were found in, none twice.",
    "templated": "Hard questions are sampled under state.templates, which each epoch's first batch replaces: by what "
    "evolve_templates gives, or by {} for GRPO.",
    "gepa_calls": "Templates are evolved at an epoch's first batch, on last epoch's hard questions, for P2O only.",
    "metric_calls": "Another search: evolve_templates gets last epoch's hard questions (those that by_id has) in the "
    "order of state.hard, and `epoch` as it is, from 0.",
    "masked": "grpo.score_old finds old log-probs and token weights: once, before the first update of a batch.",
    "old_logprobs": "grpo.score_old comes once, before the first update: what was distilled needs its bare log-probs.",
    "token_weight": "grpo.score_old weighs the tokens of what was distilled, before the first update.",
    "approx_kl": "The policy moves otherwise within a batch: grpo.score_old(policy, updates, cfg) comes once, with all "
    "updates of the batch, before the first one. " + RATE,
    "clip_fraction": "The second update of a batch is off-policy: grpo.score_old comes once, before the first one.",
    "loss": "Each update is one call of grpo.update_policy with this update and this rate. " + RATE,
    "grad_norm": "Each update is one call of grpo.update_policy with this update and this rate. " + RATE,
    "entropy": "Same texts, other probabilities: the weights differ since the update before. " + RATE,
    "calls": "Something ran more or less often: a batch is sampled once, with sample_groups.",
    "reward": DRAWN,
    "tokens": DRAWN,
    "kind": "A line of another kind. If 'evolution' was expected: evolve_templates was not called at the epoch's first "
    "batch, or got no hard questions (empty state.hard behind it). If it came unasked: cfg.method was not asked. "
    "Else a given line of train is changed.",
    "epoch": "The epochs are not as they were logged by the given lines of train: is one of them changed?",
    "transcripts": "Each step has its own seed, and its hard questions their templates.",
}
# What an exception may come from, behind the case's hint.
NONES = {
    "grade_batch": " (Without `questions`, None, every question is ''.)",
    "assign_templates": " (cfg=None means EvolutionConfig().)",
    "policy_loss": " (token_weight and update_size may be None.)",
}
# What is wrong before any check is asked.
NO_CHECK_IS_ASKED = {
    r"(Syntax|Indentation|Tab)Error": "Python cannot read a file. Its functions have no points before that is mended.",
    r"AttributeError: module '\w+' has no attribute": "adapters.py calls a function of that name. Did you rename it? "
    "Then change the adapter.",
}
SHAPES = {
    "group_advantages": "The result is flat, [B], as the rewards are.",
    "aggregate": "The result is a scalar.",
    "policy_loss": "The loss is a scalar, each metric a float.",
    "log_importance_ratio": "The result is [B, T].",
    "surrogate": "The result is [B, T].",
    "template_ratio_weight": "The result is [B, T], of floats.",
    "token_logprobs": "The result is [B, T], and T the length of the longest response.",
    "assign_templates": "The result is {question id: its G templates}, and a template is a string.",
    "grade_batch": "A Grade for each response: `correct` and `well_formed` are bools, `reward` is a float.",
}
# A function that stands on others of its part: mend these first.
STANDS_ON = {"policy_loss": ("aggregate", "log_importance_ratio", "surrogate"), "train": ("mine_hard", "sample_groups")}
# Checks that go from the simple to the difficult: what the first one shows, those behind it show again.
FIRST_THINGS_FIRST = (
    "group_advantages", "policy_loss", "template_ratio_weight", "token_logprobs", "assign_templates", "sample_groups",
)  # fmt: skip
AS_A_METRIC = (
    "A float (.item()): the token mean under the mask, without token weights, over the update's tokens (pass "
    "update_size on)."
)
FIGURES_OF = {
    "train": FIGURES,
    "policy_loss": {
        "gradient": "The loss is right, its gradient is not: something between the log-probs and the loss is detached.",
        "clip_fraction": "clip_fraction counts where the clipped loss is strictly larger: a tie is no clip. "
        + AS_A_METRIC,
        "approx_kl": "approx_kl is minus the log ratio that `ratio` returned. " + AS_A_METRIC,
        "dual_clip_fraction": "dual_clip_fraction counts where A < 0 and the larger loss is above -A c. " + AS_A_METRIC,
    },
    "token_logprobs": {
        "gradients": "The log-probs are right, the gradients are not: no detach, no_grad or item() on the way.",
        "without gradients": "Right with gradients, wrong under torch.no_grad(): both must give the same numbers.",
    },
    "grade_batch": {
        "extracted": "`extracted` is what stands in the last box that counts, without \\boxed{}; None without a box.",
        "well_formed": "`well_formed` is true for exactly one box that counts, whatever is in it.",
        "reward": "`reward` is 1.0 for a right last box that is the only one, and 0.0 for everything else.",
    },
    "assign_templates": {
        "pools": "Wrong pool, or one that is not drawn from at random: a dev question draws from the chosen templates "
        "with a score above 0 on it, from all chosen ones if there is none; a train question from all chosen. Both "
        "kinds of questions get templates.",
        "questions": "Each question of dev_ids and of train_ids gets templates, those that nothing solves, too.",
        "templates of each": "G templates for each question, with either option, too.",
        "one more": "A question too many: those of dev_ids and train_ids get templates, and none does without a cover.",
        "same again": "The same rng state must give the same draws: draw from `rng` and from nothing else.",
        "train questions differ": "Each question has draws of its own, with cfg.one_template_per_group, too: draw anew "
        "for the next question.",
        "others": "Another rng gives other draws: draw from `rng`, not in turn, nor from a generator of your own.",
        "shares": "Right pools, wrong shares: rng.choices, with evolution.weights of the pool's members.",
        "groups of one template": "G draws for each question, one for each rollout, and anew for the next question; a "
        "single one for a whole group with cfg.one_template_per_group only.",
    },
    "sample_groups": {
        "question_id": "G rollouts of each question, group by group, in the order of the questions.",
        "template": "The template of rollout i is the i-th of templates[question.id]; without an entry all G are ''.",
        "sampled_context": "Sampled from grpo.chat_ids(policy, gepa_loop.apply_template(z, question.text)).",
        "trained_context": "Trained is grpo.chat_ids(policy, question.text); without cfg.distill the sampled context.",
        "response_ids": "Right contexts, other responses: one call of grpo.sample for all of them, with seed=seed.",
        "reward": "Those of one call verify.judge_of(cfg.reward)(texts, bare questions, truncated), as they are.",
        "well_formed": "What the verdict says: a Rollout's own default is True.",
        "old_logprobs": "Leave old_logprobs as it is: grpo.score_old fills it in, where it has to.",
        "token_weight": "Leave token_weight as it is: grpo.score_old fills it in, where it has to.",
        "advantage": "Of each group grpo.advantages_of(group, cfg, batch=rollouts, policy=policy, questions=questions)"
        ", when all rollouts are there.",
    },
}


def difference(expected: object, got: object, tolerance: float, closed: bool = False) -> str | None:
    """The first place where they differ, in words, or None. Numbers may differ by the tolerance, absolute or relative.

    `closed`: of what a submission gave, only numbers are shown.

    >>> difference({"loss": [0.5, 1.0]}, {"loss": [0.5, 2.0]}, 1e-5)
    'loss[1]: expected 1, got 2'
    >>> difference({"text": "a"}, {"text": "b"}, 1e-5, closed=True)
    "text: expected 'a', got another str"
    >>> difference([1.0], [1.0 + 1e-7], 1e-5) is None
    True
    """
    gap = first_gap(expected, got, tolerance, "")
    if gap is None:
        return None
    where, wanted, given = gap
    said = shown(given)
    if closed and not isinstance(given, int | float | None | Nothing):
        said = f"another {type(given).__name__}"
    return f"{where or 'output'}: expected {shown(wanted)}, got {said}"


class Nothing:
    """Stands for what one of the two outputs does not have."""

    def __repr__(self) -> str:
        return "nothing"


Gap = tuple[str, object, object]  # where, what was expected there, what was given


def first_gap(expected: object, got: object, tolerance: float, where: str) -> Gap | None:
    if isinstance(expected, dict) and isinstance(got, dict):
        prefix = f"{where} ({expected['kind']})." if "kind" in expected else f"{where}." if where else ""
        for name in expected:
            gap = first_gap(expected[name], got.get(name, Nothing()), tolerance, f"{prefix}{name}")
            if gap:
                return gap
        more = [name for name in got if name not in expected]
        return (f"{prefix}(one more)", Nothing(), more[0]) if more else None
    if isinstance(expected, list) and isinstance(got, list):
        for i, (wanted, given) in enumerate(zip(expected, got, strict=False)):
            gap = first_gap(wanted, given, tolerance, f"{where}[{i}]")
            if gap:
                return gap
        return (f"{where} (how many)", len(expected), len(got)) if len(expected) != len(got) else None
    return None if same(expected, got, tolerance) else (where, expected, got)


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


def numbers_in(value: object) -> list[float]:
    """All numbers of nested lists, in order; none of anything else."""
    if isinstance(value, list):
        return [number for each in value for number in numbers_in(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def is_cut_off(expected: list[float], got: list[float], tolerance: float) -> bool:
    """Is it the right answer, clamped between two bounds?

    >>> is_cut_off([-1.3, 0.4, 2.0], [-1.0, 0.4, 1.0], 1e-5), is_cut_off([-1.3, 0.4, 2.0], [-1.0, 0.3, 1.0], 1e-5)
    (True, False)
    """
    low, high = min(got), max(got)
    clamped = [min(max(wanted, low), high) for wanted in expected]
    return low < high and all(same(wanted, given, tolerance) for wanted, given in zip(clamped, got, strict=True))


def has_holes(expected: list[float], got: list[float], tolerance: float) -> bool:
    """Are some numbers right, and all others 0?

    >>> has_holes([-1.3, -0.4], [-1.3, 0.0], 1e-5), has_holes([-1.3, -0.4], [-1.2, 0.0], 1e-5)
    (True, False)
    """
    wrong = [given for wanted, given in zip(expected, got, strict=True) if not same(wanted, given, tolerance)]
    return 0 < len(wrong) < len(got) and not any(wrong)


# What all wrong numbers have in common says more than the first of them.
IN_COMMON = {
    "group_advantages": (
        is_cut_off,
        "The formula is right, but its result is cut off: an advantage has no bound, neither above nor below.",
    ),
    "token_logprobs": (
        has_holes,
        "Right, but for tokens that are left at 0: each token of a response has its log-prob, the first and the last "
        "one, too. Zeros stand behind a shorter response only.",
    ),
}


def has_another_shape(call: str, message: str) -> bool:
    """Does this difference tell of a list in place of a number, of another length, or of another type?

    >>> [has_another_shape("surrogate", f"[0]: expected 1, got {got}") for got in ("[1.0]", "2")]
    [True, False]
    """
    if "ValueError" in message:
        return False
    # In part 6 lists are pools, and their length is no shape.
    shape = r"expected '.*', got -?\d" if call == "assign_templates" else r"\(how many\)|got \[|expected \["
    kind = r"expected (True|False), got -?\d|expected -?\d\S*, got (True|False)$|got 'Tensor'$"
    return re.search(f"{shape}|{kind}", message) is not None


def hint_of(case: dict, got: object, mistaken: list, message: str) -> str:
    """The known mistake that gives just this answer; else what its shape should be, what all wrong numbers have in
    common, what the first wrong figure says, or the case's own hint."""
    call = case["call"]
    for hint, output in mistaken:
        if difference(output, got, case["tol"]) is None:
            return hint
    if call in SHAPES and has_another_shape(call, message):
        return SHAPES[call]
    if call in IN_COMMON:
        have_it_in_common, hint = IN_COMMON[call]
        wanted, given = (
            numbers_in(value["logprobs"] if isinstance(value, dict) and "logprobs" in value else value)
            for value in (case["expected"], got)
        )
        if given and len(given) == len(wanted) and have_it_in_common(wanted, given, case["tol"]):
            return hint
    # The message begins with the path to the first wrong figure; the last name in it that is known says most.
    figures = FIGURES_OF.get(call, {})
    names = [name.strip() for name in re.split(r"[^a-z_ ]+", message.partition(":")[0])]
    return next((figures[name] for name in reversed(names) if name in figures), case["hint"])


def first_things_first(outcomes: list[dict], named: set[str]) -> list[dict]:
    """The outcomes, with hints to what has to be mended first, where no known mistake is named."""
    failed_calls = {o["call"] for o in outcomes if not o["passed"] and o["hint"]}
    seen: dict[str, str] = {}  # call -> its first check that failed
    for o in outcomes:
        if o["passed"] or not o["hint"] or o["hint"] in named:
            continue
        below = [call for call in STANDS_ON.get(o["call"], ()) if call in failed_calls]
        first = seen.setdefault(o["call"], o["name"])
        if below:
            o["hint"] = f"{o['call']} stands on {' and '.join(below)}: mend that first."
        elif o["call"] in FIRST_THINGS_FIRST and first != o["name"]:
            o["hint"] = f'Mend "{first}" first, which is the simpler check.'
    return outcomes


# ------------------------------------------------------------------------------------------------------------ grading


class Grader:
    """Cases with their answers, and a process to ask submissions."""

    def __init__(self, process: Process, cases: list[dict], mistaken: Mistaken, below: Path | None):
        """`below`: the folder of the modules that part 8 stands on; None for the submission's own."""
        self.process, self.cases, self.mistaken, self.below = process, cases, mistaken, below

    def grade(self, folder: Path, parts: tuple[int, ...] | None = None, limit: int | None = None) -> dict:
        """{part: outcomes of its checks}"""
        return {part: self.outcomes(folder, part, limit) for part in parts or tuple(PARTS)}

    def outcomes(self, folder: Path, part: int, limit: int | None = None) -> list[dict]:
        """The outcome of each check of a part; a process that has died ends them."""
        limit = limit or (RUN_LIMIT if part == 8 else LIMIT)
        below = self.below if part == 8 else None
        files = {
            name: (folder / name).read_text("utf-8", "replace") for name in SUBMITTED if not (below and name in BELOW)
        }
        cases = [case for case in self.cases if case["part"] == part]
        replies, started = [], time.monotonic()
        for reply in self.process.replies(self.process.folder(files), cases, limit, below):
            replies.append((reply, time.monotonic() - started))
            started = time.monotonic()
        # Not before they all are there: a diagnosis asks the same process.
        possible = self.possible_mistakes([(case, reply) for case, (reply, _) in zip(cases, replies, strict=False)])
        outcomes = [
            self.outcome(case, reply, possible[case["name"]]) | {"seconds": seconds}
            for case, (reply, seconds) in zip(cases, replies, strict=False)
        ]
        # Checks that a process did not live to see are lost, too.
        outcomes += [self.outcome(case, {"died": NOT_ASKED}) | {"seconds": 0.0} for case in cases[len(outcomes) :]]
        named = {hint for known in possible.values() for hint, _ in known}
        return first_things_first(outcomes, named)

    def possible_mistakes(self, answered: list[tuple[dict, dict]]) -> dict[str, list]:
        """{case's name: its known mistakes} without those that another check of the same function rules out.

        A mistake that explains all answers of a function, the right ones included, is the only one that counts. If none
        does, a mistake is ruled out by a check that it would fail and the submission passes, and if the submission
        gives its answer in no more than half of the checks that it would fail.
        """
        possible: dict[str, list] = {}
        for call in {case["call"] for case, _ in answered}:
            own = [(case, reply.get("output", Nothing())) for case, reply in answered if case["call"] == call]
            wrong = {c["name"] for c, got in own if difference(c["expected"], got, c["tol"]) is not None}
            mistaken = {case["name"]: [] for case, _ in own}
            has_an_answer = any(c["name"] in wrong and not isinstance(got, Nothing) for c, got in own)
            for case in [case for case, _ in own if has_an_answer]:
                known = self.mistaken(case)
                mistaken[case["name"]] = [m for m in known if difference(case["expected"], m[1], case["tol"])]
            hints = {hint for known in mistaken.values() for hint, _ in known}
            changes = {hint: {name for name in mistaken if hint in dict(mistaken[name])} for hint in hints}

            def explained(hint, own=own, mistaken=mistaken) -> set[str]:
                answers = ((c, got, dict(mistaken[c["name"]]).get(hint, c["expected"])) for c, got in own)
                return {c["name"] for c, got, answer in answers if difference(answer, got, c["tol"]) is None}

            left = {hint for hint in hints if changes[hint] <= wrong}
            left = {hint for hint in left if 2 * len(explained(hint) & changes[hint]) > len(changes[hint])}
            left = {hint for hint in left if len(explained(hint)) == len(own)} or left
            for name, known in mistaken.items():
                possible[name] = [(hint, output) for hint, output in known if hint in left]
        return possible

    def outcome(self, case: dict, reply: dict, mistaken: list | None = None) -> dict:
        """`mistaken`: the known mistakes that may be named; all by default."""
        closed = bool(self.below) and case["part"] == 8
        outcome = {"name": case["name"], "call": case["call"], "passed": False, "hint": "", "traceback": ""}
        if "unwritten" in reply:
            hole = re.search(r"hole \d of \d$", str(reply["unwritten"]))  # nothing else that a submission says
            return outcome | {"message": f"{UNWRITTEN} ({hole[0]})" if hole else UNWRITTEN}
        if reply.get("died") == NOT_ASKED:
            return outcome | {"message": NOT_ASKED}
        if "died" in reply:
            hint = f"Does a loop never end? Does your code call exit()? The check asks: {case['hint']}"
            return outcome | {"message": reply["died"], "hint": hint}
        if "output" not in reply:
            trace = str(reply.get("traceback", ""))[-MOST_OF_A_TRACEBACK:]
            error = str(reply.get("error", "no output"))[:MOST_OF_A_MESSAGE]
            if closed:
                error, trace = where_it_failed(error, trace), ""
            if error.startswith(("ValueChanged: ", "NoGradient: ")):  # by calls.py: the message is the hint
                return outcome | {"message": error, "hint": error.partition(": ")[2], "traceback": trace}
            before = next((said for pattern, said in NO_CHECK_IS_ASKED.items() if re.match(pattern, error)), None)
            if before:
                return outcome | {"message": error, "hint": before, "traceback": trace}
            if error.startswith("WrongKind: "):
                hint = f"{error.partition(': ')[2]} The check asks: {case['hint']}"
                return outcome | {"message": error, "hint": hint, "traceback": ""}
            hint = f"An exception ended this check, which asks: {case['hint']}{NONES.get(case['call'], '')}"
            return outcome | {"message": error, "hint": hint, "traceback": trace}
        message = difference(case["expected"], reply["output"], case["tol"], closed)
        if message is None:
            return outcome | {"passed": True, "message": ""}
        mistaken = self.mistaken(case) if mistaken is None else mistaken
        return outcome | {"message": message, "hint": hint_of(case, reply["output"], mistaken, message)}


UNWRITTEN = "not written yet"
NOT_ASKED = "not asked: the process had ended before"
MOST_OF_A_MESSAGE, MOST_OF_A_TRACEBACK = 300, 3000  # characters


def where_it_failed(error: str, trace: str) -> str:
    """An exception of part 8 without a word that the submission could have chosen.

    Part 8 stands on the reference's modules. Their files cannot be read there, but a message is a way out.

    >>> where_it_failed("KeyError: 'secret'", '  File "/tmp/x/p2o.py", line 12, in train\\n    secret')
    'KeyError at line 12 of p2o.py'
    """
    name = error.partition(":")[0]
    if name == "ValueChanged":  # by calls.py
        return f"{name}: an input was changed in place, by pop, += or the like: it belongs to the caller"
    known = isinstance(getattr(builtins, name, None), type)
    places = re.findall(r'File "[^"\n]{1,200}/(p2o|adapters)\.py", line ([0-9]{1,5}), in', trace)
    at = f" at line {places[-1][1]} of {places[-1][0]}.py" if places else ""
    return f"{name if known else 'an exception of its own'}{at}"


def open_grader(process: Process) -> Grader:
    """The students' own: cases that were drawn when the folder was made."""
    cases = json.loads(OPEN_CASES.read_text(encoding="utf-8"))
    return Grader(process, cases, lambda case: case["mistaken"], below=None)


def secret_grader(process: Process, seed: int, parts: tuple[int, ...] | None = None) -> Grader:
    """The instructor's: cases under this seed, answered by the reference."""
    from make import Diagnosis, fresh, reference  # a student's folder has none of them

    cases = fresh(process, seed, parts or tuple(PARTS))
    below = process.folder({name: source for name, source in reference().items() if name in BELOW})
    hide(below)
    return Grader(process, cases, Diagnosis(process, cases), below)


def hide(folder: Path) -> None:
    """Only this user reads the files of a folder; others find what it links to."""
    folder.chmod(0o711)
    for name in BELOW:
        (folder / name).chmod(0o600)


# -------------------------------------------------------------------------------------------- points, and where they go

PARTS = {  # part -> (title, {function: points})
    1: ("group advantages", {"group_advantages": 10}),
    2: ("policy loss", {"aggregate": 4, "log_importance_ratio": 1, "surrogate": 4, "policy_loss": 6}),
    3: ("template-ratio weight", {"template_ratio_weight": 10}),
    4: ("log-probs", {"token_logprobs": 15}),
    5: ("greedy cover", {"greedy_cover": 10}),
    6: ("template assignment", {"assign_templates": 10}),
    7: ("reward", {"grade_batch": 10}),
    8: ("the alternating loop", {"mine_hard": 3, "sample_groups": 7, "train": 10}),
}
WORTH = {part: sum(each.values()) for part, (_, each) in PARTS.items()}
HALF = 2 / 3  # share of a function's checks that earns half of its points
Outcomes = dict[int, list[dict]]  # part -> outcomes of its checks


def points_of(checks: list[dict], worth: int) -> int:
    """What a function has earned: all, or half rounded down if at least two thirds of its checks passed, or nothing.

    >>> [points_of([{"passed": n < passed} for n in range(6)], 7) for passed in (6, 5, 4, 3)]
    [7, 3, 3, 0]
    """
    passed = sum(check["passed"] for check in checks)
    if checks and passed == len(checks):
        return worth
    return worth // 2 if checks and passed >= HALF * len(checks) else 0


def by_function(part: int, checks: list[dict]) -> dict[str, tuple[int, int, list[dict]]]:
    """{function: (points, worth, its checks)} of a part."""
    found = {}
    for function, worth in PARTS[part][1].items():
        own = [check for check in checks if check["call"] == function]
        found[function] = (points_of(own, worth), worth, own)
    return found


def points(outcomes: Outcomes) -> dict[int, int]:
    """{part: its points}"""
    return {
        part: sum(earned for earned, _, _ in by_function(part, checks).values()) for part, checks in outcomes.items()
    }


COPY = re.compile(r'File "[^"]*/grading-[^"]*/(\w+\.py)"')  # a submission runs from a copy, which is no more


def report(outcomes: Outcomes, tracebacks: bool = False) -> str:
    """Points for each part, and of each check that failed the numbers and a hint."""
    earned, lines = points(outcomes), []
    for part, checks in outcomes.items():
        title, worth = PARTS[part][0], WORTH[part]
        failed = [check for check in checks if not check["passed"]]
        counted = f"{len(checks) - len(failed)} of {len(checks)} checks"
        lines.append(f"part {part}  {title:<22} {earned[part]:>3} of {worth:<3} ({counted})")
        if failed and all(check["message"].startswith(UNWRITTEN) for check in checks):
            lines.append(f"        {UNWRITTEN}")
            continue
        said = shown_trace = ""
        not_asked = [check for check in failed if check["message"] == NOT_ASKED]
        for check in failed:
            if check in not_asked:
                continue
            lines.append(f"      - {check['call']}, {check['name']}: {check['message'][:200]}")
            hint = "as above" if check["hint"] == said else check["hint"]
            lines += [f"        hint: {hint}"] if hint else []
            said = check["hint"]
            trace = COPY.sub(r'File "\1"', check["traceback"]).splitlines()
            if tracebacks and trace[:-1] != shown_trace:  # the same place again says nothing new
                lines += ["        " + line for line in trace]
            shown_trace = trace[:-1]
        if not_asked:
            lines.append(f"      - {len(not_asked)} more checks {NOT_ASKED}")
    lines.append(f"total   {sum(earned.values()):>26} of {sum(WORTH[part] for part in outcomes)}")
    return "\n".join(lines)


def line(name: str, outcomes: Outcomes | str) -> str:
    """One submission in one line; a string says why there is nothing to grade."""
    if isinstance(outcomes, str):
        return f"{name}: {outcomes}"
    earned = points(outcomes)
    return f"{name}: {sum(earned.values())} points ({' '.join(map(str, earned.values()))})"


def write_csv(graded: dict[str, Outcomes | str], file: Path) -> None:
    """A row for each submission: points of each part, their sum, and why, if nothing could be graded."""
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["submission", *(f"part {part}" for part in PARTS), "total", "note"])
        for name, outcomes in graded.items():
            note, earned = (outcomes, {}) if isinstance(outcomes, str) else ("", points(outcomes))
            writer.writerow([name, *(earned.get(part, 0) for part in PARTS), sum(earned.values()), note])


def write_junit(outcomes: Outcomes | str, file: Path) -> None:
    """A suite for each part, with its points as a property, and a case for each check."""
    suites = ElementTree.Element("testsuites")
    for part, checks in ({} if isinstance(outcomes, str) else outcomes).items():
        title, worth = PARTS[part][0], WORTH[part]
        failures = str(sum(not check["passed"] for check in checks))
        named = {"name": f"part {part}: {title}", "tests": str(len(checks)), "failures": failures}
        suite = ElementTree.SubElement(suites, "testsuite", named)
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("points", points({part: checks})[part]), ("worth", worth)):
            ElementTree.SubElement(properties, "property", name=name, value=str(value))
        for check in checks:
            named = {"classname": f"part{part}.{check['call']}", "name": check["name"]}
            case = ElementTree.SubElement(suite, "testcase", named, time=f"{check['seconds']:.3f}")
            if not check["passed"]:
                failure = ElementTree.SubElement(case, "failure", message=xml_text(check["message"]))
                failure.text = xml_text(f"{check['hint']}\n{check['traceback']}")
    if isinstance(outcomes, str):
        suite = ElementTree.SubElement(suites, "testsuite", name="submission", tests="1", errors="1")
        case = ElementTree.SubElement(suite, "testcase", classname="submission", name="five files")
        ElementTree.SubElement(case, "error", message=xml_text(outcomes))
    ElementTree.ElementTree(suites).write(file, encoding="utf-8", xml_declaration=True)


def write_results(outcomes: Outcomes | str, file: Path) -> None:
    """Gradescope's results.json: a test for each function, with its points. Students see the points and the hints.

    They see no numbers: by asking often enough, they could draw the expected ones out of the grader.
    """
    if isinstance(outcomes, str):
        tests = [{"name": "submission", "score": 0, "max_score": sum(WORTH.values()), "output": outcomes}]
    else:
        tests = []
        for part, checks in outcomes.items():
            for number, (function, (score, worth, own)) in enumerate(by_function(part, checks).items(), start=1):
                failed = [check for check in own if not check["passed"]]
                output = [f"{len(own) - len(failed)} of {len(own)} checks passed"]
                output += [f"- {check['name']}: {check['hint'] or check['message']}" for check in failed[:3]]
                test = {"number": f"{part}.{number}", "name": f"{PARTS[part][0]}: {function}", "score": score}
                tests.append(test | {"max_score": worth, "output": "\n".join(output)})
    tests = [test | {"visibility": "visible"} for test in tests]
    results = {"score": sum(test["score"] for test in tests), "tests": tests, "stdout_visibility": "hidden"}
    file.write_text(json.dumps(results, indent=1), encoding="utf-8")


def xml_text(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


# ------------------------------------------------------------------------------------------------- what was handed in


def pack(folder: Path) -> Path:
    """submission.zip with the five files."""
    file = folder / "submission.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in SUBMITTED:
            archive.write(folder / name, name)
    return file


LARGEST = 1 << 20  # bytes of a file that is handed in


def unpack(file: Path, folder: Path) -> Path:
    """The five files of a submission, and nothing else that may be in the zip. They may stand in a folder in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as archive:
        inside = [path for path in map(PurePosixPath, archive.namelist()) if path.parts[0] != "__MACOSX"]
        places = {path.parent for path in inside if path.name == "p2o.py" and "grader" not in path.parts}
        if len(places) > 1:
            raise OSError(f"{file}: p2o.py stands in several folders of it: {', '.join(sorted(map(str, places)))}")
        place = places.pop() if places else PurePosixPath(".")
        for name in SUBMITTED:
            entry = str(place / name)
            if archive.getinfo(entry).file_size > LARGEST:
                raise OSError(f"{file}: {name} is larger than {LARGEST} bytes")
            (folder / name).write_bytes(archive.read(entry))
    return folder


def submission(path: Path, scratch: Path) -> Path:
    """The folder of what was handed in; an OSError that says what is missing."""
    try:
        folder = unpack(path, scratch) if path.suffix == ".zip" else path
        missing = [name for name in SUBMITTED if not (folder / name).is_file()]
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, or encrypted
        raise OSError(f"{path}: not a submission ({error})") from None
    if missing:
        raise OSError(f"{path}: not a submission, no {', '.join(missing)}; `make grade` writes submission.zip")
    large = [name for name in SUBMITTED if (folder / name).stat().st_size > LARGEST]
    if large:
        raise OSError(f"{path}: {', '.join(large)}: larger than {LARGEST} bytes")
    return folder


def handed_in(folder: Path) -> list[Path]:
    """The zips of a folder and its folders with a p2o.py (clones); empty if it is itself a student's folder."""
    if (folder / "adapters.py").exists() or not folder.is_dir():
        return []
    return sorted([*folder.glob("*.zip"), *(file.parent for file in folder.glob("*/p2o.py"))])


def grade_all(grader: Grader, folder: Path, scratch: Path) -> None:
    """Every submission of a folder, on the same inputs. A bad one has no points and a note, and stops nothing."""
    from make import write_similar

    graded, sources = {}, {}
    for path in handed_in(folder):
        try:
            found = submission(path, scratch / path.stem)
            graded[path.name] = grader.grade(found)
            sources[path.name] = found
        except OSError as error:
            graded[path.name] = str(error)
        write_junit(graded[path.name], folder / f"{path.stem}.xml")
        write_csv(graded, folder / "grades.csv")  # after each one: a class takes long, and may be interrupted
        print(line(path.name, graded[path.name]), flush=True)
    write_similar(sources, ROOT, folder / "similar.csv")
    print(f"{folder / 'grades.csv'} and {folder / 'similar.csv'} written")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a student's folder, a submission.zip, or a folder of them")
    parser.add_argument("--part", type=int, choices=PARTS, help="grade one part only, and show the tracebacks")
    parser.add_argument("--seed", type=int, help="the instructor's: draw the inputs that this seed gives")
    parser.add_argument("--results", type=Path, help="also write Gradescope's results.json there")
    parser.add_argument(
        "--unlocked", action="store_true", help="run submissions although nothing keeps them from this machine's files"
    )
    arguments = parser.parse_args()
    path, parts = arguments.path, (arguments.part,) if arguments.part else tuple(PARTS)
    # A student runs no stranger's code.
    unlocked = arguments.unlocked or OPEN_CASES.exists()
    with tempfile.TemporaryDirectory() as scratch, Process(unlocked) as process:
        try:
            many = bool(handed_in(path))
            folder = path if many else submission(path, Path(scratch) / "one")
            seed = secrets.randbits(48) if arguments.seed is None else arguments.seed
            grader = open_grader(process) if OPEN_CASES.exists() else secret_grader(process, seed, parts)
            if many:
                grade_all(grader, folder, Path(scratch))
                print(f"inputs drawn under --seed {seed}")
                return 0
            outcomes = grader.grade(folder, parts)
        except (OSError, NotLocked) as error:
            print(error, file=sys.stderr)
            if arguments.results:
                write_results(str(error), arguments.results)
            return 2
    print(report(outcomes, tracebacks=bool(arguments.part)))
    if arguments.results:
        write_results(outcomes, arguments.results)
    elif not arguments.part:
        write_junit(outcomes, path.with_suffix(".xml") if folder != path else folder / "grade.xml")
        print(f"{pack(folder)} is what to hand in" if folder == path else "")
    if not OPEN_CASES.exists():
        print(f"inputs drawn under --seed {seed}")
    return 0 if all(check["passed"] for checks in outcomes.values() for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
