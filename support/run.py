"""What a run leaves and how it survives: its folder, checkpoints, Ctrl-C, the lines of every epoch, the summary."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

import gepa_loop
import grpo
from support import checkpoint, report
from support.data import Problem
from support.errors import UserError

if TYPE_CHECKING:
    from p2o import Config


@dataclass
class State:
    """Where a run is. With the adapter and the optimizer, all that it needs to go on."""

    epoch: int = 0  # epochs that are done
    stage: str = "policy"  # of the present epoch: "policy", then "evolution"
    position: int = 0  # questions of the present epoch that have been sampled
    update: int = 0  # optimizer steps so far
    pending: list[grpo.Rollout] = field(default_factory=list)  # sampled, not yet trained on
    hard: list[str] = field(default_factory=list)  # ids of the present epoch's hard questions
    templates: dict[str, list[str]] = field(default_factory=dict)  # hard question id -> its G templates
    skipped: int = 0  # updates in a row without a finite gradient
    saved: int = 0  # checkpoints so far
    seconds: float = 0.0  # of earlier, interrupted sessions
    rollouts: int = 0  # sampled for training so far
    gepa_calls: int = 0  # responses that GEPA spent so far
    sums: dict[str, float] = field(default_factory=dict)  # of the present epoch, for its line


@dataclass
class Run:
    """A run's parts: configuration, policy, optimizer, questions, folder, and where it is."""

    cfg: Config
    folder: Path
    policy: grpo.Policy
    optimizer: torch.optim.Optimizer
    train: list[Problem]
    held_out: dict[str, list[Problem]]  # file stem -> problems
    state: State
    started: float
    tracker: SimpleNamespace
    interrupted: bool = False  # Ctrl-C was pressed

    @property
    def by_id(self) -> dict[str, Problem]:
        return {p.id: p for p in self.train}

    @property
    def seconds(self) -> float:
        return self.state.seconds + time.time() - self.started

    def log(self, line: str) -> None:
        with (self.folder / "run.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def stop_if_asked(self) -> None:
        if self.interrupted:
            raise Interrupted


class Interrupted(KeyboardInterrupt):
    """Raised where a run can stop without losing anything."""


def check_folder(cfg: Config) -> None:
    """A run is never written over, and never resumed under another configuration unless that is asked for."""
    file = cfg.folder / "config.json"
    if not file.exists():
        if cfg.resume:
            raise UserError(f"--resume: {cfg.folder} holds no run; leave --resume away to start one")
        return
    if not cfg.resume:
        raise UserError(f"{cfg.folder}: already holds a run; --resume goes on with it, another --name starts a new one")
    known, present = json.loads(file.read_text()), json.loads(json.dumps(cfg.recorded()))
    changed = [f"{name} ({known.get(name)} -> {value})" for name, value in present.items() if known.get(name) != value]
    if changed and not cfg.allow_changes:
        raise UserError(
            f"--resume: {cfg.folder} was started with other settings: {', '.join(changed)}. Give the same ones, or add "
            "--allow-changes"
        )


RUN_FILES = ("metrics.jsonl", "transcripts.jsonl", "run.log")  # they grow; a checkpoint holds how long they were


def save_checkpoint(run: Run) -> None:
    """Everything that the run needs to go on from here. Seeds are derived, so no generator's state is among it."""

    def write_files(folder: Path) -> None:
        run.policy.model.save_pretrained(folder / "adapter")
        checkpoint.save_optimizer(run.optimizer, folder / "optimizer.safetensors")

    run.state.saved += 1
    state = dataclasses.asdict(run.state) | {"seconds": run.seconds}
    lengths = {name: (run.folder / name).stat().st_size for name in RUN_FILES}
    record = {"state": state, "lengths": lengths, "base_model": grpo.base_fingerprint(run.policy)}
    try:
        checkpoint.save(run.folder / "checkpoints", run.state.saved, record, write_files)
    except OSError as error:
        tqdm.write(f"checkpoint {run.state.saved} was not written ({error}); the older ones are as they were")


def load_checkpoint(run: Run) -> bool:
    """Put the run where its newest whole checkpoint was; False if there is none."""
    found = checkpoint.newest(run.folder / "checkpoints", print)
    if found is None:
        print("no checkpoint to go on from: starting at the beginning")
        return False
    folder, record = found
    if record["base_model"] != grpo.base_fingerprint(run.policy):
        raise UserError(f"--resume: the adapter of {folder} was trained on another base model than {run.cfg.model}")
    state = record["state"]
    state["pending"] = [grpo.Rollout(**rollout) for rollout in state["pending"]]
    run.state = State(**state)
    grpo.load_adapter(run.policy, folder / "adapter")
    checkpoint.load_optimizer(run.optimizer, folder / "optimizer.safetensors")
    for name, length in record["lengths"].items():  # lines written after the checkpoint will be written again
        with (run.folder / name).open("r+b") as file:
            file.truncate(length)
    print(f"resumed from checkpoint {folder.name}: epoch {run.state.epoch + 1}, {run.state.update} updates done")
    return True


@contextmanager
def stop_on_ctrl_c(run: Run):
    """The first Ctrl-C lets the present update finish and writes a checkpoint; a second one stops at once."""

    def ask(*_) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("stopping after this update (Ctrl-C again: at once)")

    on_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, ask) if on_main_thread else None
    try:
        yield
    except KeyboardInterrupt:
        tqdm.write(f"stopped; the same command with --resume goes on with {run.folder}")
        raise
    finally:
        if on_main_thread:
            signal.signal(signal.SIGINT, previous)


