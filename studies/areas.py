"""Areas under accuracy against all responses, paired by seed: is a variant better than the first one of its study?

    python studies/areas.py selection          # reads results/selection.json, writes results/selection-areas.md

The area is the mean accuracy over the responses up to the budget that every run has spent, GEPA's included: it asks how
early as well as how good. Differences are taken seed by seed; the interval is Student's, 95 %, over the seeds. One that
holds 0 has shown nothing.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # two-sided, of n seeds


def area(curve: list[tuple[float, float]], budget: float) -> float:
    """Mean height of a piecewise linear curve from its first point up to `budget`.

    >>> area([(0, 0.0), (100, 1.0), (200, 1.0)], 150)
    0.6666666666666666
    """
    total = 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        end = min(x1, budget)
        if x0 < end:
            reached = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            total += (end - x0) * (y0 + reached) / 2
    return total / (budget - curve[0][0])


def interval(differences: list[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval).

    >>> mean, half = interval([0.1, 0.2, 0.3])
    >>> round(mean, 3), round(half, 3)
    (0.2, 0.248)
    """
    n = len(differences)
    return statistics.mean(differences), T_95[n] * statistics.stdev(differences) / math.sqrt(n)


def table(results: dict[str, list[dict]], file: str) -> str:
    """Markdown: each variant's area, and its paired difference from the first one's."""
    curves = {
        variant: {run["seed"]: [(p["rollouts"], p["accuracy"][file]) for p in run["curve"]] for run in runs}
        for variant, runs in results.items()
        if runs
    }
    budget = min(curve[-1][0] for runs in curves.values() for curve in runs.values())
    areas = {name: {seed: area(curve, budget) for seed, curve in runs.items()} for name, runs in curves.items()}
    first = next(iter(areas.values()))
    lines = [f"| variant | area up to {budget:,} responses | against the first, paired | seeds |", "| --- " * 4 + "|"]
    for name, by_seed in areas.items():
        shared = [seed for seed in by_seed if seed in first]
        gain = ""
        if by_seed is not first and len(shared) in T_95:
            mean, half = interval([by_seed[seed] - first[seed] for seed in shared])
            gain = f"{mean:+.3f} ± {half:.3f}"
        lines.append(f"| {name} | {statistics.mean(by_seed.values()):.3f} | {gain} | {len(by_seed)} |")
    return "\n".join(lines)


def main() -> None:
    name = sys.argv[1]
    results = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    files = next(list(runs[0]["accuracy"]) for runs in results.values() if runs)
    parts = [f"Held out: {file}\n\n{table(results, file)}\n" for file in files]
    page = "\n".join([f"Made by `python studies/areas.py {name}`.\n", *parts])
    (RESULTS / f"{name}-areas.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
