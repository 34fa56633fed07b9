"""The functions of the loop that a variant replaces, found by name: --advantage rloo, --loss my_file.py:my_loss."""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import json
import math
import numbers
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from support.errors import FULL, UserError

SEAMS = ("select", "evolve", "mine", "reward", "advantage", "keep", "ratio", "loss")
# Where the run is, which a function may ask for by name: the epoch, from 0, and the share of all batches that are done.
# support/run.py says it at each batch.
NOW = {"epoch": 0, "done": 0.0}
# How many arguments a function of each seam is called with, and what it may ask for by name, beside options. A reward
# is not among them: `checked_rewards` calls it, with a response and its question.
CALLED_WITH = {
    "select": (4, ("policy", "templated")),
    "evolve": (2, ("folder", "respond")),
    "mine": (1, ()),
    "advantage": (1, ("batch", "policy", "questions")),
    "keep": (1, ("policy", "questions")),
    "ratio": (3, ("sampled_logprobs",)),
    "loss": (2, ("logprobs", "mask")),
}
VARIANTS = Path(__file__).resolve().parent.parent / "variants"
BOOLS = ("bool", "torch.bool")  # of NumPy and of torch


def variant(seam: str, cfg, default: Callable | None, **available) -> Callable | None:
    """The function that the option `--SEAM` names, or `default` if it names none.

    A variant declares, after `*` in its signature, only the arguments that it needs: options by their name
    (`max_response_tokens`), or what is `available` where it is called (`policy`). They are filled in here.

    >>> from types import SimpleNamespace
    >>> variant("advantage", SimpleNamespace(advantage=""), default=max)
    <built-in function max>
    """
    function = find(seam, getattr(cfg, seam))
    if function is None:
        return default
    name, known = getattr(cfg, seam), vars(cfg) | NOW | available
    parameters = inspect.signature(function).parameters.values()
    wanted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    filled = functools.partial(function, **{option: known[option] for option in wanted if option in known})
    declared = {p.name for p in parameters}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def called(*inputs, **at_hand):
        # `--loss` is handed more by name than most functions ask for.
        at_hand = {option: value for option, value in at_hand.items() if takes_all or option in declared}
        try:
            given = filled(*inputs, **at_hand)
            if seam in ("select", "keep") and hasattr(given, "__iter__") and not isinstance(given, set | frozenset):
                given = list(given)  # a generator can be read only once; a set has another order in each process
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            # A variant of ours that fails is a bug, whose traceback is wanted; a full disk is nobody's.
            if ":" not in name or getattr(error, "errno", None) in FULL:
                raise
            raise UserError(f"--{seam} {name}: {_told(error, name)}") from error
        return checked(seam, name, given, inputs, at_hand)

    return called


def checked(seam: str, name: str, given, inputs: tuple, at_hand: dict):
    """What a user's function gave. UserError if training would go on with it and do something else than was meant.

    A forgotten `return` gives None, which counts as "no" where yes or no is asked, and a list or a word counts as
    "yes". A question that is selected twice has two groups, and they would become one. One number would stand for every
    token of a batch. A loss that was cut off from the policy's log-probs has no gradient.
    """
    if given is None:
        raise UserError(f"--{seam} {name}: it gave None; does it end with a `return`?")
    if seam == "advantage":
        return checked_advantages(name, given, inputs[0])
    wanted, shape = "", getattr(given, "shape", None)
    if seam == "select":
        asked = [getattr(question, "id", None) for question in given] if isinstance(given, list) else []
        if not asked or len(set(asked)) < len(asked) or not {q.id for q in inputs[0]}.issuperset(asked):
            wanted = "questions of the order in a list, at least one and none twice"
        elif inputs[2] and len(asked) > inputs[2]:
            wanted = f"a batch of at most {inputs[2]} questions"
    elif seam == "evolve" and not is_evolution(given):
        wanted = (
            "a gepa_loop.Evolution: candidates that are texts, parents and dev_scores of each, a finite score for each "
            "of dev_ids, and in chosen numbers of candidates"
        )
    elif seam == "mine" and not isinstance(given, bool | int) and str(getattr(given, "dtype", "")) not in BOOLS:
        wanted = "yes or no: True or False"
    elif seam == "keep" and not (isinstance(given, list) and all(hasattr(r, "trained_context") for r in given)):
        wanted = "a list of rollouts"
    elif seam == "keep":
        check_numbers(name, given)
    elif seam in ("ratio", "loss") and not (isinstance(given, torch.Tensor) and shape == inputs[0].shape):
        wanted = f"a number for each token, [B, T] = {list(inputs[0].shape)}"
    elif seam == "loss" and not given.requires_grad and at_hand.get("logprobs", inputs[0]).requires_grad:
        wanted = "a loss that depends on log_ratio or logprobs, not detached"
    if wanted:
        kind = "a tensor" if isinstance(given, torch.Tensor) else f"no tensor but a {type(given).__name__}"
        what = _shown(given) if shape is None else f"{kind} of shape {list(shape)}"
        raise UserError(f"--{seam} {name}: it gave {what}; what is wanted is {wanted}")
    return given


