"""The final task: how much accuracy do your responses buy?

    python grader/final.py                       # in a student's folder: runs the study below, prints its line
    python assignment/final.py submission.zip    # the instructor's: the same from what was handed in

The score is the area under held-out accuracy (bare prompt, greedy, out of distribution) against the responses sampled
so far, those of GEPA included, up to BUDGET responses and divided by it: 1 would be a policy that knows all before it
begins. It is a mean over the seeds, with a 95 % interval. What was changed is code: a run whose recorded options are
not those of the study has no score.
"""

from __future__ import annotations

import argparse
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

from grade import submission  # noqa: E402
from process import GIVEN, ROOT, SUBMITTED  # noqa: E402

from tools.compare import area, student  # noqa: E402

BUDGET = 6_000  # responses
SCORED = "ood"
STUDY = """\
# The final task: the same world and options for all, five seeds. Change code, not this file.
# The divided world: no template solves two of its families, so that one lesson does not teach them all.
seeds = [0, 1, 2, 3, 4]
model = "tiny/divided/model"
train_data = "tiny/train.jsonl"
eval_data = ["tiny/hard.jsonl", "tiny/ood.jsonl"]
epochs = 5
questions_per_batch = 32
questions_per_update = 16
group_size = 6
temperature = 1.0
max_response_tokens = 40
learning_rate = 5e-4
lora_rank = 16
hard_set_min = 12
gepa_dev_size = 40
gepa_budget = "500"

[variants.mine]
"""


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
        raise ValueError(f"{run.name}: made with another {', '.join(changed)} than the final task's")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return area([(e["rollouts"] + e["gepa_calls"], e["accuracy"][SCORED]) for e in epochs], BUDGET)


def final(folder: Path) -> str:
    """Run the study with the code of a folder, and say its line."""
    (folder / "studies").mkdir(exist_ok=True)
    (folder / "studies" / "final.toml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "p2o.py", "study", "studies/final.toml", "--runs", str(folder / "runs")]
    subprocess.run(command, cwd=folder, check=True)
    options = tomllib.loads(STUDY)
    seeds, _ = options.pop("seeds"), options.pop("variants")
    scores = [score_of(folder / "runs" / "final" / f"mine-seed{seed}", options) for seed in seeds]
    each = " ".join(f"{score:.3f}" for score in scores)
    return f"{interval(scores)} (seeds: {each}; area under {SCORED} up to {BUDGET:,} responses)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="a submission.zip or a folder; left away: this folder")
    path = parser.parse_args().path
    if path is None:
        print(final(ROOT))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        try:
            handed_in = submission(path, Path(scratch) / "unpacked")
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        for name in SUBMITTED:
            shutil.copyfile(handed_in / name, folder / name)
        for name in GIVEN:
            shutil.copytree(ROOT / name, folder / name)  # copies: tools find p2o.py beside themselves
        print(final(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
