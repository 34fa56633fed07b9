"""Kill a tiny run again and again, resume it each time, and compare it with a run that was left alone.

    python lab/chaos.py --kills 30

Each kill is a SIGKILL from inside, at a random call of a random point: sampling, log-probs, update, checkpoint writing
(before a file is synced, so that a half-written folder stays behind), GEPA's evaluation and reflection, the journals.
At the end metrics.jsonl, transcripts.jsonl, the templates and the adapter must equal the undisturbed run's bit for bit.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
POINTS = {  # what is killed -> at most how many calls later
    "grpo.sample": 6,
    "grpo.score_old": 4,
    "grpo.update_policy": 5,
    "support.checkpoint.sync": 12,
    "support.checkpoint.save": 4,
    "verify.grade_batch": 6,
    "support.log.read_lines": 5,
    "support.checkpoint.write_whole": 6,
    "gepa_loop.reflection_prompt": 6,
    "gepa_loop.parse_reflection": 6,
}


def small_run(folder: Path) -> list[str]:
    """Arguments of a run of seconds: 16 hard questions, two epochs, one prompt evolution."""
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[:16]
    held_out = (ROOT / "tiny" / "hard.jsonl").read_text().splitlines()[:8]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "held.jsonl").write_text("\n".join(held_out) + "\n")
    options = {"train-data": folder / "train.jsonl", "eval-data": folder / "held.jsonl", "epochs": 2}
    options |= {"questions-per-batch": 8, "questions-per-update": 4, "gepa-dev-size": 8, "gepa-budget": 60}
    options |= {"runs": folder}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


# Every run is a fork of one process that has imported the libraries, for that takes longer than such a run. Not where
# there is a card, which a fork cannot use once its parent has looked at it, and importing peft looks.
SERVER = multiprocessing.get_context("forkserver")
LIBRARIES = ["gepa", "peft", "transformers.models.llama.modeling_llama", "tyro"]
SERVER.set_forkserver_preload([] if torch.cuda.is_available() else LIBRARIES)


def child(arguments: list[str], log: Path, deadly: tuple[str, int, int] | None) -> None:
    """The other end of `run`."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    multiprocessing.set_start_method("fork", force=True)  # or tqdm's lock has a name, which a kill would leave behind
    sys.path.insert(0, str(ROOT))
    import p2o

    if deadly:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        point, call, by = deadly
        module_name, _, name = point.rpartition(".")
        module = importlib.import_module(module_name)
        original, calls = getattr(module, name), itertools.count(1)

        def disturbed(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), by)
            return original(*args, **kwargs)

        setattr(module, name, disturbed)
    sys.exit(p2o.main(arguments))


def run(arguments: list[str], log: Path, deadly: tuple[str, int, int] | None = None) -> int:
    """The exit code of p2o in a process of its own, which (point, n, signal) disturbs at the n-th call of a point."""
    process = SERVER.Process(target=child, args=(arguments, log, deadly))
    process.start()
    process.join()
    return process.exitcode


def random_kills(count: int, seed: int) -> list[tuple[str, int]]:
    rng = random.Random(seed)
    points = [rng.choice(list(POINTS)) for _ in range(count)]
    return [(point, rng.randint(1, POINTS[point])) for point in points]


def finish_with_kills(folder: Path, name: str, kills: list[tuple[str, int]]) -> int:
    """Run to the end, killed at each (point, call) on the way; returns how often it was really killed.

    A kill whose point is not reached that often any more lets the run end.
    """
    arguments, log, planned, done = [*small_run(folder), "--name", name], folder / f"{name}.log", list(kills), 0
    while True:
        resume = ["--resume"] if (folder / name / "config.json").exists() else []
        point, call = planned.pop(0) if planned else ("", 0)
        code = run([*arguments, *resume], log, (point, call, signal.SIGKILL) if point else None)
        if code == -signal.SIGKILL:
            done += 1
            print(f"kill {done}: call {call} of {point}")
        elif code == 0:
            return done
        else:
            raise SystemExit(f"ended with {code}\n{log.read_text()}")


def differences(one: Path, other: Path) -> list[str]:
    """Files that must be equal and are not."""
    files = ["metrics.jsonl", "transcripts.jsonl", "adapter/adapter_model.safetensors"]
    files += [str(file.relative_to(one)) for file in sorted(one.glob("templates/*.json"))]
    return [file for file in files if (one / file).read_bytes() != (other / file).read_bytes()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills, rounds, wrong = 0, 0, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        finish_with_kills(folder, "undisturbed", [])
        while kills < options.kills:
            name = f"killed-{rounds}"
            kills += finish_with_kills(folder, name, random_kills(10, options.seed + rounds))
            found = differences(folder / "undisturbed", folder / name)
            print(f"round {rounds}: {'equal' if not found else f'DIFFERENT: {found}'}")
            wrong += found
            rounds += 1
    print(f"{kills} kills in {rounds} runs; files that differ: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
