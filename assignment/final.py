"""The final task: how much accuracy do your responses buy?

    python grader/final.py                       # in a student's folder: runs final.toml, prints the line
    python assignment/final.py submission.zip    # the instructor's: the same from what was handed in

The score is the area under held-out accuracy (bare prompt, greedy, out of distribution) against the responses sampled
so far, those of GEPA included, up to BUDGET responses and divided by it: 1 would be a policy that knows all before it
begins. It is a mean over the seeds, with a 95 % interval. What was changed is code: a run whose recorded options are
not those of final.toml has no score.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from grade import unpack  # noqa: E402
from process import GIVEN, ROOT  # noqa: E402

from tools.compare import area, student  # noqa: E402

BUDGET = 6_000  # responses
SCORED = "ood"


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval.

    >>> interval([0.4, 0.5, 0.6])
    '0.500 ± 0.248'
    """
    return f"{statistics.fmean(values):.3f} ± {student(values):.3f}"


def score_of(run: Path, options: dict) -> float:
    """The area of one run; a ValueError if it was made with other options."""
    recorded = json.loads((run / "config.json").read_text(encoding="utf-8"))
    changed = [name for name, value in options.items() if recorded.get(name) != value]
    if changed:
        raise ValueError(f"{run.name}: made with another {', '.join(changed)} than final.toml says")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return area([(e["rollouts"] + e["gepa_calls"], e["accuracy"][SCORED]) for e in epochs], BUDGET)


def final(folder: Path, study: Path) -> str:
    """Run the study with the code of a folder, and say its line."""
    (folder / "studies").mkdir(exist_ok=True)
    copy = folder / "studies" / "final.toml"
    copy.write_text(study.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "p2o.py", "study", "studies/final.toml", "--runs", str(folder / "runs")]
    subprocess.run(command, cwd=folder, check=True)
    options = tomllib.loads(study.read_text(encoding="utf-8"))
    seeds, _ = options.pop("seeds"), options.pop("variants")
    scores = [score_of(folder / "runs" / "final" / f"mine-seed{seed}", options) for seed in seeds]
    each = " ".join(f"{score:.3f}" for score in scores)
    return f"{interval(scores)} (seeds: {each}; area under {SCORED} up to {BUDGET:,} responses)"


def main(argv: list[str]) -> None:
    study = HERE / "final.toml" if (HERE / "final.toml").exists() else ROOT / "final.toml"
    if not argv:
        print(final(ROOT, study))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpack(Path(argv[0]), Path(scratch) / "submission")
        for name in GIVEN:
            shutil.copytree(ROOT / name, folder / name)  # copies: tools find p2o.py beside themselves
        print(final(folder, study))


if __name__ == "__main__":
    main(sys.argv[1:])
