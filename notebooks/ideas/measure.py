"""Run P2O with each of the ideas beside this file and write the table of results.md.

    python notebooks/ideas/measure.py --seeds 0 1

Each variation is the same command, `python p2o.py --epochs 3 --learning-rate 0.001 --seed S`, with the idea's options
below; or, where the idea is a diff, in a copy of the code with the diff applied.
What is measured already is kept (runs/ideas/), so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CODE = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py", "support", "tools", "tiny", "notebooks/ideas")
COMMAND = ["p2o.py", "--learning-rate", "0.001"]
IDEAS = {  # options of p2o.py, or a diff
    "0_unchanged": [],
    "1_advantage": ["--advantage", "notebooks/ideas/1_advantage.py:leave_one_out"],
    "2_ratio": ["--ratio", "notebooks/ideas/2_ratio.py:whole_response", "--aggregation", "seq-mean-token-mean"],
    "3_hard_set": "3_hard_set.diff",
    "4_assignment": "4_assignment.diff",
    "5_reward": ["--advantage", "notebooks/ideas/5_reward.py:price_on_length"],
}


def copy_of_the_code(folder: Path, diff: str | None = None) -> None:
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp", "*.pt"))
        else:
            shutil.copy(ROOT / name, folder / name)
    if diff:
        subprocess.run(["git", "apply", str(HERE / diff)], cwd=folder, check=True)


def measure(idea: str, seed: int, epochs: int, runs: Path) -> dict:
    """The summary of one run, with the accuracy after every epoch."""
    name, options = f"{idea}-seed{seed}", IDEAS[idea]
    if not (runs / name / "summary.json").exists():
        shutil.rmtree(runs / name, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            copy_of_the_code(Path(folder), diff=options if isinstance(options, str) else None)
            command = [sys.executable, *COMMAND, "--epochs", str(epochs), "--seed", str(seed)]
            command += [*([] if isinstance(options, str) else options), "--runs", str(runs), "--name", name]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((runs / name / "summary.json").read_text())
    return summary | {"epochs": [line for line in lines if line["kind"] == "epoch"]}


def table(results: dict[str, list[dict]], epochs: int) -> str:
    header = ["variation", *[f"hard, epoch {e}" for e in range(1, epochs + 1)], "out of distribution"]
    header += ["last hard set", "training rollouts + GEPA's", "seeds"]
    rows = [header, ["---"] * len(header)]
    for name, runs in results.items():

        def mean(value, runs=runs) -> float:
            return statistics.mean(value(run) for run in runs)

        curve = [f"{mean(lambda r, e=e: r['epochs'][e]['accuracy']['hard']):.2f}" for e in range(1, epochs + 1)]
        ood = f"{mean(lambda r: r['accuracy']['ood']):.2f}"
        spent = f"{mean(lambda r: r['rollouts']):,.0f} + {mean(lambda r: r['gepa_calls']):,.0f}"
        rows.append([name, *curve, ood, f"{mean(lambda r: r['hard_set']):.0f}", spent, str(len(runs))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    runs = ROOT / "runs" / "ideas"
    results: dict[str, list[dict]] = {}
    for seed in arguments.seeds:
        for name in IDEAS:
            results.setdefault(name, []).append(measure(name, seed, arguments.epochs, runs))
            print(f"{name}, seed {seed}: {results[name][-1]['accuracy']}", flush=True)
    seeds = " ".join(map(str, arguments.seeds))
    text = table(results, arguments.epochs)
    (HERE / "results.md").write_text(f"Made by `python notebooks/ideas/measure.py --seeds {seeds}`.\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
