"""Whatever keeps a run alive, behind one object: its folder, checkpoints, journal, log, progress and warnings."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from support import checkpoint, track
from support.data import Question, digest
from support.errors import UserError
from support.pretrained import fingerprint
from support.vital_signs import MAX_BAD_UPDATES, silent_failures

RUNS = Path(__file__).resolve().parent.parent / "runs"
SHOWN_TOKENS = 500  # of each transcript come with their log-probs; its whole text is there anyway
MAX_FAMILIES = 24  # a column with more values than that does not sort questions into families
# Where a run and its inputs are is no part of what it computes. What the inputs hold is, and that is in inputs.json.
PLACES, INPUTS = ("runs", "name"), ("train_data", "eval_data", "model")
GROWING_FILES = ("metrics.jsonl", "transcripts.jsonl", "run.log")  # a checkpoint holds how long they were


def seed_for(cfg, *what: object) -> int:
    """A seed of its own for every draw of a run, from the run's seed: so no generator's state has to be kept."""
    return int.from_bytes(hashlib.sha256(repr((cfg.seed, *what)).encode()).digest()[:6])


class Run:
    """A run's folder, and all that is written there.

    A checkpoint falls between batches. Whatever is dear in between (a batch of rollouts, the calls of a prompt
    evolution) is kept in a journal until the next one, so that a run that was killed or stopped at any moment goes on
    to the same end, bit for bit, and samples nothing twice.
    """

    def __init__(self, cfg):
        """Look, but touch nothing: no run is written over, nor resumed under other settings without being asked."""
        self.cfg, self.folder, self.started = cfg, cfg.folder, time.time()
        self.earlier_seconds, self.saved, self.updates, self.bad_updates = 0.0, 0, 0, 0
        self.shown: list[tuple] = []  # (rollout, its line of transcripts.jsonl), not written yet
        self.families: dict[str, dict] = {}  # of each held-out file, as it was measured last
        check_folder(cfg)
        check_room(self.folder)
        self.lock = FileLock(self.folder / "lock", is_singleton=True, thread_local=False)
        if cfg.resume:
            self._hold()
        if cfg.track != "none":
            track.library(cfg.track)

    # ------------------------------------------------------------------------------------------ open, resume, save

    def resume(
        self,
        state,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: dict[str, list[Question]] | None = None,
    ):
        """Open the folder. The newest checkpoint's state, its adapter and optimizer loaded; or `state` as it is.

        `data`: all questions of the run, by what they are for. A resumed run is refused if they have changed.
        """
        self.model, self.optimizer, self.fingerprint = model, optimizer, fingerprint(model)
        self._hold()
        check_folder(self.cfg)  # again: another run may have begun there while this one loaded its model
        self._compare_inputs({name: digest(questions) for name, questions in (data or {}).items()})
        self.tracker = track.start(self.cfg.track, self.folder, dataclasses.asdict(self.cfg))
        found = checkpoint.newest(self.folder / "checkpoints", print) if self.cfg.resume else None
        if found is not None:
            state = self._load(*found, kind=type(state))
        else:
            if self.cfg.resume:
                print("no checkpoint to go on from: starting at the beginning")
            for name in GROWING_FILES:
                (self.folder / name).write_text("")
        self._write("inputs.json", self.inputs)
        self._write("config.json", recorded(self.cfg))
        return state

    def _hold(self) -> None:
        """Lock the folder until the run is over, or its process: a second run would mix its lines with this one's."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{self.folder}: a run is going on in it; wait for its end, or start another one with --name"
            ) from None
        except OSError as error:
            raise not_writable(self.folder, error.strerror) from None

    def _compare_inputs(self, data: dict[str, str]) -> None:
        """A digest of all that goes in, which is kept beside the run; a resumed run is refused if it has changed."""
        file, self.inputs = self.folder / "inputs.json", {"base_model": self.fingerprint, "data": data}
        if self.cfg.resume and file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
            names = [name for name in known["data"] | data if known["data"].get(name) != data.get(name)]
            changed = [f"other questions in {name}" for name in names]
            if known["base_model"] != self.fingerprint:
                changed += [f"{self.cfg.model} is another base model"]
            if changed and not self.cfg.allow_changes:
                raise UserError(
                    f"--resume: {self.folder} was started on other inputs: {', '.join(changed)}. Give the same ones, "
                    "or add --allow-changes, or start a new run with another --name"
                )
            if changed:
                print(f"the run was started on other inputs: {', '.join(changed)}")

    def _load(self, folder: Path, record: dict, kind: type):
        if record["base_model"] != self.fingerprint:
            raise UserError(
                f"--resume: the adapter of {folder} was trained on another base model than {self.cfg.model}"
            )
        checkpoint.load_adapter(self.model, folder / "adapter")
        checkpoint.load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        for name, length in record["lengths"].items():  # lines written after the checkpoint will be written again
            with (self.folder / name).open("r+b") as file:
                file.truncate(length)
        self.earlier_seconds, self.updates, self.saved = record["seconds"], record["updates"], int(folder.name)
        print(f"resumed from checkpoint {folder.name} of {self.folder}")
        return kind(**record["state"])

    def save(self, state) -> None:
        """Everything that the run needs to go on from here. Seeds are derived, so no generator's state is among it."""

        def write_files(folder: Path) -> None:
            checkpoint.save_adapter(self.model, folder / "adapter")
            checkpoint.save_optimizer(self.optimizer, folder / "optimizer.safetensors")

        try:
            lines = "".join(json.dumps(line) + "\n" for _, line in self.shown)
            checkpoint.append(self.folder / "transcripts.jsonl", lines)
            self.shown = []
            lengths = {name: (self.folder / name).stat().st_size for name in GROWING_FILES}
            record = {"state": dataclasses.asdict(state), "lengths": lengths, "base_model": self.fingerprint}
            record |= {"seconds": self.seconds, "updates": self.updates}
            checkpoint.save(self.folder / "checkpoints", self.saved + 1, record, write_files)
            self.saved += 1
            for journal in self.folder.glob("rollouts-*.json"):
                journal.unlink()
        except OSError as error:
            self.warn(f"checkpoint {self.saved + 1} was not written ({error}); the older ones are as they were")

    def load_rollouts(self, step: int, kind: type) -> list | None:
        """The rollouts (dataclasses `kind`) that a killed run had sampled for this step under the same settings, or
        None."""
        file = self.folder / f"rollouts-{step}.json"
        if not file.exists():
            return None
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["settings"] != self._settings():
            return None
        return [kind(**fields) for fields in record["made"]]

    def keep_rollouts(self, step: int, rollouts: list) -> None:
        """Write the rollouts of a step to disk. The next checkpoint removes them."""
        record = {"settings": self._settings(), "made": [dataclasses.asdict(rollout) for rollout in rollouts]}
        checkpoint.write_whole(self.folder / f"rollouts-{step}.json", json.dumps(record))

    def _settings(self) -> dict:
        """The settings as JSON gives them back: tuples are lists."""
        return json.loads(json.dumps(recorded(self.cfg)))

    def journal(self, name: str) -> Callable:
        """`wrap(name, call)` for calls that are to be answered from a file when they come again; see journaled.

        The file's name tells under which settings and on which inputs: under others the calls are others.
        """
        made_under = hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()[:8]
        file = self.folder / f"{name}-{made_under}.journal.jsonl"
        file.parent.mkdir(exist_ok=True)
        return checkpoint.journaled(file)

    def _identity(self) -> dict:
        """Settings and inputs: what has to be the same for what was computed to count."""
        return settings_of(self.cfg, but=PLACES + INPUTS) | self.inputs

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.time() - self.started

    # ----------------------------------------------------------------------------------------------- log and progress

    def progress(self, steps: range, per_epoch: int) -> Iterator[int]:
        """The steps, with a bar on the screen."""
        with tqdm(steps, initial=steps.start, total=steps.stop, unit="batch", leave=False) as bar:
            for step in bar:
                bar.set_description(f"epoch {step // per_epoch + 1}/{steps.stop // per_epoch}")
                yield step

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

        Entropy is estimated by the mean of -log p over the sampled tokens: unbiased for the distributions that they
        were drawn from, with their templates and at the sampling temperature, and it costs nothing.
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

        Log-probs: sampled_ of the sampler, in the context it saw; old_ of the bare question under the policy that
        sampled, None where nothing had to score them; new_ of the bare question under the policy as it is now, after
        the batch's earlier updates. old - sampled is the log template ratio, new - old the log importance ratio.
        """
        line = next(line for r, line in self.shown if r is rollout)
        line["tokens"] = tokenizer.batch_decode([[token] for token in rollout.response_ids[:SHOWN_TOKENS]])
        line["sampled_logprobs"] = rounded(rollout.sampled_logprobs)
        line["old_logprobs"] = rounded(rollout.old_logprobs)
        line["new_logprobs"] = rounded(new_logprobs)
        line["advantage"] = rounded(rollout.advantage)
        line["token_weight"] = rounded(rollout.token_weight)

    def log_update(self, epoch: int, metrics: dict, rollouts: list) -> None:
        """An update's line. Those without a finite gradient are skipped; several in a row end the run."""
        self.updates += 1
        self.bad_updates = self.bad_updates + 1 if metrics["skipped"] else 0
        if self.bad_updates:
            sentence = f"update {self.updates}: the loss or gradient is not finite; skipped, no weight has moved"
            self.warn(sentence, epoch=epoch)
        if self.bad_updates >= MAX_BAD_UPDATES:
            self._write("bad-batch.json", [dataclasses.asdict(r) for r in rollouts])
            raise UserError(
                f"{MAX_BAD_UPDATES} updates in a row had no finite loss or gradient; the last batch is in "
                f"{self.folder / 'bad-batch.json'}. A lower --learning-rate is the usual cure"
            )
        reward = statistics.fmean(r.reward for r in rollouts)
        self.log("update", epoch=epoch, update=self.updates, rollouts=len(rollouts), reward=reward, **metrics)

    def log_evolution(self, epoch: int, evolution, assignment: dict[str, list[str]]) -> None:
        """templates/epoch-N.json and a line on the screen, N being the epoch that is sampled under the templates."""
        record = dataclasses.asdict(evolution) | {"weights": evolution.weights, "assignment": assignment}
        self._write(f"templates/epoch-{epoch}.json", record)
        self.log("evolution", epoch=epoch, metric_calls=evolution.metric_calls, chosen=len(evolution.chosen))
        found, solved = (
            len(evolution.candidates) - 1,
            statistics.fmean(map(max, zip(*evolution.dev_scores, strict=True))),
        )
        best = max(map(statistics.fmean, evolution.dev_scores))
        if not found:
            said = f"no template was found; the bare prompt solves {best:.0%} of the dev set by greedy decoding"
        else:
            said = f"{found} templates found; the best solves {best:.0%} of the dev set, "
            said += f"the {len(evolution.chosen)} chosen {solved:.0%} together"
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

    def finish(self) -> dict:
        """Adapter and summary; returns the summary."""
        checkpoint.save_adapter(self.model, self.folder / "adapter")
        epochs = self.logged("epoch")
        summary = {
            "method": self.cfg.method,
            "seed": self.cfg.seed,
            "accuracy_before": epochs[0]["accuracy"],
            "accuracy": epochs[-1]["accuracy"],
            "rollouts": epochs[-1]["rollouts"],
            "gepa_calls": epochs[-1]["gepa_calls"],
            "hard_set": epochs[-1]["hard_set"],
            "seconds": round(self.seconds, 1),
        }
        self._write("summary.json", summary)
        self.tracker.finish()
        self.lock.release()
        print(f"done in {summary['seconds']:.0f} s: {self.folder}")
        return summary

    def _write(self, name: str, record) -> None:
        checkpoint.write_whole(self.folder / name, json.dumps(record, indent=1))


