"""Whatever keeps a run alive, behind one object: its folder, checkpoints, journal, log, progress and warnings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from support import checkpoint
from support.data import Question, digest
from support.errors import UserError
from support.log import RunLog, read_lines, start_tracker
from support.pretrained import fingerprint
from support.seams import NOW, SEAMS, memories, remember

RUNS = Path(__file__).resolve().parent.parent / "runs"
PLACES, INPUTS = ("runs", "name"), ("train_data", "eval_data", "model")  # where a run is, and what goes in
GROWING_FILES = ("metrics.jsonl", "transcripts.jsonl", "run.log")  # a checkpoint holds how long they were


def folder_below(runs: str, name: str) -> Path:
    """The folder of that name in `runs`. `--name ..` would put a run's files beside whatever else is there."""
    folder = Path(runs, name)
    if Path(os.path.abspath(runs)) not in Path(os.path.abspath(folder)).parents:
        raise UserError(f"--name {name}: leads out of {runs}; give a name, and another folder with --runs")
    return folder


def seed_for(cfg, *what: object) -> int:
    """A seed of its own for every draw of a run, from the run's seed: so no generator's state has to be kept."""
    return int.from_bytes(hashlib.sha256(repr((cfg.seed, *what)).encode()).digest()[:6])


def seed_libraries(cfg, *what: object) -> None:
    """Seed `random`, NumPy and torch for what a function of the user's own draws from them. Our own code draws nothing.

    They are seeded when the run begins, when a batch begins, and again when its rollouts are there, sampled now or read
    from the disk. So a resumed run gets the draws of the uninterrupted one.
    """
    seed = seed_for(cfg, "libraries", *what) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # the one that np.random.rand() draws from
    torch.manual_seed(seed)


