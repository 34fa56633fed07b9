"""What the grader may ask of a student's code. This runs in the student's process: inputs and outputs are plain data.

Each function takes the student's `adapters` and the inputs of one call, and returns what came out.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
import zlib
from pathlib import Path
from statistics import fmean
from typing import NamedTuple
from unittest import mock

HERE = Path(__file__).resolve().parent


class UpdateSize(NamedTuple):
    """As grpo.UpdateSize, which a submission might have changed: by place or by name."""

    rollouts: int
    tokens: int
    max_response_tokens: int


def tensors(inputs: dict) -> dict:
    """Lists as tensors, `update_size` as what its annotation says; everything else as it is."""
    import torch

    given = {k: torch.tensor(v) if isinstance(v, list) and k != "update_size" else v for k, v in inputs.items()}
    return given | ({"update_size": UpdateSize(*inputs["update_size"])} if inputs.get("update_size") else {})


# -------------------------------------------------------------------------------------------------------- parts 1 to 3


def called(ask, **inputs):
    """What `ask()` gives. The inputs it is given are the caller's: they must come out as they went in."""
    before = copy.deepcopy(inputs)
    result = ask()
    changed = [name for name, value in before.items() if not is_as_before(value, inputs[name])]
    if changed:
        what = "+=, pop and the like write into what belongs to the caller"
        raise ValueChanged(f"{', '.join(changed)} changed in place: {what}")
    return result


def is_as_before(before, now) -> bool:
    return before.equal(now) if hasattr(before, "equal") else before == now


class ValueChanged(Exception):
    """A function has written into its inputs."""


class WrongKind(Exception):
    """A function gives something of another type than its signature says."""


def numbers_of(function, inputs: dict) -> list:
    """The tensor that a function gives for these tensors, as lists."""
    given = tensors(inputs)
    return numbers(called(lambda: function(**given), **given))


def numbers(result) -> list:
    if not hasattr(result, "tolist"):
        kind = "None (is a `return` missing?)" if result is None else f"a {type(result).__name__}"
        raise WrongKind(f"It gives {kind} where a tensor is wanted.")
    return result.tolist()


def refusing(function, **inputs):
    """What comes out, or that the inputs were refused."""
    try:
        return numbers_of(function, inputs)
    except ValueError:
        return "ValueError"


def group_advantages(student, **inputs):
    return refusing(student.group_advantages, **inputs)


def aggregate(student, **inputs):
    return refusing(student.aggregate, **inputs)


def log_importance_ratio(student, **inputs):
    """Under the mask: what stands behind a response counts nowhere."""
    given = tensors(inputs)
    log_ratio = called(lambda: student.log_importance_ratio(**given), **given)
    numbers(log_ratio)
    return (log_ratio * given["mask"]).tolist()


def surrogate(student, **inputs):
    return numbers_of(student.surrogate, inputs)


def half_ratio(logprobs, old_logprobs, mask):
    """A variant of the ratio that needs all it is given."""
    return (logprobs - old_logprobs) * 0.5 * mask


def odd_loss(log_ratio, advantages, *, clip_low, clip_high, dual_clip, logprobs, mask):
    """A variant of the loss that needs all it is given."""
    # The last term is another for advantages [B, 1].
    per_token = advantages * log_ratio * clip_low + clip_high * dual_clip * logprobs * mask
    return per_token + 0.1 * advantages.sum(dim=1, keepdim=True) * logprobs


def policy_loss(student, variants=False, gradient=True, **inputs):
    """Loss, metrics, and the gradient with respect to the new log-probs, unless it may be one or another (a tie)."""
    inputs = tensors(inputs) | ({"ratio": half_ratio, "loss": odd_loss} if variants else {})
    logprobs = inputs["logprobs"].requires_grad_()
    loss, metrics = called(lambda: student.policy_loss(**inputs), **inputs)
    loss.backward()
    # A metric that is a tensor is shown as its type: the log cannot write it down.
    metrics = {k: v if isinstance(v, int | float) else type(v).__name__ for k, v in metrics.items()}
    return {"loss": loss.item(), "gradient": logprobs.grad.tolist() if gradient else None, "metrics": metrics}


def template_ratio_weight(student, **inputs):
    return numbers_of(student.template_ratio_weight, inputs)


# -------------------------------------------------------------------------------------------------------------- part 4


@functools.cache
def loaded():
    import grpo

    leave_it_to_the_grader()
    return grpo.load_policy(grpo.PolicyConfig())