MAX_BAD_UPDATES = 3


def stop_after_bad_updates(run: Run, metrics: dict, rollouts: list[grpo.Rollout]) -> None:
    """Updates without a finite gradient are skipped; several in a row end the run, with the batch kept."""
    run.state.skipped = run.state.skipped + 1 if metrics.get("skipped") else 0
    if run.state.skipped:
        tqdm.write(f"update {run.state.update}: the loss or gradient is not finite; skipped, no weight has moved")
    if run.state.skipped >= MAX_BAD_UPDATES:
        file = run.folder / "bad-batch.json"
        file.write_text(json.dumps([dataclasses.asdict(r) for r in rollouts]))
        raise UserError(
            f"{MAX_BAD_UPDATES} updates in a row had no finite loss or gradient; the last batch is in {file}. A lower "
            "--learning-rate is the usual cure"
        )


def record_rollouts(run: Run, problems: list[Problem], rollouts: list[grpo.Rollout]) -> None:
    """Add a batch to the epoch's sums, and its first groups to the transcripts."""
    cfg, state = run.cfg, run.state
    groups = [rollouts[i : i + cfg.group_size] for i in range(0, len(rollouts), cfg.group_size)]
    bare = [r for r in rollouts if r.sampled_context == r.trained_context]
    gaps = [abs(a - b) for r in bare for a, b in zip(r.old_logprobs, r.sampled_logprobs, strict=True)]
    counts = {
        "rollouts": len(rollouts),
        "reward": sum(r.reward for r in rollouts),
        "groups": len(groups),
        "zero_advantage": sum(all(r.advantage == 0 for r in group) for group in groups),
        "tokens": sum(len(r.response_ids) for r in rollouts),
        "masked": sum(w == 0 for r in rollouts for w in r.token_weight),
        "templated": sum(bool(r.template) for r in rollouts),
        "truncated": sum(r.truncated for r in rollouts),
        "ill_formed": sum(not r.well_formed for r in rollouts),
        "compared": len(gaps),
        "mismatch": sum(gaps),
    }
    for name, value in counts.items():
        state.sums[name] = state.sums.get(name, 0) + value
    state.sums["mismatch_max"] = max([state.sums.get("mismatch_max", 0.0), *gaps])
    state.rollouts += len(rollouts)
    questions = {p.id: p for p in problems}
    with (run.folder / "transcripts.jsonl").open("a", encoding="utf-8") as file:
        for group in groups[:2]:
            for r in group[:3]:
                problem = questions[r.question_id]
                line = {"epoch": state.epoch + 1, "question": problem.question, "reference": problem.answer}
                line |= {"template": r.template, "response": r.text, "reward": r.reward}
                file.write(json.dumps(line) + "\n")


