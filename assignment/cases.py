"""What is asked of each part: inputs drawn at random under a seed, and what the reference answers to them.

The instructor's grader draws anew each time, under a secret seed, so that nothing can be recorded and given back. For
the students' own grader `make.py` draws once and writes down inputs and answers. Bounds are never symmetric, numbers
never round, sizes never equal: what a mistake changes must show. A case is plain data:

    {"part": 1, "name": "mean only", "call": "group_advantages", "inputs": {...}, "hint": "...", "expected": ...}

`hint` is what to look at when the answer is wrong and no known mistake (mistakes.py) gives just this answer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def draw(seed: int) -> list[dict]:
    """All cases, without their answers.

    >>> cases = draw(1)
    >>> cases == draw(1), cases == draw(2), sorted({case["part"] for case in cases})
    (True, False, [1, 2, 3, 4, 5, 6, 7, 8])
    """
    cases = []
    for part, cases_of in enumerate(PARTS, start=1):
        for name, call, inputs, hint in cases_of(random.Random(f"{seed}/{part}")):
            tolerance = TOLERANCE.get(call, 1e-5)
            cases.append({"part": part, "name": name, "call": call, "inputs": inputs, "hint": hint, "tol": tolerance})
    return cases


def redraw(case: dict, seed: int, attempt: int) -> dict:
    """A training run with other data and another seed, in the place of one in which too little happens."""
    again = {name: inputs for name, _, inputs, _ in runs(random.Random(f"{seed}/8/{attempt}"))}
    return case | {"inputs": again[case["name"]]}


def is_telling(case: dict) -> bool:
    """Does the reference's answer to a run show all that a loop has to do?"""
    run = case["expected"]
    rollouts, updates, epochs = (
        [line for line in run["metrics"] if line["kind"] == kind] for kind in ("rollouts", "update", "epoch")
    )
    has_hard_questions = all(epoch["hard_set"] for epoch in epochs[1:])
    policy_moves_in_a_batch = any(abs(update["approx_kl"]) > 1e-3 for update in updates)
    if case["inputs"]["options"].get("method") == "grpo":
        # --keep drops groups. In the run that is not stopped, the last batch but one of an epoch waits for the last.
        trained, sampled = (sum(line["rollouts"] for line in lines) for lines in (updates, rollouts))
        kinds = "".join(line["kind"][0] for line in run["metrics"])  # r(ollouts), u(pdate), e(poch)
        if case["inputs"].get("stop"):
            shows_its_kind = trained < sampled and bool(run["before"]["states"])
        else:
            shows_its_kind = trained < sampled and re.search("rru+e", kinds) is not None
    else:
        # Some rollouts have templates, and some of their tokens another weight than 1.
        weights = [line.get("token_weight") for line in run["transcripts"]]
        weighed = any(isinstance(weight, list) and min(weight) < 0.99 for weight in weights)
        shows_its_kind = weighed and any(batch["templated"] for batch in rollouts)
    return has_hard_questions and policy_moves_in_a_batch and shows_its_kind


TOLERANCE = {"token_logprobs": 2e-4, "assign_templates": 0.06, "sample_groups": 5e-4, "train": 1e-3}
Case = tuple[str, str, dict, str]  # name, call, inputs, hint


def matrix(rng: random.Random, rows: int, columns: int, low: float, high: float) -> list[list[float]]:
    return [[round(rng.uniform(low, high), 4) for _ in range(columns)] for _ in range(rows)]


# -------------------------------------------------------------------------------------------- part 1: group advantages


