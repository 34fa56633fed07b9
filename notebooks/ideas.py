"""Run P2O with each idea of IDEAS.md, and write the table on that page anew.

    python notebooks/ideas.py --seeds 0 1 2

The page is the only source: its functions are copied into one file, its diff is applied to a copy of the code. What is
measured already is kept in runs/ideas/, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "notebooks" / "IDEAS.md"
CODE = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py", "support", "tools", "tiny")
COMMAND = ["p2o.py", "--epochs", "3", "--learning-rate", "0.001"]


def blocks(kind: str) -> list[str]:
    """The code blocks of this kind on the page, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def options() -> dict[str, list[str]]:
    """{idea: its options of p2o.py}. On the page each idea's options stand in a line of their own."""
    page = PAGE.read_text(encoding="utf-8")
    ideas = re.findall(r"^## (\d · [^:\n]*).*?^`(--.*?)`$", page, flags=re.MULTILINE | re.DOTALL)
    return {"0 · Unchanged": []} | {name: line.split() for name, line in ideas}


def copy_of_the_code(folder: Path, idea: str) -> None:
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp", "*.pt"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "ideas.py").write_text("\n\n".join(blocks("python")), encoding="utf-8")
    [diff] = blocks("diff")
    if idea.startswith("4"):
        apply(diff, folder / "gepa_loop.py")


def apply(diff: str, file: Path) -> None:
    """Replace the line that begins with - by the one that begins with +."""
    old, new = (re.search(rf"^[{sign}](.*)$", diff, flags=re.MULTILINE)[1] for sign in "-+")
    text = file.read_text(encoding="utf-8")
    if text.count(f"{old}\n") != 1:
        raise ValueError(f"{file.name}: the line that the diff replaces is not there exactly once: {old}")
    file.write_text(text.replace(f"{old}\n", f"{new}\n"), encoding="utf-8")


def measure(idea: str, seed: int, runs: Path) -> dict:
    """The summary of one run, with the lines of its epochs."""
    name = f"{idea[0]}-seed{seed}"
    if not (runs / name / "summary.json").exists():
        shutil.rmtree(runs / name, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            copy_of_the_code(Path(folder), idea)
            command = [sys.executable, *COMMAND, "--seed", str(seed), *options()[idea]]
            command += ["--runs", str(runs), "--name", name]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((runs / name / "summary.json").read_text())
    return summary | {"epochs": [line for line in lines if line["kind"] == "epoch"]}


def table(results: dict[str, list[dict]]) -> str:
    header = ["variation", *[f"hard, epoch {e}" for e in (1, 2, 3)], "out of distribution"]
    header += ["last hard set", "training rollouts + GEPA's", "seeds"]
    rows = [header, ["---"] * len(header)]
    for name, runs in results.items():

        def mean(value, runs=runs) -> float:
            return statistics.mean(value(run) for run in runs)

        curve = [f"{mean(lambda r, e=e: r['epochs'][e]['accuracy']['hard']):.2f}" for e in (1, 2, 3)]
        ood = f"{mean(lambda r: r['accuracy']['ood']):.2f}"
        spent = f"{mean(lambda r: r['rollouts']):,.0f} + {mean(lambda r: r['gepa_calls']):,.0f}"
        rows.append([name, *curve, ood, f"{mean(lambda r: r['hard_set']):.0f}", spent, str(len(runs))])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    results: dict[str, list[dict]] = {}
    for seed in seeds:
        for idea in options():
            results.setdefault(idea, []).append(measure(idea, seed, ROOT / "runs" / "ideas"))
            print(f"{idea}, seed {seed}: {results[idea][-1]['accuracy']}", flush=True)
    made_by = f"Made by `python notebooks/ideas.py --seeds {' '.join(map(str, seeds))}`.\n\n"
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"^Made by `.*?`\.\n\n(\|.*\n)+", lambda _: made_by + table(results), page, flags=re.MULTILINE)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
