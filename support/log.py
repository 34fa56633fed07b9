"""What a run says: metrics.jsonl, transcripts, the lines on the screen, warnings, and a tracker's copy of all that."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from support import checkpoint
from support.errors import UserError
from support.messages import pieces

SHOWN_TOKENS = 500  # of each transcript come with their log-probs; its whole text is there anyway
MAX_FAMILIES = 24  # a column with more values than that does not sort questions into families
MAX_BAD_UPDATES = 3  # in a row, without a finite gradient
MAX_SMALL_CONTRAST = 0.1  # of the groups, in which rewards differ, but by less than 0.5
MAX_MISMATCH = 0.1  # nats, mean over tokens: 0.03 to 0.05 in bf16 (docs/gpu.md); a single token may exceed 1


class RunLog:
    """The half of a run that says what happens. `Run` (support/run.py) is the other half, which keeps it alive.

    metrics.jsonl has a line for each batch of rollouts, update, evolution and epoch. An epoch's line is made from those
    of its batches, so that a resumed run writes the same one.
    """

    after_epoch: Callable[[], None] | None = None  # set by tools/report.py, which writes the page anew

    def __init__(self, cfg):
        self.cfg, self.folder = cfg, cfg.folder
        self.updates, self.bad_updates = 0, 0
        self.shown: list[tuple] = []  # (rollout, its line of transcripts.jsonl), not written yet
        self.families: dict[str, dict] = {}  # of each held-out file, as it was measured last
        if cfg.track != "none":
            tracker_library(cfg.track)

    def progress(self, steps: range, per_epoch: int) -> Iterator[int]:
        """The steps, with a bar on the screen."""

        def label(step: int) -> str:
            return f"epoch {step // per_epoch + 1}/{steps.stop // per_epoch}"

        first = label(steps.start)
        with tqdm(steps, first, initial=steps.start, total=steps.stop, unit="batch", leave=False) as bar:
            for step in bar:
                if step % per_epoch == 0:  # once an epoch: each time it is set, the bar is drawn again
                    bar.set_description(label(step))
                yield step

    def measuring(self, held_out: dict[str, list]) -> Iterable[tuple[str, list]]:
        """The held-out files, with a bar on the screen: a large model takes minutes for each of them."""
        return tqdm(held_out.items(), "measuring on held-out questions", unit="file", leave=False)

    def _write(self, name: str, record) -> None:
        checkpoint.write_whole(self.folder / name, json.dumps(record, indent=1))

    def note(self, line: str) -> None:
        checkpoint.append(self.folder / "run.log", line + "\n")

    def warn(self, sentence: str, **where) -> None:
        """A sentence that somebody should read: on the screen, and in metrics.jsonl if the disk has room."""
        tqdm.write(f"  WARNING: {sentence}")
        with contextlib.suppress(OSError):
            self.log("warning", text=sentence, **where)

    def log(self, kind: str, **numbers) -> None:
        """One line of metrics.jsonl, and of the tracker. JSON has no NaN: null stands for it."""
        line = {"kind": kind} | numbers
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        checkpoint.append(self.folder / "metrics.jsonl", json.dumps(finite) + "\n")
        self.tracker.log(line, numbers.get("update", 0))

    def logged(self, kind: str, **having) -> list[dict]:
        """The lines of that kind so far, with these values."""
        lines = read_lines(self.folder / "metrics.jsonl")
        return [line for line in lines if line["kind"] == kind and having.items() <= line.items()]

    def log_rollouts(self, epoch: int, groups: list[list], questions: list, mismatch: tuple[float, float]) -> None:
        """A batch in sums, from which the epoch's line is made; some of its rollouts will be transcripts.

        The mean of -log p over the sampled tokens estimates the entropy without bias, and costs nothing. It is that of
        the distributions they were drawn from: under templates, and at the sampling temperature.
        """
        rollouts, by_id = [r for group in groups for r in group], {question.id: question for question in questions}
        self.log(
            "rollouts",
            epoch=epoch,
            rollouts=len(rollouts),
            reward=sum(r.reward for r in rollouts),
            groups=len(groups),
            zero_advantage=sum(not any(r.has_signal for r in group) for group in groups),
            small_contrast=sum(0 < max(r.reward for r in g) - min(r.reward for r in g) < 0.5 for g in groups),
            tokens=sum(len(r.response_ids) for r in rollouts),
            entropy=-sum(sum(r.sampled_logprobs) for r in rollouts),
            templated=sum(bool(r.template) for r in rollouts),
            truncated=sum(r.truncated for r in rollouts),
            ill_formed=sum(not r.well_formed for r in rollouts),
            mismatch=mismatch[0],
            mismatch_max=mismatch[1],
        )
        # The first group is in the batch's first update, where no token can be clipped yet; the last is in its last.
        for r in (r for group in groups[:1] + groups[1:][-1:] for r in group[:3]):
            question = by_id[r.question_id]
            line = {"epoch": epoch, "id": r.question_id, "question": question.text, "reference": question.reference}
            line |= {"template": r.template, "response": r.text, "reward": r.reward, "advantage": r.advantage}
            self.shown.append((r, line))

    def transcripts_among(self, rollouts: list) -> list:
        """The rollouts of these that will be transcripts."""
        return [r for r, _ in self.shown if any(r is other for other in rollouts)]

    def record_tokens(self, rollout, tokenizer, new_logprobs: list[float] | None) -> None:
        """Add to a rollout's transcript its tokens and log-probs, as an update finds them before it trains them.

        sampled_: of the sampler, in the context it saw. old_: of the bare question under the policy that sampled, None
        where nothing had to score them. new_: of the bare question under the policy as earlier updates have left it.
        old - sampled is the log template ratio, new - old the log importance ratio.
        """
        line = next(line for r, line in self.shown if r is rollout)
        line["tokens"] = pieces(tokenizer, rollout.response_ids[:SHOWN_TOKENS])
        line["sampled_logprobs"] = rounded(rollout.sampled_logprobs)
        line["old_logprobs"] = rounded(rollout.old_logprobs)
        line["new_logprobs"] = rounded(new_logprobs)
        line["advantage"] = rounded(rollout.advantage)
        line["token_weight"] = rounded(rollout.token_weight)

    def log_update(self, epoch: int, metrics: dict, rollouts: list) -> None:
        """An update's line. One without a finite gradient was skipped; several of these in a row end the run."""
        self.updates += 1
        self.bad_updates = self.bad_updates + 1 if metrics["skipped"] else 0
        if self.bad_updates:
            sentence = f"update {self.updates}: the loss or gradient is not finite; skipped, no weight has moved"
            self.warn(sentence, epoch=epoch)
        if self.bad_updates >= MAX_BAD_UPDATES:
            self._write("bad-batch.json", [dataclasses.asdict(r) for r in rollouts])
            own = [f"--{seam} {getattr(self.cfg, seam)}" for seam in ("ratio", "loss") if getattr(self.cfg, seam)]
            raise UserError(
                f"{MAX_BAD_UPDATES} updates in a row had no finite loss or gradient; the last batch is in "
                f"{self.folder / 'bad-batch.json'}. A lower --learning-rate is the usual cure"
                + (f", unless the numbers come from {' or '.join(own)}" if own else "")
            )
        reward = statistics.fmean(r.reward for r in rollouts)
        self.log("update", epoch=epoch, update=self.updates, rollouts=len(rollouts), reward=reward, **metrics)

    def log_evolution(self, epoch: int, evolution, assignment: dict[str, list[str]]) -> None:
        """templates/epoch-N.json and a line on the screen. N is the epoch, from 0, that is sampled under them."""
        record = dataclasses.asdict(evolution) | {"weights": evolution.weights, "assignment": assignment}
        self._write(f"templates/epoch-{epoch}.json", record)
        self.log("evolution", epoch=epoch, metric_calls=evolution.metric_calls, chosen=len(evolution.chosen))
        by_each = [share_solved(scores) for scores in evolution.dev_scores]
        templates = [k for k, text in enumerate(evolution.candidates) if text]
        if {*templates} & {*evolution.chosen}:
            found, best = len(templates), max(by_each[k] for k in templates)
            solved = share_solved([max(scores) for scores in zip(*evolution.dev_scores, strict=True)])  # by any of them
            said = f"{found} template{'s' * (found > 1)} found; the best solves {best:.0%} of the dev set, "
            said += f"the {len(evolution.chosen)} chosen {solved:.0%} together"
        else:  # none at all, or none that solves what the empty one, with which the search begins, does not
            best = max(by_each)
            said = f"no template was found that solves more of the dev set than the bare prompt, {best:.0%} greedily"
        early = f" (ended early: {evolution.stopped_early})" if evolution.stopped_early else ""
        tqdm.write(f"  evolution, {evolution.metric_calls} responses: {said}{early}")

    def note_families(self, name: str, questions: list, verdicts: list) -> None:
        """The verdicts on a held-out file, for the next epoch's line: rewards by the questions' columns."""
        self.families[name] = by_column([q.columns for q in questions], [verdict.reward for verdict in verdicts])

    def log_epoch(self, epoch: int, accuracy: dict[str, float], hard: int = 0) -> None:
        """An epoch's line in metrics.jsonl and on the screen. `accuracy`: of each held-out file, bare and greedy."""
        batches, updates = self.logged("rollouts", epoch=epoch), self.logged("update", epoch=epoch)
        line = {"epoch": epoch, "rollouts": sum(batch["rollouts"] for batch in self.logged("rollouts"))}
        line["gepa_calls"] = sum(evolution["metric_calls"] for evolution in self.logged("evolution"))
        text = "before training"
        if batches:
            line |= epoch_means(batches, updates) | {"hard_set": hard}
            text = (
                f"reward {line['reward']:.2f} | zero-advantage groups {line['zero_advantage']:.0%} | "
                f"hard set {hard:3d} | templated {line['templated']:.0%} | tokens masked {line['masked_tokens']:.1%}"
            )
        self.log("epoch", **line, accuracy=accuracy, families=self.families)
        held_out = "  ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
        tqdm.write(f"epoch {epoch}/{self.cfg.epochs} | {text} | held out, bare: {held_out}")
        for warning in silent_failures(line, self.cfg) if batches else []:
            self.warn(warning, epoch=epoch)
        if batches and not updates:
            left = "--keep or --drop-failed-templated has left no rollout to train on"
            self.warn(f"this epoch had no update, so no weight has moved: {left}", epoch=epoch)
        if self.after_epoch:
            self.after_epoch()