def advantages(rng: random.Random) -> Iterator[Case]:
    size = rng.choice([3, 4, 5])
    rewards = [value for row in matrix(rng, size + 2, size, 0, 1) for value in row]
    settings = {"rewards": rewards, "group_size": size, "eps": round(rng.uniform(0.1, 0.4), 3)}
    binary = [float(rng.random() < 0.4) for _ in range(12)]
    call = "group_advantages"
    hint = "The mean and the standard deviation (n - 1) run over the G neighbours that answer one question; eps is "
    hint += "added to the standard deviation."
    yield "scaled", call, settings, hint
    yield "pairs", call, {"rewards": rewards[: 2 * size], "group_size": 2}, hint
    same = "The same formula: rewards of 0 and 1, groups of six, some of them perhaps all 0 or all 1."
    yield "successes and failures", call, {"rewards": binary, "group_size": 6}, same
    undivided = "Without scale_by_std only the division is left out: the mean is subtracted, too."
    yield "mean only", call, settings | {"scale_by_std": False}, undivided
    yield "one question", call, settings | {"rewards": rewards[-size:]}, hint
    below_0 = [round(value - 2, 4) for value in rewards]
    yield "rewards below 0", call, settings | {"rewards": below_0}, hint
    equal = {"rewards": [0.0] * size + [1.0] * size, "group_size": size}
    yield (
        "collapse",
        call,
        equal,
        "Equal rewards have standard deviation 0: eps is added to it, and keeps 0 / 0 from happening.",
    )
    refused = "Rewards that do not make groups of at least two are a ValueError."
    yield "a group of one", call, {"rewards": rewards, "group_size": 1}, refused
    yield "a group of none", call, {"rewards": rewards, "group_size": 0}, refused
    yield "one reward too many", call, {"rewards": rewards[: size + 1], "group_size": size}, refused


# -------------------------------------------------------------------------------------------------- part 2: policy loss

AGGREGATIONS = {  # each with what it is
    "token-mean": "The sum over all response tokens, divided by their number (0 counts as 1).",
    "seq-mean-token-mean": "Each response's sum is divided by its own token count (0 counts as 1), then their sum by "
    "the number of responses: one without tokens counts as a response, with mean 0.",
    "seq-mean-token-sum": "The sum over all response tokens, divided by the number of responses; one without tokens "
    "counts, too.",
    "seq-mean-token-sum-norm": "The sum over all response tokens, divided by the constant length only: that of "
    "update_size, or T, the width of the tensor.",
}


def mask_of(lengths: list[int], width: int) -> list[list[float]]:
    return [[float(t < n) for t in range(width)] for n in lengths]


def losses(rng: random.Random) -> Iterator[Case]:
    masks = {
        "unequal lengths": mask_of([rng.randint(2, 4), 5, 1, 0], 6),
        "one token": mask_of([1, 0], 3),
        "no token": mask_of([0, 0, 0], 2),
    }
    for name, mask in masks.items():
        for aggregation, meaning in AGGREGATIONS.items():
            padded = f"{meaning} Multiply by the mask before you sum."
            values = matrix(rng, len(mask), len(mask[0]), -2, 3)
            inputs = {"per_token": values, "mask": mask, "aggregation": aggregation}
            yield f"{aggregation}, {name}", "aggregate", inputs, padded
            share = f"{meaning} `update_size` = (responses, tokens, constant length) replaces the batch's denominators."
            yield f"{aggregation}, {name}, part of a whole", "aggregate", inputs | {"update_size": [7, 29, 11]}, share
    unknown = {"per_token": [[1.0]], "mask": [[1.0]], "aggregation": "mean"}
    yield "an unknown aggregation", "aggregate", unknown, "An aggregation that you do not know is a ValueError."
    yield from clips(rng)
    yield from whole_losses(rng)


def clips(rng: random.Random) -> Iterator[Case]:
    new, old = matrix(rng, 3, 4, -4, -1), matrix(rng, 3, 4, -4, -1)
    new[0][:2], old[0][:2] = [-1.0, -60.0], [-45.0, -2.0]
    clamp = "log rho = new - old, clamped to +-20."
    inputs = {"logprobs": new, "old_logprobs": old, "mask": mask_of([4, 2, 3], 4)}
    yield "log ratio", "log_importance_ratio", inputs, clamp
    settings = {"clip_low": round(rng.uniform(0.1, 0.3), 3), "clip_high": round(rng.uniform(0.4, 0.6), 3)}
    settings["dual_clip"] = round(rng.uniform(2.2, 3.5), 3)
    ratios = {"log_ratio": matrix(rng, 6, 8, -1.5, 2.5), "advantages": matrix(rng, 6, 8, -2, 2)}
    hint = "rho = exp(log rho). The larger of -A rho and -A clip(rho, 1 - clip_low, 1 + clip_high) counts; where A < 0 "
    hint += "(and only there) it is at most -A c."
    yield "clip and dual clip", "surrogate", ratios | settings, hint
    yield "a late dual clip", "surrogate", ratios | settings | {"dual_clip": 50.0}, hint