def leave_it_to_the_grader() -> None:
    """Loading a model compares log-probs with those of the sampler. A student's are graded here, written or not."""
    from support import proofs

    def only_find_the_head(policy, contexts, *_) -> None:
        policy.head = proofs.find_head(policy.model, contexts[-1])

    proofs.prove = only_find_the_head


def tiny_policy(seed: int, **options):
    """The tiny model with an adapter that does something: as it begins, LoRA adds nothing."""
    import torch

    policy, generator = loaded(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable:
            parameter.normal_(0, 0.05, generator=generator)
            parameter.grad = None
    return dataclasses.replace(policy, cfg=dataclasses.replace(policy.cfg, **options))


def token_logprobs(student, contexts, responses, seed, temperature, dropout=0.0):
    """Log-probs with and without gradients, and the size of a gradient at each weight of the adapter."""
    import torch

    policy = tiny_policy(seed, temperature=temperature)
    # As a model with dropout is after an update by other hands: what is trained must be what was sampled.
    layers = [layer for layer in policy.model.modules() if hasattr(layer, "lora_dropout")]
    for layer in layers:
        layer.lora_dropout["default"] = torch.nn.Dropout(dropout)
    policy.model.train()

    def ask():
        return student.token_logprobs(policy, contexts, responses)

    logprobs = called(ask, contexts=contexts, responses=responses)
    numbers(logprobs)
    if logprobs.requires_grad:
        logprobs.square().sum().backward()
    if any(weight.grad is None for weight in policy.trainable):
        raise NoGradient(
            "no gradient reaches the adapter: detach, no_grad, item() or a switched-off adapter is in its way"
        )
    with torch.no_grad():
        measured = ask()
    gradients = [weight.grad.norm().item() for weight in policy.trainable]
    return {"logprobs": logprobs.tolist(), "gradients": gradients, "without gradients": measured.tolist()}


class NoGradient(Exception):
    """Log-probs that train nothing."""


# -------------------------------------------------------------------------------------------------------- parts 5 to 7


def greedy_cover(student, dev_scores):
    chosen = list(called(lambda: student.greedy_cover(dev_scores), dev_scores=dev_scores))
    kinds = sorted({type(k).__name__ for k in chosen if not isinstance(k, int)})
    if kinds:
        raise WrongKind(f"Indices of type {', '.join(kinds)}: a run writes them down as JSON, so make ints of them.")
    return chosen


def assign_templates(student, evolution, group_size, seed, options):
    """Shares of the templates, and whether they depend on the generator that was given, and on nothing else."""
    import gepa_loop

    unused = {"parents": [], "metric_calls": 0, "rejected_replies": 0, "stopped_early": None}
    found = gepa_loop.Evolution(**evolution, **unused)
    cfg = None if options is None else gepa_loop.EvolutionConfig(**options)

    def assigned(evolution, seed):
        random.seed()  # the global generator is none of an assignment's business
        return student.assign_templates(evolution, group_size, random.Random(seed), cfg)

    templates = called(lambda: assigned(found, seed), evolution=found)
    if any(not isinstance(drawn, list | tuple) for drawn in templates.values()):
        kind = type(next(iter(templates.values()))).__name__
        raise WrongKind(f"A question gets a {kind} where a list of G templates is wanted.")
    some = dataclasses.replace(found, train_ids=found.train_ids[:200])  # of 1,000; no two draws of these are alike
    first, again, other = assigned(some, seed), assigned(some, seed), assigned(some, seed + 1)
    chance = {"same again": again == first, "others": other != first}
    # Shares need many draws of each question, in whatever order they are made.
    few = dataclasses.replace(found, train_ids=found.train_ids[:1])
    at_once = 1 if cfg and cfg.one_template_per_group else group_size  # draws of a question in one assignment
    seeds = range(seed, seed + MANY // at_once)
    drawn = [student.assign_templates(few, group_size, random.Random(n), cfg) for n in seeds]
    facts, shares = facts_of(templates), shares_of(drawn)
    # The pools are the cause, shares and equal groups what follows from them.
    pools = {name: sorted(set(share) - {""}) for name, share in shares["shares"].items()}
    return {"pools": pools} | {name: facts.pop(name) for name in list(facts)[:4]} | chance | shares | facts


MANY = 5000  # draws: two shares of so many differ by 0.06 in one case of a hundred million


def facts_of(templates: dict[str, list[str]]) -> dict:
    """What holds of an assignment, however its draws fall."""
    groups = list(templates.values())
    return {
        "questions": len(templates),
        "templates of each": sorted({len(drawn) for drawn in groups}),
        "bare ones of each": sorted({drawn.count("") for drawn in groups}),
        "last one bare": bool(groups) and all(drawn[-1] == "" for drawn in groups),
        "groups of one template": fmean(len(set(drawn)) == 1 for drawn in groups) if groups else 0.0,
        "train questions differ": len({tuple(drawn) for name, drawn in templates.items() if name[0] == "t"}) > 1,
    }


def shares_of(assignments: list[dict[str, list[str]]]) -> dict:
    """How often each question got each template, over several assignments; of the train questions (t...) together.

    >>> shares_of([{"d0": ["a", "b"], "t0": ["a"]}, {"d0": ["b", "b"], "t0": ["a"]}])["shares"]
    {'d0': {'a': 0.25, 'b': 0.75}, 't': {'a': 1.0}}
    """
    pools: dict[str, list[str]] = {}
    for templates in assignments:
        for name, drawn in templates.items():
            pools.setdefault("t" if name[0] == "t" else name, []).extend(drawn)
    shares = {name: {z: drawn.count(z) / len(drawn) for z in sorted(set(drawn))} for name, drawn in pools.items()}
    return {"shares": dict(sorted(shares.items()))}


def grade_batch(student, calls=False, **inputs):
    """The grades, what explains the others first; with `calls`, whether the pairs were compared in one go."""
    comparisons = counted_comparisons() if calls else []
    order = ("extracted", "well_formed", "correct", "reward")
    grades = [dataclasses.asdict(grade) for grade in called(lambda: student.grade_batch(**inputs), **inputs)]
    grades = [{name: grade[name] for name in order} for grade in grades]
    return {"grades": grades, "calls of same_answers": len(comparisons)} if calls else grades


def counted_comparisons() -> list[int]:
    """From here on, the number of pairs of each call of same_answers, wherever it was imported."""
    import sys

    from support.answers import verdicts

    original, comparisons = verdicts.same_answers, []

    def same_answers(pairs, questions=None):
        comparisons.append(len(pairs))
        return original(pairs, questions)

    for module in list(sys.modules.values()):
        if getattr(module, "same_answers", None) is original:
            module.same_answers = same_answers
    return comparisons


# -------------------------------------------------------------------------------------------------------------- part 8


def config(**options):
    import p2o

    seams = {name: f"{HERE / 'calls.py'}:{name}" for name in options.pop("seams", [])}
    return p2o.Config(**options, **seams)


def mine_hard(student, rewards, options):
    """rewards: (question id, reward) of each rollout, in order"""
    import grpo

    empty = {"response_ids": [1], "sampled_logprobs": [0.0], "truncated": False, "text": ""}
    empty |= {"sampled_context": [1], "trained_context": [1]}
    rollouts = [grpo.Rollout(question_id=name, reward=reward, **empty) for name, reward in rewards]
    return list(called(lambda: student.mine_hard(rollouts, config(**options)), rollouts=rollouts))


def sample_groups(student, questions, templates, options, seed):
    """Each field of all rollouts. What explains the others comes first: the first that differs says what is wrong."""
    from support.data import Question

    cfg = config(**options)
    asked = [Question(**question) for question in questions]
    policy = tiny_policy(seed, temperature=cfg.temperature, max_response_tokens=cfg.max_response_tokens)
    given = {"questions": asked, "templates": templates}
    rollouts = called(lambda: student.sample_groups(policy, asked, templates, cfg, seed), **given)
    first = ("question_id", "template", "sampled_context", "trained_context", "response_ids", "reward")
    fields = [dataclasses.asdict(rollout) for rollout in rollouts]
    names = dict.fromkeys([*first, *(fields[0] if fields else [])])
    return {name: [rollout[name] for rollout in fields] for name in names}


def train(student, train, held_out, options, stop=None, old_templates=None):
    """What a run leaves behind. With `stop`, it is stopped there (Ctrl-C at the nth call of a seam) and resumed.

    `old_templates`: those of the state that it is resumed from, as if an epoch before had found them. Without `stop`
    the run begins with them, and with a hard question that the data do not have.
    """
    leave_it_to_the_grader()
    work = Path.cwd()
    for name, rows in (("train", train), ("held_out", held_out)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train_data": str(work / "train.jsonl"), "eval_data": (str(work / "held_out.jsonl"),)}
    options = data | options | {"runs": str(work), "name": "run"}
    (work / "calls.json").write_text(json.dumps({"stop": stop}))
    if not stop:
        import p2o

        begins = {"hard": ["gone"], "templates": old_templates} if old_templates else {}
        with mock.patch.object(p2o, "State", functools.partial(p2o.State, **begins)):
            summary = student.train(config(**options))
        return left_behind(work) | {"summary": summary_of(summary)}
    try:
        student.train(config(**options))
        stopped = {"stopped": "not at all"}
    except KeyboardInterrupt:
        stopped = {"stopped": "by Ctrl-C"}
    stopped |= left_behind(work)
    for file in work.glob("run/checkpoints/*/state.json"):
        record = json.loads(file.read_text())
        record["state"]["templates"] = old_templates
        file.write_text(json.dumps(record))
    summary = student.train(config(**options, resume=True))
    return {"before": stopped} | left_behind(work) | {"summary": summary_of(summary)}


def summary_of(summary: dict) -> dict:
    return {name: value for name, value in summary.items() if name != "seconds"}


def left_behind(work: Path) -> dict:
    """The run's folder as data, and how often each seam was called."""
    run = work / "run"
    states = [json.loads(file.read_text())["state"] for file in sorted(run.glob("checkpoints/*/state.json"))]
    known = ("candidates", "dev_ids", "train_ids", "chosen", "assignment")
    evolutions = [json.loads(file.read_text()) for file in sorted(run.glob("templates/*.json"))]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The first figure that differs says what is wrong, so what a loop decides comes before what follows from it.
    order = ("kind", "epoch", "templated", "rollouts", "approx_kl")
    metrics = [{name: line[name] for name in order if name in line} | line for line in metrics]
    return {
        "metrics": metrics,
        "templates": [{name: found[name] for name in known} for found in evolutions],
        "states": states,
        "transcripts": [json.loads(line) for line in (run / "transcripts.jsonl").read_text().splitlines()],
        "unfinished": sorted(file.name for file in run.glob("rollouts-*.json")),
        "calls": json.loads((work / "calls.json").read_text()),
    }


# ------------------------------------------------------------------------------------------- seams of the graded runs

# What the graded runs put into the seams of the loop, so that everything that a loop has to do shows in its results.
# Each call is counted in a file. The call at which a run is to be stopped raises KeyboardInterrupt, as Ctrl-C does.


def counted(seam: str) -> int:
    """How often this was called, this call included."""
    file = Path("calls.json")  # in the folder where the run works
    calls = json.loads(file.read_text()) if file.exists() else {}
    calls[seam] = calls.get(seam, 0) + 1
    stop = calls.get("stop") == [seam, calls[seam]]
    file.write_text(json.dumps(calls | {"stop": None} if stop else calls))
    if stop:
        raise KeyboardInterrupt
    return calls[seam]


def reward(response: str, question) -> tuple[float, str, bool]:
    """By a digest of the bare question and of how often it was answered so far.

    So groups have contrast whatever the responses say, and the order in which questions are judged does not matter.
    """
    asked = f"{question.id}/{question.text}/{counted(f'reward of {question.id}')}"
    right = zlib.crc32(asked.encode()) % 5 < 2
    return float(right), f"That is {right}.", len(response) % 3 > 0


def advantage(group: list, *, batch: list, policy, questions: list) -> list[float]:
    """Needs all that it may ask for: the rewards of the whole batch, the temperature, the number of questions."""
    per_question = sum(other.reward for other in batch) / len(questions)
    return [rollout.reward - policy.cfg.temperature * per_question for rollout in group]


def select(order: list, history: dict, count: int, rng) -> list:
    """Those that were solved least often so far, again and again."""
    counted("select")
    return sorted(order, key=lambda question: sum(history.get(question.id, [0.75])))[:count]


def keep(group: list) -> list:
    """Groups with contrast only."""
    counted("keep")
    return [rollout for rollout in group if rollout.has_signal]


CALLS = {
    function.__name__: function
    for function in (
        group_advantages, aggregate, log_importance_ratio, surrogate, policy_loss, template_ratio_weight,
        token_logprobs, greedy_cover, assign_templates, grade_batch, mine_hard, sample_groups, train,
    )
}  # fmt: skip