def epoch_means(batches: list[dict], updates: list[dict]) -> dict[str, float]:
    """What an epoch's line says, from the sums of its batches and the metrics of its updates."""
    # A batch's line has null where a number was not finite: then neither is the epoch's.
    batches = [{name: math.nan if value is None else value for name, value in batch.items()} for batch in batches]
    sums = {name: sum(batch[name] for batch in batches) for name in batches[0] if name not in ("kind", "epoch")}
    means = {name: sums[name] / sums["rollouts"] for name in ("reward", "templated", "truncated", "ill_formed")}
    means |= {name: sums[name] / sums["groups"] for name in ("zero_advantage", "small_contrast")}
    return means | {
        "masked_tokens": statistics.fmean(update["masked"] or 0.0 for update in updates) if updates else 0.0,
        "response_tokens": sums["tokens"] / sums["rollouts"],
        "entropy": sums["entropy"] / sums["tokens"],
        "logprob_mismatch": sums["mismatch"] / len(batches),
        "logprob_mismatch_max": max(batch["mismatch_max"] for batch in batches),
    }


def share_solved(scores: list[float]) -> float:
    """The share of the dev questions that a template solves; partial credit counts in part.

    A score of the user's own may be below 0, a failure, or above 1, a success.

    >>> share_solved([3.0, -3.0, 0.0, 0.5])
    0.375
    """
    return statistics.fmean(min(max(score, 0.0), 1.0) for score in scores)