def is_evolution(given) -> bool:
    """Has it all that assigning templates, the log and the report read, in equal numbers?"""
    try:
        candidates, dev = len(given.candidates), len(given.dev_ids)
        rows = [row for row in given.dev_scores if len(row) == dev > 0 and all(map(is_number, row))]
        numbers_fit = len(given.parents) == len(given.dev_scores) == len(rows) == candidates
        chosen_fit = all(k in range(candidates) for k in given.chosen)
        return numbers_fit and chosen_fit and all(isinstance(text, str) for text in given.candidates)
    except (AttributeError, TypeError):
        return False


def check_numbers(name: str, rollouts: list) -> None:
    """`--keep` may set numbers of a rollout anew, and cut its response: UserError if they no longer fit together."""
    for r in rollouts:
        tokens = len(r.response_ids)
        for field in ("advantage", "token_weight"):
            plain = plain_numbers(getattr(r, field), tokens)
            if plain is None:
                raise UserError(
                    f"--keep {name}: it left {_shown(getattr(r, field))} as the {field} of a rollout of question "
                    f"{r.question_id}; what is wanted is a finite number, or one for each of its {tokens} tokens"
                )
            setattr(r, field, plain)
        for field in ("sampled_logprobs", "old_logprobs"):
            logprobs = getattr(r, field)
            if not tokens or (logprobs is not None and len(logprobs) != tokens):
                raise UserError(
                    f"--keep {name}: it left a rollout of question {r.question_id} with {tokens} response_ids and "
                    f"{len(logprobs or [])} {field}; cut both alike, and leave at least one token"
                )


def is_number(value) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def plain_numbers(value, tokens: int) -> float | list[float] | None:
    """A finite number, or one for each of so many tokens, as Python's own, which JSON can hold; None if it is neither.

    >>> plain_numbers(torch.tensor(0.5), 2), plain_numbers([True, torch.tensor(2)], 2), plain_numbers([1.0], 2)
    (0.5, [1.0, 2.0], None)
    """

    def plain(value):
        return value.tolist() if hasattr(value, "tolist") else value

    value = plain(value)
    if not isinstance(value, list | tuple):
        return float(value) if is_number(value) else None
    each = [plain(number) for number in value]
    return [float(number) for number in each] if len(each) == tokens and all(map(is_number, each)) else None


@functools.cache
def find(seam: str, name: str) -> Callable | None:
    """The function that `--seam name` means: of a file of the user's own (`my_file.py:name`), or of variants/<seam>.py.

    >>> find("loss", "") is None, find("loss", "cispo").__name__
    (True, 'cispo')
    """
    if not name:
        return None
    file, _, function = name.rpartition(":")
    try:
        found = getattr(load_file(Path(file) if file else VARIANTS / f"{seam}.py"), function)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UserError(
            f"--{seam} {name}: no such function ({error}); give a name of variants/{seam}.py, or my_file.py:name"
        ) from error
    except (Exception, SystemExit) as error:  # the file is the user's, and runs when it is loaded
        raise UserError(f"--{seam} {name}: {_told(error, name)}") from error
    if not callable(found):
        raise UserError(f"--{seam} {name}: {function} is no function, it is {_shown(found)}")
    return found


