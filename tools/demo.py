"""GRPO and P2O side by side: same seed, same questions, same number of rollouts; then the comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import p2o
from tools import cli, report

# P2O has solved the tiny world after three. An option of the user's own comes later on the command line, and wins.
EPOCHS = ("--epochs", "4")
HOW_TO_READ = """\
An epoch with "templated 0%" is plain GRPO, in P2O as well. Templates give the bare policy its first successes; the
epochs after them show what GRPO makes of these. The hard set was collected during the last epoch, from sampled
responses, while the policy moved. The accuracies were measured after that epoch, by greedy decoding.
So the two need not agree."""


def main(argv: list[str]) -> None:
    side_by_side([*EPOCHS, *argv], "demo")


def side_by_side(options: list[str], name: str) -> None:
    """Train both methods under these options, in runs/NAME, and write the report of the two."""
    cfg = cli.parse_config(options)
    base = Path(cfg.runs) / (cfg.name or name)
    while base.exists():  # a second demo stands beside the first
        stem, _, number = base.name.rpartition("-")
        base = base.with_name(f"{stem}-{int(number) + 1}" if number.isdigit() else f"{base.name}-2")
    folders = [base / method for method in ("grpo", "p2o")]
    with report.live_report(folders, base):
        for folder in folders:
            p2o.train(replace(cfg, method=folder.name, runs=str(base), name=folder.name))
            report.write_report([folder], folder)
    print("\n" + report.comparison_table(folders))
    print("
" + HOW_TO_READ)
    print(f"\nreport: {base / 'report.html'}")