def whole_losses(rng: random.Random) -> Iterator[Case]:
    size = 5  # B = T, so that nothing but the right axis gives the right answer
    new, old = matrix(rng, size, size, -3, -0.5), matrix(rng, size, size, -3, -0.5)
    old[1], new[2][0], new[3][1] = list(new[1]), -40.0, -0.1
    old[3][1] = -31.0
    per_response = [round(rng.uniform(0.4, 2), 3) * sign for sign in (1, -1, -1, 1, -1)]
    common = {"logprobs": new, "old_logprobs": old, "advantages": per_response, "mask": mask_of([5, 3, 4, 5, 0], size)}
    settings = {"clip_low": 0.15, "clip_high": round(rng.uniform(0.25, 0.5), 3), "dual_clip": 2.5}
    weights = {"token_weight": matrix(rng, size, size, 0, 3)}
    hint = "Ratio, surrogate (a response's A belongs to each of its own tokens), times token_weight, aggregated with "
    hint += "update_size; metrics are token means under the mask, without weights."
    yield "as it is", "policy_loss", common, hint
    yield (
        "one A for each token",
        "policy_loss",
        common | {"advantages": matrix(rng, size, size, -2, 2)} | settings,
        hint,
    )
    yield "weighted", "policy_loss", common | settings | weights, hint
    for aggregation in AGGREGATIONS:
        inputs = common | settings | weights | {"aggregation": aggregation, "update_size": [9, 31, 13]}
        yield f"weighted, {aggregation}, part of a whole", "policy_loss", inputs, hint
    exact = common | {"old_logprobs": new}
    yield "on policy", "policy_loss", exact, "With new = old the ratio is 1, the loss -A, and no clip is active."
    # Of two equal losses, min may take either one's gradient.
    tie = exact | {"dual_clip": 1.0, "gradient": False}
    yield "a tie at the dual clip", "policy_loss", tie, "A loss of just -A c is not above it: a tie is no dual clip."
    replaced = "`ratio` and `loss` replace log_importance_ratio and surrogate; loss gets logprobs and mask, too."
    yield "another ratio and loss", "policy_loss", common | settings | weights | {"variants": True}, replaced


# ---------------------------------------------------------------------------------------- part 3: template-ratio weight


def weights(rng: random.Random) -> Iterator[Case]:
    bare, templated = matrix(rng, 4, 6, -6, -0.1), matrix(rng, 4, 6, -6, -0.1)
    bare[0] = list(templated[0])  # ratio 1
    shift = rng.uniform(1, 4)
    bare[1][:3] = [templated[1][0] + 24 + shift, templated[1][1] - 24 - shift, templated[1][2] + 3]
    call, both = "template_ratio_weight", {"bare_logprobs": bare, "templated_logprobs": templated}
    rule = "s is bare over templated, exp of a difference. From ratio_min to ratio_max, bounds included, the weight is "
    rule += "1; outside, a hard clip weighs 0, a soft one bound / s, with the nearer bound, ratio_min or ratio_max."
    narrow = {"ratio_min": round(rng.uniform(0.1, 0.3), 3), "ratio_max": round(rng.uniform(3, 6), 3)}
    for soft in (False, True):
        kind = "soft" if soft else "hard"
        yield f"{kind} clip", call, both | narrow | {"soft": soft}, rule
        yield f"{kind} clip, as it is", call, both | {"soft": soft}, rule
        yield f"{kind} clip, bounds at 1 and above", call, both | {"ratio_min": 1.0, "soft": soft}, rule
        yield f"{kind} clip, bounds at 1 and below", call, both | {"ratio_max": 1.0, "soft": soft}, rule
        far = {"ratio_min": 1.2e-9, "ratio_max": 8e8, "soft": soft}  # just beyond exp(-20) and exp(20)
        yield f"{kind} clip, far out", call, both | far, "The difference of log-probs is clamped to +-20 before exp."