def all_at_once(reward: Callable) -> Callable:
    """Says of a reward that it is a function of lists: (responses, questions) in, a list of (reward, feedback) out.

    For what is slow one by one: tests that run in processes of their own, a judge behind an endpoint, a reward model.
    """
    reward.all_at_once = True
    return reward


def checked_rewards(name: str, responses: list[str], questions: list) -> list[tuple]:
    """(reward, feedback, well formed) that `--reward NAME` gives each response; UserError if it gives none."""
    reward = find("reward", name)
    pairs = list(zip(responses, questions, strict=True))
    if not getattr(reward, "all_at_once", False):
        return [checked_reward(name, _asked(name, reward, *pair), pair[1]) for pair in pairs]
    try:
        given = list(reward(list(responses), list(questions)))
    except Exception as error:
        raise UserError(
            f"--reward {name}: {_told(error, name)}; it was asked about {len(pairs)} responses, as a function of "
            "(responses, questions)"
        ) from error
    if len(given) != len(pairs):
        raise UserError(f"--reward {name}: it gave {len(given)} rewards for {len(pairs)} responses")
    return [checked_reward(name, each, question) for each, question in zip(given, questions, strict=True)]


def _asked(name: str, reward: Callable, response: str, question):
    """What the user's own `reward` says of one response."""
    try:
        return reward(response, question)
    except Exception as error:
        raise UserError(
            f"--reward {name}: {_told(error, name)}; it was asked about the response {_shown(response)} to question "
            f"{question.id}, as a function of (response, question)"
        ) from error


def checked_reward(name: str, given, question) -> tuple[float, str, bool]:
    """(reward, feedback, well formed) from what a reward function gave; UserError if that is none."""
    value, feedback, *formed = given if isinstance(given, tuple | list) and len(given) in (2, 3) else (None, None)
    # A bool counts as a number in Python; as a reward it is a function that forgot its feedback, or how much it pays.
    if not is_number(value) or isinstance(value, bool) or not isinstance(feedback, str):
        raise UserError(
            f"--reward {name}: it gave {_shown(given)} for question {question.id}; what is wanted is "
            "(reward, feedback), a finite number and a text"
        )
    feedback = feedback.encode("utf-8", "replace").decode()  # no half characters: reflection could not read them
    return float(value), feedback, *(bool(flag) for flag in formed or [True])


def checked_advantages(name: str, given, group: list) -> list[float] | list[list[float]]:
    """What the user's own `--advantage` gives a group, as plain numbers; UserError if these are no advantages.

    It may be a list, a tensor or an array: a number for each rollout, or one for each token of each response.
    """
    rows = given.tolist() if hasattr(given, "tolist") else given
    rows = list(rows) if isinstance(rows, list | tuple) else []
    found = [plain_numbers(row, len(r.response_ids)) for row, r in zip(rows, group, strict=False)]
    if len(rows) != len(group) or None in found:
        raise UserError(
            f"--advantage {name}: it gave {_shown(given)} for the {len(group)} rollouts of question "
            f"{group[0].question_id}; what is wanted is a finite number for each, or one for each of its tokens"
        )
    return found


def _shown(value: object) -> str:
    """A value on one line, cut where it gets long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _told(error: Exception, name: str) -> str:
    """What went wrong in a file of the user's, and where: in its innermost line, not in that of a library it called."""
    places = traceback.extract_tb(error.__traceback__)
    file = Path(name.rpartition(":")[0]).resolve()
    place = ([place for place in places if Path(place.filename).resolve() == file] or places)[-1]
    where = "" if place.filename == __file__ else f" ({place.filename}, line {place.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"