def by_column(columns: list[dict[str, str]], rewards: list[float]) -> dict[str, dict[str, list[float]]]:
    """{column: {value: [sum of rewards, number of questions]}}, for every column that has few values.

    >>> by_column([{"family": "clock"}, {"family": "total"}, {"family": "total"}], [1.0, 0.0, 1.0])
    {'family': {'clock': [1.0, 1], 'total': [1.0, 2]}}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row, reward in zip(columns, rewards, strict=True):
        for column, value in row.items():
            rewarded, asked = found.setdefault(column, {}).get(value, [0.0, 0])
            found[column][value] = [rewarded + reward, asked + 1]
    return {column: values for column, values in found.items() if len(values) <= MAX_FAMILIES}


def rounded(values: list[float] | float | None) -> list[float] | float | None:
    """A list of a number for each token, rounded and cut to what is shown; a single number or None as it is."""
    if isinstance(values, list):
        return [round(value, 4) for value in values[:SHOWN_TOKENS]]
    return values


def read_lines(path: Path) -> list[dict]:
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: damaged ({error}); put the file back as it was") from None
    return lines


# --------------------------------------------------------------------------------------------- what goes wrong silently


def silent_failures(line: dict, cfg) -> list[str]:
    """A sentence for each symptom in an epoch's line, with the likely cause. cfg: p2o.Config."""
    warnings = []
    if line["truncated"] == 1 and not cfg.reward:  # a reward of the user's own may not care how a response ends
        warnings.append("every response was cut off: raise --max-response-tokens, or its end token is not known")
    elif line["ill_formed"] == 1:
        warnings.append(
            "no response has exactly one boxed answer: does the prompt ask for \\boxed{} (--question-suffix), and is "
            "it an instruct model with its own chat template?"
        )
    elif line["reward"] == 0 and not cfg.reward:
        warnings.append("every reward is 0: is the reference in the form of the responses? See transcripts.jsonl")
    if line["zero_advantage"] == 1 and not (cfg.method == "p2o" and line["hard_set"] >= cfg.hard_set_min):
        cause = "all solved: harder questions are needed" if line["reward"] > 0.9 else "advantage collapse"
        warnings.append(f"every group has zero advantage ({cause}) and no templates are evolved: nothing is learned")
    if line["small_contrast"] > MAX_SMALL_CONTRAST and cfg.scale_by_std and not cfg.advantage:
        warnings.append(
            f"the rewards of {line['small_contrast']:.0%} of the groups differ by less than 0.5, and dividing by their "
            "standard deviation makes that as much as right against wrong: --no-scale-by-std, or rewards of 0 and 1"
        )
    if not line["logprob_mismatch"] <= MAX_MISMATCH:  # a NaN is no agreement either
        warnings.append(
            f"sampled and trained log-probs differ by {line['logprob_mismatch']:.2f} on average: a stale adapter in "
            "the sampler, or another temperature, top-k or top-p than the trainer's"
        )
    return warnings