# ---------------------------------------------------------------------------------------------------- part 4: log-probs


ONE_SEQUENCE = (
    "One sequence, no padding. Logits divided by the temperature, log-softmax over the vocabulary; the logits at "
    "position p predict token p + 1, so the first token of a response is predicted by its context's last."
)
SEVERAL = (
    "Several sequences. Pad on the right; each row counts its positions from its own context's length, not from the "
    "end; the result is as wide as the longest response, with zeros behind a shorter one."
)


def logprobs(rng: random.Random) -> Iterator[Case]:
    vocabulary = json.loads((ROOT / "tiny" / "united" / "model" / "config.json").read_text())["vocab_size"]

    def ids(lengths: list[int]) -> list[list[int]]:
        return [[rng.randrange(vocabulary) for _ in range(n)] for n in lengths]

    group = ids([6]) * 4
    lengths = {"one response": (ids([7]), [5]), "unequal lengths": (ids([4, 11, 8, 2]), [9, 3, 1, 6])}
    for name, (contexts, responses) in (lengths | {"one question": (group, [2, 7, 1, 4])}).items():
        temperature = round(rng.choice([rng.uniform(0.5, 0.8), rng.uniform(1.3, 1.7)]), 3)
        inputs = {"contexts": contexts, "responses": ids(responses)}
        inputs |= {"seed": rng.randrange(2**31), "temperature": temperature}
        yield name, "token_logprobs", inputs, ONE_SEQUENCE if name == "one response" else SEVERAL
    hint = "Dropout is on. pretrained.set_training_mode(policy.model) comes first: what is trained is what was sampled."
    inputs = inputs | {"responses": ids([3, 5, 4, 2]), "dropout": 0.4}
    yield "a model with dropout", "token_logprobs", inputs, hint


# -------------------------------------------------------------------------------------------- parts 5 and 6: templates


