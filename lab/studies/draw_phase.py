"""lab/results/phase.png: where GRPO collapses, where more rollouts rescue it, and where templates are too good.

lab/studies/dials.sh
python p2o.py study lab/studies/bottom.toml
python p2o.py study lab/studies/top.toml
python lab/studies/draw_phase.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"


def grid(name: str) -> tuple[list[str], list[str], list[list[float]]]:
    """(methods, dial values, mean held-out accuracy [method][dial]) of a study with variants "METHOD, WORD DIAL"."""
    results = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    cells: dict[str, dict[str, float]] = {}
    for variant, runs in results.items():
        if runs:
            method, _, dial = variant.rpartition(", ")
            cells.setdefault(method, {})[dial.split()[1]] = statistics.mean(
                run["curve"][-1]["accuracy"]["hard"] for run in runs
            )
    dials = list(dict.fromkeys(dial for row in cells.values() for dial in row))
    return list(cells), dials, [[row.get(dial, float("nan")) for dial in dials] for row in cells.values()]


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(13, 3.6), width_ratios=[5, 4], gridspec_kw={"wspace": 0.35})
    titles = {
        "bottom": ("collapse at the bottom", "probability of going on, bare prompt (hinted: 0.9)"),
        "top": ("collapse at the top", "probability of going on under the right hint (bare: 0.07)"),
    }
    for axis, (name, (title, label)) in zip(axes, titles.items(), strict=True):
        methods, dials, values = grid(name)
        image = axis.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(dials)), dials)
        axis.set_yticks(range(len(methods)), methods)
        axis.set(title=title, xlabel=label)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    figure.colorbar(image, ax=axes, label="accuracy, held-out hard questions,\nbare prompt, greedy")
    figure.savefig(RESULTS / "phase.png", dpi=110, bbox_inches="tight")
    print(f"wrote {RESULTS.name}/phase.png")


if __name__ == "__main__":
    main()