@functools.cache
def load_file(file: Path):
    """The module in a Python file, wherever it is; once, so that its functions for several seams share its globals."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MEMORY_AT_FIRST = copy.deepcopy(getattr(module, "MEMORY", {}))  # a second run in this process begins with it
    return module


def _files_with_memory(cfg) -> dict[str, ModuleType]:
    """{seam: the user's file behind it}, of files with a dictionary MEMORY; a file behind several seams stands once."""
    found: dict[str, ModuleType] = {}
    for seam in SEAMS:
        file = getattr(cfg, seam).rpartition(":")[0]  # "" for a variant of ours
        module = load_file(Path(file)) if file else None
        if isinstance(getattr(module, "MEMORY", None), dict) and module not in found.values():
            found[seam] = module
    return found


def memories(cfg) -> dict[str, dict]:
    """{seam: the MEMORY of the user's file behind it}, to be kept. UserError if JSON cannot hold it as it is."""
    found = {seam: module.MEMORY for seam, module in _files_with_memory(cfg).items()}
    for seam, memory in found.items():
        try:
            same = json.loads(json.dumps(memory)) == memory
        except (TypeError, ValueError):
            same = False
        if not same:
            raise UserError(
                f"--{seam} {getattr(cfg, seam)}: MEMORY is kept in checkpoints, as JSON. Its keys must be texts, its "
                "values texts, finite numbers, lists or such dictionaries (dataclasses.asdict makes one of a rollout)"
            )
    return found


def remember(cfg, kept: dict[str, dict]) -> None:
    """Put back what `memories` found then. What is not in it is again as the user's file begins with it."""
    for seam, module in _files_with_memory(cfg).items():
        module.MEMORY.clear()
        module.MEMORY.update(copy.deepcopy(kept.get(seam, module.MEMORY_AT_FIRST)))


def needs(**settings) -> Callable[[Callable], Callable]:
    """Says of a variant that it is itself only beside these settings; `check_variants` refuses it without them."""

    def mark(function: Callable) -> Callable:
        function.needs = settings
        return function

    return mark


def check_variants(cfg) -> None:
    """Every variant that is named exists, can be called, and has beside it what it needs; or UserError, in one line."""
    for seam in SEAMS:
        name = getattr(cfg, seam)
        function = find(seam, name)
        for option, value in getattr(function, "needs", {}).items():
            if getattr(cfg, option) != value:
                raise UserError(f"--{seam} {name} needs {as_option(option, value)}")
        if function and seam in CALLED_WITH:
            check_signature(seam, name, function, cfg)
    memories(cfg)
    try_out_loss(cfg)


def check_signature(seam: str, name: str, function: Callable, cfg) -> None:
    """Can it be called as it will be? `--evolve` is first called after an epoch, which may take hours."""
    inputs, at_hand = CALLED_WITH[seam]
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a function written in C nobody knows
        return
    known = {*vars(cfg), *NOW, *at_hand}
    asked = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in known]
    try:
        inspect.signature(function).bind(*range(inputs), **dict.fromkeys(asked))
    except TypeError as error:
        there = ", ".join([*at_hand, *NOW])
        raise UserError(
            f"--{seam} {name}: {error}; it is called with {inputs} argument{'s' * (inputs > 1)}, and behind `*` it may "
            f"ask for options, by their names with _ for -, and for {there}"
        ) from None


def try_out_loss(cfg) -> None:
    """Call `--ratio` and `--loss` on made-up log-probs: the first update with contrast may come after hours."""
    logprobs = -torch.arange(1.0, 7.0).view(2, 3).requires_grad_()
    old_logprobs, advantages = logprobs.detach() - 0.1, torch.tensor([[1.0], [-1.0]]).expand(2, 3)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    ratio = variant("ratio", cfg, default=lambda new, old, mask: new - old, sampled_logprobs=old_logprobs)
    made_up = {"ratio": ratio(logprobs, old_logprobs, mask)}
    if loss := variant("loss", cfg, default=None):
        clips = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
        made_up["loss"] = loss(made_up["ratio"], advantages, **clips, logprobs=logprobs, mask=mask)
    for seam, values in made_up.items():
        if not values[mask > 0].isfinite().all():
            raise UserError(
                f"--{seam} {getattr(cfg, seam)}: it gave {_shown(values.tolist())} for made-up log-probs from -1 to "
                "-6; what is wanted is a finite number for each token"
            )


def as_option(option: str, value) -> str:
    """How a setting is given on the command line.

    >>> as_option("ratio_mask", False), as_option("aggregation", "seq-mean-token-mean"), as_option("ratio", "")
    ('--no-ratio-mask', '--aggregation seq-mean-token-mean', 'no --ratio beside it')
    """
    flag = option.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}" if value else f"no --{flag} beside it"