def covers(rng: random.Random) -> Iterator[Case]:
    hint = "dev_scores[k][n] > 0: candidate k solves question n. Each time the candidate (0 included) that adds most "
    hint += (
        "questions which no earlier choice covers, counted anew after each choice, the first on ties; stop when none "
    )
    hint += "adds any. The result: the candidates' indices in the order of choice."
    for number in range(14):
        rows, columns = rng.randint(3, 8), rng.randint(4, 10)
        share = rng.uniform(0.15, 0.6)
        # A --reward may be negative. 0 and below are not solved.
        scores = [
            [rng.choice([0.25, 0.5, 1] if rng.random() < share else [0, 0, -0.5]) for _ in range(columns)]
            for _ in range(rows)
        ]
        yield f"scores {number + 1}", "greedy_cover", {"dev_scores": scores}, hint
    yield "nothing solved", "greedy_cover", {"dev_scores": [[0.0] * 3] * 4}, "Nothing solved, nothing chosen."
    tied = [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    yield "ties", "greedy_cover", {"dev_scores": rng.sample(tied, 5)}, hint


def assignments(rng: random.Random) -> Iterator[Case]:
    # Candidates 0, 2 and 4 are the cover. Candidate 3 solves much and was not chosen. d5 is solved by nothing chosen:
    # its score below 0 (a --reward may be negative) is no success.
    # Some pool has shares that differ by 0.12 or more (the tolerance is half of that) from those of no weights, the
    # number of solved questions, the question's own scores, the first so many weights, or powers of the right ones.
    scores = [[0.2, 1, 0.2, 0.2, 1, 0], [0] * 6, [1, 0, 0, 0, 0.5, 0], [1] * 6, [0.2, 0.2, 0, 0, 0, -0.04]]
    order = rng.sample(range(6), 6)
    names = rng.sample(["Add.", "Double.", "Count.", "Go on.", "Check."], 5)
    dev_scores = [[row[n] * rng.uniform(0.95, 1) for n in order] for row in scores]
    found = {"dev_scores": dev_scores, "candidates": names}
    chosen = rng.choice([[0, 4, 2], [2, 0, 4], [2, 4, 0], [4, 0, 2], [4, 2, 0]])  # not in the candidates' order
    found |= {"chosen": chosen, "dev_ids": [f"d{n}" for n in order], "train_ids": ["t0", "t1"]}
    many = found | {"train_ids": [f"t{n}" for n in range(1000)]}
    none = found | {"chosen": []}
    call, seed = "assign_templates", rng.randrange(2**31)
    pools = "A dev question draws from the chosen templates that solve it, the others from all chosen; by weight."
    each = {"seed": seed, "options": {}}
    yield "pools and weights", call, {"evolution": found, "group_size": 5000} | each, pools
    yield "G draws for each question", call, {"evolution": many, "group_size": 5} | each, "One draw for each rollout."
    for name, options, hint in (
        ("one template per group", ["one_template_per_group"], "With it all G rollouts share one draw."),
        ("leave one bare", ["leave_one_bare"], "With it the last of the G templates is the empty one."),
        ("both options", ["one_template_per_group", "leave_one_bare"], "One draw, and the last of the G is empty."),
    ):
        inputs = {"evolution": many, "group_size": 5, "seed": seed, "options": dict.fromkeys(options, True)}
        yield name, call, inputs, hint
    nothing = {"evolution": many, "group_size": 5, "seed": seed, "options": None}
    yield "no cfg", call, nothing, "cfg=None means EvolutionConfig(): neither option is on."
    yield "no cover", call, {"evolution": none, "group_size": 4} | each, "No cover: an empty dictionary."


# ------------------------------------------------------------------------------------------------------- part 7: reward


def rewards(rng: random.Random) -> Iterator[Case]:
    # same_answers decides all of these at once. A pair for sympy would cost each submission the start of a worker.
    a, b, c = rng.sample(range(11, 99), 3)
    name = rng.choice(["Agnes", "Carla", "Evelyn", "Miriam"])
    pairs = {
        "one box": [(rf"so \boxed{{{a}}}.", f"{a}"), (rf"so \boxed{{{b}}}.", f"{a}"), (f"{a}", f"{a}")],
        "several boxes": [
            (rf"\boxed{{{b}}} or \boxed{{{a}}}", f"{a}"),
            (rf"\boxed{{{a}}} or \boxed{{{b}}}", f"{a}"),
            (rf"\boxed{{{a}}}, that is \boxed{{{a}}}", f"{a}"),
            (rf"\boxed{{{a}}} \boxed{{{b}}} \boxed{{{c}}}", f"{b}"),
        ],
        "no box that counts": [(r"\boxed{}", f"{a}"), (rf"\boxed{{{a}", f"{a}"), ("", f"{a}")],
        "a box in the reference": [
            (rf"\boxed{{{a}}}", rf"\boxed{{{a}}}"),
            (rf"\boxed{{{b}}}", rf"so \boxed{{{b}}}."),
            (rf"\boxed{{{c}}}", rf"{c - 1} + 1 = \boxed{{{c}}}"),
        ],
        "another form": [
            (rf"\boxed{{{a}/{10 * a}}}", "0.1"),
            (rf"\boxed{{{a},000}}", f"{a}000"),
            (rf"\boxed{{\frac{{{b}}}{{100}}}}", f"0.{b}"),
            (rf"\boxed{{{b}.0}}", f"{b}"),
        ],
        "the same answer to other questions": [(rf"\boxed{{{a}}}", f"{x}") for x in (a, b, a, c)],
        "other answers to the same question": [(rf"\boxed{{{x}}}", f"{a}") for x in (b, a, c, a)],
        "not the other way round": [(rf"\boxed{{x+y={a}}}", f"{a}"), (rf"\boxed{{{b * c}}}", rf"{b} \times {c}")],
        "prose": [(rf"\boxed{{the answer is {a}}}", f"{a}"), (rf"\boxed{{{name}}}", rf"it is $\text{{{name}}}$")],
        "thinking": [(rf"<think>\boxed{{{b}}}</think>\boxed{{{a}}}", f"{a}"), (rf"<think>\boxed{{{a}}}", f"{a}")],
    }
    last = "`correct` speaks of the last box alone, whether there is one or several; only `well_formed` counts them."
    own = {
        "several boxes": last,
        "thinking": "What counts is what _after_thinking(response) leaves, for all four fields.",
    }
    own |= {
        "a box in the reference": "Compare with unboxed(reference).",
        "no box that counts": "Without a box: not correct.",
    }
    for name, asked in pairs.items():
        hint = own.get(name, "same_answers gets (answer, reference), in this order; answer i meets reference i.")
        asked = rng.sample(asked, len(asked))
        responses, references = map(list, zip(*asked, strict=True))
        yield name, "grade_batch", {"responses": responses, "references": references}, hint
    # Not shuffled: where those without a box are left out before the comparison, the others must be out of step.
    responses, references = [f"{a}", rf"\boxed{{{b}}}", "", rf"\boxed{{{c}}}"], [f"{a}", f"{b}", f"{c}", f"{a}"]
    out_of_step = "One pair for each response, with the answer '' where there is no box; answer i meets reference i."
    inputs = {"responses": responses, "references": references}
    yield "some without a box", "grade_batch", inputs, out_of_step
    once = "same_answers compares all pairs in one call: what needs sympy goes to its workers as one batch."
    yield "one call for all", "grade_batch", inputs | {"calls": True}, once
    long, short = (rf"\frac{{{n * a}}}{{{n * b}}}" for n in (2, 1))
    asked = [f"Reduce ${long}$.", f"Reduce ${long}$.", rf"Halve $\frac{{{4 * a}}}{{{2 * b}}}$."]
    copied = [rf"\boxed{{{long}}}", rf"\boxed{{{short}}}", rf"\boxed{{{long}}}"]
    inputs = {"responses": copied, "references": [short] * 3, "questions": asked}
    yield "copies", "grade_batch", inputs, "With the question given, what is copied from it is no answer."
    options = f"Which is it? (A) {a} (B) {b} (C) {c}"
    inputs = {"responses": [rf"\boxed{{{b}}}", rf"\boxed{{{a}}}"], "references": ["B", "C"], "questions": [options] * 2}
    lettered = "same_answers(pairs, questions): the questions tell it which option a letter stands for."
    yield "a letter for an option", "grade_batch", inputs, lettered
    formula = f"{a}x+{b}y"
    inputs = {"responses": [rf"\boxed{{{formula}}}"], "references": [rf"So \boxed{{{formula}}}"]}
    inputs |= {"questions": [f"Expand ${formula}$, if you can."]}
    own = "What is the reference itself is not copied: is_copied(answer, unboxed reference, question), in this order."
    yield "a copy that is right", "grade_batch", inputs, own


# ----------------------------------------------------------------------------------------- part 8: the alternating loop


def rows(rng: random.Random, easy: int, hard: int) -> list[dict]:
    """Questions of the tiny world under ids of their own, which is what the graded runs' reward depends on."""
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()
    drawn = rng.sample(lines[:144], hard) + rng.sample(lines[144:], easy)  # the file has the hard ones first
    return [json.loads(line) | {"id": f"q{rng.randrange(10**9)}"} for line in rng.sample(drawn, len(drawn))]


HINTS = ["Add one digit at a time.", "Double and add for every bit.", "", "Write every step."]


def loops(rng: random.Random) -> Iterator[Case]:
    few = [
        [f"q{n}", reward] for n, group in enumerate(((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1))) for reward in group
    ]
    few += [["q5", 0.5], ["q5", 0.25], ["q6", 0.75], ["q6", 0.5]]
    few += [[name, reward] for name, group in (("q7", (-1, 1, 1)), ("q8", (-1, 1, 0))) for reward in group]
    mixed = rng.sample(few, len(few))
    for near in (True, False):
        hint = "One id for each group whose rewards sum to 0, or to at most 1 with cfg.near_hard, in the groups' order."
        hint += " A reward below 0 counts as 0."
        yield f"hard questions, near_hard={near}", "mine_hard", {"rewards": mixed, "options": {"near_hard": near}}, hint
    yield from groups(rng)
    yield from runs(rng)


def groups(rng: random.Random) -> Iterator[Case]:
    asked = [{"id": row["id"], "text": row["question"], "reference": row["answer"]} for row in rows(rng, 1, 3)]
    size = rng.choice([3, 5])
    templates = {q["id"]: [rng.choice(HINTS) for _ in range(size - 1)] + [HINTS[n]] for n, q in enumerate(asked[:2])}
    common = {"questions": asked, "templates": templates, "seed": rng.randrange(2**31)}
    for name, options, hint in (
        ("distilled", {}, "Sampled from T(x, z), trained on x; rewards and advantages are those of the group."),
        ("not distilled", {"distill": False}, "Without cfg.distill what was sampled from is trained."),
        (
            "another reward, mean only",
            {"seams": ["reward"], "scale_by_std": False, "temperature": 1.4, "max_response_tokens": 6},
            "verify.judge_of(cfg.reward) gives the verdicts, grpo.advantages_of(group, cfg) the advantages.",
        ),
        (
            "another advantage",
            {"seams": ["reward", "advantage"]},
            "An advantage may look at the whole batch: advantages_of gets batch=, policy= and questions=, last of all.",
        ),
    ):
        yield f"rollouts, {name}", "sample_groups", common | {"options": {"group_size": size} | options}, hint


def runs(rng: random.Random) -> Iterator[Case]:
    small = {"epochs": 2, "questions_per_batch": 4, "questions_per_update": 3, "max_response_tokens": 24}
    # Hot, so that responses differ. The seam pays equal responses differently: their gradients cancel but for rounding,
    # Adam makes whole steps of that, and a right solution has other figures on another processor.
    small |= {"group_size": 3, "temperature": 2.5, "learning_rate": 0.003, "warmup": 0.9}
    p2o = {"seams": ["reward"], "hard_set_min": 4, "gepa_budget": "60", "gepa_dev_size": 3, "gepa_parents": 2}
    p2o |= {"ratio_min": 0.8, "ratio_max": 1.3, "reflection_tokens": 40, "gepa_minibatch": 2}
    grpo = {"method": "grpo", "seams": ["reward", "select", "keep"], "questions_per_update": 4}
    grpo |= {"hard_set_min": 4, "gepa_budget": "8", "gepa_dev_size": 2}  # a baseline that evolves is to be seen

    def run(**options) -> dict:
        data = {"train": rows(rng, 3, 7), "held_out": rows(rng, 1, 1)}
        return data | {"options": small | {"seed": rng.randrange(10**6)} | options}

    baseline = "The baseline is the same loop without evolution; what --select and --keep ask for is part of it."
    yield "two epochs of GRPO", "train", run(**grpo), baseline
    resumed = "A stopped run goes on from its state: keep nothing outside it, and draw from no generator of your own."
    other = {"questions_per_update": 2, "near_hard": False}
    stopped = run(**grpo | other, aggregation="seq-mean-token-mean") | {"stop": ["keep", 9]}
    # Stopped in the first epoch. The second one has to forget the templates, though no question need be hard for that.
    stopped |= {"old_templates": {row["id"]: ["Write every step."] * 3 for row in stopped["train"]}}
    yield "stopped and resumed", "train", stopped, resumed
    alternating = "Evolution on last epoch's hard questions (without ids that by_id does not have), rollouts under its "
    alternating += "templates, score_old, then the updates."
    alternates = run(**p2o, soft_clip=True, scale_by_std=False)
    alternates |= {"old_templates": {row["id"]: ["Write every step."] * 3 for row in alternates["train"]}}
    yield "two epochs of P2O", "train", alternates, alternating


PARTS = (advantages, losses, weights, logprobs, covers, assignments, rewards, loops)