def recorded(cfg) -> dict:
    """The settings that config.json keeps: everything but how the command was given."""
    return {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("resume", "allow_changes")}


def settings_of(cfg, but: tuple[str, ...]) -> dict:
    """The recorded settings as JSON gives them back (lists, not tuples), without some of them."""
    settings = json.loads(json.dumps(recorded(cfg)))
    return {name: value for name, value in settings.items() if name not in but}


def check_folder(cfg) -> None:
    """No run is written over, nor resumed under other settings without being asked."""
    file = cfg.folder / "config.json"
    if not file.exists():
        if cfg.resume:
            raise UserError(f"--resume: {cfg.folder} holds no run; leave --resume away to start one")
        return
    if not cfg.resume:
        raise UserError(f"{cfg.folder}: already holds a run; --resume goes on with it, another --name starts a new one")
    known = json.loads(file.read_text(encoding="utf-8"))
    # A folder or a data file that was moved is the same as before.
    present = settings_of(cfg, but=PLACES + (INPUTS if (cfg.folder / "inputs.json").exists() else ()))
    changed = [f"{name} ({known.get(name)} -> {value})" for name, value in present.items() if known.get(name) != value]
    if changed and not cfg.allow_changes:
        raise UserError(
            f"--resume: {cfg.folder} was started with other settings: {', '.join(changed)}. Give the same ones, or add "
            "--allow-changes"
        )


def check_room(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before the model is loaded; nothing is made here."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not there.is_dir():
        raise not_writable(folder, f"{there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(folder, f"{there} is read-only")


def not_writable(folder: Path, why: str) -> UserError:
    return UserError(f"{folder}: a run cannot be written there ({why}); name another folder with --runs")


def epoch_means(batches: list[dict], updates: list[dict]) -> dict[str, float]:
    """What an epoch's line says, from the sums of its batches and the metrics of its updates."""
    sums = {name: sum(batch[name] for batch in batches) for name in batches[0] if name not in ("kind", "epoch")}
    means = {name: sums[name] / sums["rollouts"] for name in ("reward", "templated", "truncated", "ill_formed")}
    return means | {
        "zero_advantage": sums["zero_advantage"] / sums["groups"],
        "small_contrast": sums["small_contrast"] / sums["groups"],
        "masked_tokens": statistics.fmean(update["masked"] or 0.0 for update in updates) if updates else 0.0,
        "response_tokens": sums["tokens"] / sums["rollouts"],
        "entropy": sums["entropy"] / sums["tokens"],
        "logprob_mismatch": sums["mismatch"] / len(batches),
        "logprob_mismatch_max": max(batch["mismatch_max"] for batch in batches),
    }


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
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