# ------------------------------------------------------------------------------------------------------------- trackers

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def tracker_library(kind: str):
    """The tracker's module; UserError if it is not installed. Called before the model is loaded, too."""
    try:
        return importlib.import_module(MODULES[kind])
    except ImportError as error:
        raise UserError(f"--track {kind}: it is not installed; pip install {kind}") from error


def scalars(line: dict) -> dict[str, float]:
    """The numbers of a line, under names that sort.

    >>> scalars({"kind": "epoch", "reward": 0.5, "accuracy": {"hard": 1.0}, "note": "x"})
    {'epoch/reward': 0.5, 'epoch/accuracy/hard': 1.0}
    """
    found = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{line['kind']}/{name}/{key}": v for key, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, int | float):
            found[f"{line['kind']}/{name}"] = value
    return found


def start_tracker(kind: str, folder: Path, config: dict) -> SimpleNamespace:
    """`log(line, update)` and `finish()` of the tracker, or of none."""
    if kind == "none":
        return SimpleNamespace(log=lambda line, update: None, finish=lambda: None)
    module = tracker_library(kind)
    if kind == "tensorboard":
        writer = module.SummaryWriter(str(folder / "tensorboard"))

        def log(line: dict, update: int) -> None:
            for name, value in scalars(line).items():
                writer.add_scalar(name, value, update)
            writer.flush()

        return SimpleNamespace(log=log, finish=writer.close)
    # The update goes along as a value: a resumed run repeats steps, which a tracker's own counter does not allow.
    place = {"dir": str(folder)} if kind == "wandb" else {}
    handle = module.init(project="p2o", name=folder.name, config=config, **place)
    send: Callable[[dict], None] = handle.log
    return SimpleNamespace(log=lambda line, update: send(scalars(line) | {"update": update}), finish=handle.finish)