class Run(RunLog):
    """A run's folder, and all that is written there.

    A checkpoint is written between batches. What takes long within one is kept as well: its rollouts until the next
    checkpoint, the calls of a prompt evolution for good. So a run that was stopped at any moment goes on to the same
    end, bit for bit, and samples nothing twice.
    """

    def __init__(self, cfg):
        """Refuse a folder that holds another run, or cannot be written; write nothing yet."""
        super().__init__(cfg)
        self.started, self.earlier_seconds, self.saved = time.time(), 0.0, 0
        try:
            check_folder(cfg)
            check_room(self.folder)
        except OSError as error:  # a name too long for a folder, or a run that this user may not read
            raise not_writable(self.folder, error.strerror) from None
        self.lock = FileLock(self.folder / "lock", is_singleton=True, thread_local=False)
        if cfg.resume:
            self._hold()

    # ------------------------------------------------------------------------------------------ open, resume, save

    def resume(self, state, model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: dict[str, list[Question]]):
        """Open the folder. The newest checkpoint's state, its adapter and optimizer loaded; or `state` as it is.

        `data`: all questions of the run, by what they are for. A resumed run is refused if they have changed.
        """
        self.model, self.optimizer, self.fingerprint = model, optimizer, fingerprint(model)
        self._hold()
        check_folder(self.cfg)  # again: another run may have begun there while this one loaded its model
        self._compare_inputs({name: digest(questions) for name, questions in data.items()})
        self.per_epoch = math.ceil(len(data["training data"]) / self.cfg.questions_per_batch)  # batches, as in the loop
        self.tracker = start_tracker(self.cfg.track, self.folder, dataclasses.asdict(self.cfg))
        found = checkpoint.newest(self.folder / "checkpoints") if self.cfg.resume else None
        remember(self.cfg, found[1].get("memory", {}) if found else {})
        if found is not None:
            state = self._load(*found, kind=type(state))
        else:
            if self.cfg.resume:
                print("no checkpoint to go on from: starting at the beginning")
            for name in GROWING_FILES:
                (self.folder / name).write_text("")
        self._write("inputs.json", self.inputs)
        self._write("config.json", recorded(self.cfg))
        seed_libraries(self.cfg, "begin")  # a --reward may draw for the first measurement, too, before any batch
        return state

    def _hold(self) -> None:
        """Lock the folder until the run is over, or its process: a second run would mix its lines with this one's."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(blocking=False)
        except Timeout:
            cure = "wait for its end, or start another one with --name"
            raise UserError(f"{self.folder}: a run is going on in it; {cure}") from None
        except OSError as error:
            raise not_writable(self.folder, error.strerror) from None

    def _compare_inputs(self, data: dict[str, str]) -> None:
        """Take digests of all that goes in, for inputs.json. UserError if those of a resumed run have changed."""
        file = self.folder / "inputs.json"
        chat = getattr(self.model, "chat_format", "")
        self.inputs = {"base_model": self.fingerprint, "chat": chat, "data": data, "files": files_of(self.cfg)}
        if not self.cfg.resume:
            return
        known = read_record(file)
        before = known.get("data", {})
        names = [name for name in before | data if before.get(name) != data.get(name)]
        changed = [f"other questions in {name}" for name in names]
        edited = known.get("files", {}).items() - self.inputs["files"].items()
        changed += [f"an edited file of --{name.replace('_', '-')}" for name, _ in sorted(edited)]
        if known.get("base_model") != self.fingerprint:
            changed += [f"{self.cfg.model} is another base model"]
        if known.get("chat") != chat:
            changed += [f"{self.cfg.model} has another chat format: its tokenizer, chat template or end tokens"]
        if changed and not self.cfg.allow_changes:
            cure = "Give the same ones, or add --allow-changes, or start a new run with another --name"
            raise UserError(f"--resume: {self.folder} was started on other inputs: {', '.join(changed)}. {cure}")
        if changed:
            print(f"the run was started on other inputs: {', '.join(changed)}")

    def _load(self, folder: Path, record: dict, kind: type):
        try:
            state = kind(**record["state"])
            self.updates, self.bad_updates = record["updates"], record["bad_updates"]
            self.earlier_seconds, self.saved, before = record["seconds"], int(folder.name), record["per_epoch"]
        except (KeyError, TypeError) as error:
            cure = "go on with that version, or start a new run with another --name"
            told = f"{folder} was written by another version of this code ({error})"
            raise UserError(f"--resume: {told}; {cure}") from None
        if record["base_model"] != self.fingerprint:
            raise UserError(f"--resume: the adapter of {folder} belongs to another base model than {self.cfg.model}")
        try:
            checkpoint.load_adapter(self.model, folder / "adapter")
        except RuntimeError:  # other shapes: with --allow-changes the rank may be another one
            cure = f"give the rank in {folder / 'adapter' / 'adapter_config.json'}"
            told = f"the adapter of {folder} does not fit --lora-rank {self.cfg.lora_rank}"
            raise UserError(f"--resume: {told}; {cure}") from None
        checkpoint.load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        for name, length in record["lengths"].items():  # lines written after the checkpoint will be written again
            file = self.folder / name
            present = file.stat().st_size if file.is_file() else 0
            if name == "metrics.jsonl" and present < length:  # the others are only read by people, who may clear them
                told = f"{file} has lost lines that it had when checkpoint {folder.name} was written"
                raise UserError(f"--resume: {told}; put it back as it was, or start a new run with another --name")
            file.touch()
            os.truncate(file, min(present, length))  # a longer length would add zeros
        read_lines(self.folder / "metrics.jsonl")  # damaged, it is told now, and not after an epoch
        if before != self.per_epoch:  # with --allow-changes: else 2 epochs of 1 batch were over after 1 of 2
            state.step = state.step * self.per_epoch // before
            at = f"epoch {state.step // self.per_epoch + 1}, batch {state.step % self.per_epoch + 1}"
            print(f"an epoch had {before} batches, and has {self.per_epoch} now: going on with {at}")
        print(f"resumed from checkpoint {folder.name} of {self.folder}")
        return state

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
            record |= {"updates": self.updates, "bad_updates": self.bad_updates}
            record |= {"seconds": self.seconds, "per_epoch": self.per_epoch}
            record |= {"memory": memories(self.cfg)}
            checkpoint.save(self.folder / "checkpoints", self.saved + 1, record, write_files)
            self.saved += 1
            for journal in self.folder.glob("rollouts-*.json"):
                journal.unlink()
        except OSError as error:
            self.warn(f"checkpoint {self.saved + 1} was not written ({error}); the older ones are as they were")

    def progress(self, steps: range, per_epoch: int) -> Iterator[int]:
        """The steps, with a bar on the screen. At each one, functions of the user's own may ask where the run is."""
        for step in super().progress(steps, per_epoch):
            NOW.update(epoch=step // per_epoch, done=step / steps.stop)
            seed_libraries(self.cfg, step)
            yield step

    def load_rollouts(self, step: int, kind: type) -> list | None:
        """The rollouts (dataclasses `kind`) that a killed run had sampled for this step under the same settings, or
        None."""
        file = self.folder / f"rollouts-{step}.json"
        if not file.exists():
            return None
        record = read_record(file, cure="remove it, and the batch is sampled again")
        if record.get("settings") != self._identity():
            return None
        seed_libraries(self.cfg, step, "sampled")
        remember(self.cfg, record.get("memory", {}))
        return [kind(**fields) for fields in record["made"]]

    def save_rollouts(self, step: int, rollouts: list) -> None:
        """Write the rollouts of a step to disk. The next checkpoint removes them."""
        record = {"settings": self._identity(), "made": [dataclasses.asdict(rollout) for rollout in rollouts]}
        record |= {"memory": memories(self.cfg)}
        checkpoint.write_whole(self.folder / f"rollouts-{step}.json", json.dumps(record))
        seed_libraries(self.cfg, step, "sampled")

    def journal(self, name: str) -> Callable:
        """`wrap(name, call)` of `checkpoint.journaled`, with a file of its own for these settings and inputs."""
        made_under = hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()[:8]
        file = self.folder / f"{name}-{made_under}.journal.jsonl"
        file.parent.mkdir(exist_ok=True)
        return checkpoint.journaled(file)

    def _identity(self) -> dict:
        """Settings and inputs: what has to be the same for what was computed to count."""
        return comparable(recorded(self.cfg)) | self.inputs

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.time() - self.started

    # ----------------------------------------------------------------------------------------------- log and progress

    def finish(self) -> dict:
        """Adapter and summary; returns the summary."""
        checkpoint.save_adapter(self.model, self.folder / "adapter")
        before, *_, last = self.logged("epoch")
        summary = {"method": self.cfg.method, "seed": self.cfg.seed, "accuracy_before": before["accuracy"]}
        summary |= {name: last[name] for name in ("accuracy", "rollouts", "gepa_calls", "hard_set")}
        summary["seconds"] = round(self.seconds, 1)
        self._write("summary.json", summary)
        self.tracker.finish()
        self.lock.release()
        print(f"done in {summary['seconds']:.0f} s: {self.folder}")
        return summary


def recorded(cfg) -> dict:
    """The settings that config.json keeps: everything but how the command was given."""
    return {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("resume", "allow_changes")}


def files_of(cfg) -> dict[str, str]:
    """{option: digest of its file}, of the files of the user's own that options name: edited, they make another run."""
    files = {seam: getattr(cfg, seam).rpartition(":")[0] for seam in SEAMS}  # "" for a variant of ours
    files["reflection_prompt"] = cfg.reflection_prompt
    return {option: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for option, file in files.items() if file}


def comparable(settings: dict, has_digests: bool = True) -> dict:
    """The settings that two runs must have in common to be the same run, as JSON gives them back (lists, not tuples).

    Where the run is does not matter, nor where its inputs and files of the user's own are, if inputs.json has digests
    of what they hold.

    >>> comparable({"name": "a", "reward": "folder/mine.py:f", "advantage": "rloo", "reflection_prompt": "mine.txt"})
    {'reward': ':f', 'advantage': 'rloo', 'reflection_prompt': 'a file'}
    """
    places = PLACES + INPUTS if has_digests else PLACES
    settings = {name: value for name, value in json.loads(json.dumps(settings)).items() if name not in places}
    if not has_digests:
        return settings
    functions = {seam: "".join(settings[seam].rpartition(":")[1:]) for seam in SEAMS if seam in settings}
    prompt = {"reflection_prompt": "a file"} if settings.get("reflection_prompt") else {}
    return settings | functions | prompt


def check_folder(cfg) -> None:
    """UserError where a run would be written over, or resumed under other settings without --allow-changes."""
    file = cfg.folder / "config.json"
    if not file.exists():
        if (cfg.folder / "checkpoints").exists():  # a new run would empty the old one's files
            raise UserError(f"{cfg.folder}: has checkpoints, but no config.json; put it back, or give another --name")
        if cfg.resume:
            raise UserError(f"--resume: {cfg.folder} holds no run; leave --resume away to start one")
        return
    if not cfg.resume:
        raise UserError(f"{cfg.folder}: already holds a run; --resume goes on with it, another --name starts a new one")
    known, present = read_record(file), recorded(cfg)
    has_digests = (cfg.folder / "inputs.json").exists()  # no run of tools/p2o_trl.py has
    before, now = comparable(known, has_digests), comparable(present, has_digests)
    names = [name for name in now if before.get(name) != now[name]]
    changed = [f"{name} ({known.get(name, 'not recorded')} -> {present[name]})" for name in names]
    if changed and not cfg.allow_changes:
        cure = "Give the same ones, or add --allow-changes"
        raise UserError(f"--resume: {cfg.folder} was started with other settings: {', '.join(changed)}. {cure}")


def read_record(file: Path, cure: str = "mend it, or start a new run with another --name") -> dict:
    """A JSON object that the run has written; UserError if it is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"--resume: {file} is damaged ({error}); {cure}") from None
    return record


def check_room(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before the model is loaded; nothing is made here."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not there.is_dir():
        raise not_writable(folder, f"{there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(folder, f"{there} is read-only")


def not_writable(folder: Path, why: str) -> UserError:
    return UserError(f"{folder}: a run cannot be written there ({why}); name another folder with --runs")