def log_epoch(run: Run, epoch: int, scores: dict[str, float]) -> None:
    """One readable line, and the same in metrics.jsonl. `scores`: accuracy on each held-out file."""
    state, sums = run.state, run.state.sums
    line = {"kind": "epoch", "epoch": epoch, "rollouts": state.rollouts, "gepa_calls": state.gepa_calls}
    text = "before training"
    if sums:
        line |= {
            "reward": sums["reward"] / sums["rollouts"],
            "zero_advantage": sums["zero_advantage"] / sums["groups"],
            "hard_set": len(state.hard),
            "templated": sums["templated"] / sums["rollouts"],
            "masked_tokens": sums["masked"] / sums["tokens"],
            "truncated": sums["truncated"] / sums["rollouts"],
            "ill_formed": sums["ill_formed"] / sums["rollouts"],
            "response_tokens": sums["tokens"] / sums["rollouts"],
            "logprob_mismatch": sums["mismatch"] / max(1, sums["compared"]),
            "logprob_mismatch_max": sums["mismatch_max"],
        }
        text = (
            f"reward {line['reward']:.2f} | zero-advantage groups {line['zero_advantage']:.0%} | hard set "
            f"{line['hard_set']:3d} | templated {line['templated']:.0%} | tokens masked {line['masked_tokens']:.1%}"
        )
    line["accuracy"] = scores
    write_line(run, line)
    held_out = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
    tqdm.write(f"epoch {epoch}/{run.cfg.epochs} | {text} | held out, bare: {held_out}")
    if sums:
        for warning in silent_failures(line, state.hard, run.cfg):
            tqdm.write(f"  WARNING: {warning}")


def silent_failures(line: dict, hard: list[str], cfg: Config) -> list[str]:
    """What an epoch's numbers say about a run that looks alive and learns nothing, with the likely cause."""
    warnings = []
    if line["truncated"] == 1:
        warnings.append(
            "every response was cut off: raise --max-response-tokens, or the model's end token is not known"
        )
    elif line["ill_formed"] == 1:
        warnings.append(
            "no response has exactly one boxed answer: does the prompt ask for \\boxed{} (--question-suffix), and is "
            "it an instruct model with its own chat template?"
        )
    elif line["reward"] == 0:
        warnings.append(
            "every reward is 0: is the reference answer in the form of the responses? See transcripts.jsonl"
        )
    if line["zero_advantage"] == 1 and not (cfg.method == "p2o" and len(hard) >= cfg.hard_set_min):
        cause = "all solved: harder questions are needed" if line["reward"] > 0.9 else "advantage collapse"
        warnings.append(
            f"every group has zero advantage ({cause}) and no templates will be evolved: nothing is learned"
        )
    if line["logprob_mismatch"] > MAX_MISMATCH:
        warnings.append(
            f"sampled and trained log-probs differ by {line['logprob_mismatch']:.2f} on average: a stale adapter in "
            "the sampler, or another temperature, top-k or top-p than the trainer's"
        )
    return warnings


MAX_MISMATCH = 0.1  # nats, mean over tokens: in bf16 a single token may differ by more than 1, the mean hardly by 0.02


def write_line(run: Run, line: dict) -> None:
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({name: finite(value) for name, value in line.items()}) + "\n")
    run.tracker.log(line, run.state.update)


def finite(value):
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_evolution(run: Run, evolution: gepa_loop.Evolution) -> None:
    """templates/epoch-N.json and GEPA's candidate tree beside it; one line on the screen."""
    folder = run.folder / "templates"
    name = f"epoch-{run.state.epoch + 1}"
    record = dataclasses.asdict(evolution)
    (folder / f"{name}.html").write_text(record.pop("tree_html"), encoding="utf-8")
    record |= {"weights": evolution.weights, "assignment": run.state.templates}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    best = max(map(statistics.fmean, evolution.dev_scores))
    tqdm.write(
        f"  evolved {len(evolution.candidates)} templates with {evolution.metric_calls} responses; best solves "
        f"{best:.0%} of the dev set, {len(evolution.chosen)} cover all that is solved"
        + (f" (ended early: {evolution.stopped_early})" if evolution.stopped_early else "")
    )


def finish_run(run: Run) -> dict:
    """Adapter, summary and report."""
    run.policy.model.save_pretrained(run.folder / "adapter")
    epochs = [line for line in read_lines(run.folder / "metrics.jsonl") if line["kind"] == "epoch"]
    summary = {
        "method": run.cfg.method,
        "seed": run.cfg.seed,
        "accuracy_before": epochs[0]["accuracy"],
        "accuracy": epochs[-1]["accuracy"],
        "rollouts": run.state.rollouts,
        "gepa_calls": run.state.gepa_calls,
        "hard_set": epochs[-1]["hard_set"],
        "seconds": round(run.seconds, 1),
    }
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=2))
    page = report.write_report([run.folder], run.folder)
    run.tracker.finish()
    print(f"done in {summary['seconds']:.0f} s; report: {page}")
    return summary


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
