"""The figure of a study: what each variant gains or loses, then how its accuracy grew."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from textwrap import shorten, wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tools.compare import Comparison, compare, curve_of, files_of, shared_budget
from tools.svg import short

WIDTH, COLUMNS = 10, 4  # inches; small pictures in a row
GAIN, LOSS, OPEN, BASE = "#1b9e77", "#d95f02", "#7b8794", "#b0b7c0"  # better, worse, not shown, the baseline


def draw_study(results: dict[str, list[dict]], baselines: dict[str, str], file: Path) -> None:
    """Of the first held-out file; the tables beside the figure have all."""
    name = files_of(results)[0]
    compared = compare(results, name, baselines)
    rows = math.ceil(len(compared) / COLUMNS)
    heights = [0.9 + 0.3 * len(compared), 0.6 + 1.7 * rows]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    forest, curves = figure.subfigures(2, 1, height_ratios=heights)
    draw_forest(forest.subplots(), compared, baselines, f"{name}: area up to {shared_budget(results):,} responses")
    draw_curves(curves, results, list(compared), baselines, name)
    figure.savefig(file, dpi=110)


def draw_forest(axis: Axes, compared: dict[str, Comparison], baselines: dict[str, str], title: str) -> None:
    """The paired difference of each variant's area, coloured where its interval (see bounds) leaves 0 out."""
    for row, (name, of) in enumerate(compared.items()):
        difference = of.against.get("areas")
        if not difference:
            if name == baselines[name]:
                axis.annotate("baseline", (0, row), xytext=(5, 0), textcoords="offset points", va="center", color=OPEN)
            continue
        colour = verdict(difference.mean, *bounds(difference))
        axis.plot(difference.seeds, [row] * len(difference.seeds), "o", color=BASE, markersize=3, zorder=1)
        if difference.interval:
            axis.plot(bounds(difference), [row, row], color=colour, linewidth=1.2)
            axis.plot(difference.interval, [row, row], color=colour, linewidth=4, solid_capstyle="butt")
        axis.plot(difference.mean, row, "D", color=colour, markersize=6, markeredgecolor="white")
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(compared)), [shorten(name, 60, placeholder=" ...") for name in compared])
    axis.set_ylim(len(compared) - 0.4, -0.6)
    # Of the figure, not of the axis: that is narrow and far to the right where names are long.
    axis.figure.suptitle(f"{title}, less that of the baseline, seed by seed", fontsize="large")
    axis.figure.supxlabel(
        "worse  ←  difference of the mean accuracy on the way  →  better\n"
        "dots: seeds; diamond: their mean; 95 % intervals: bootstrap thick, Student's thin",
        fontsize="medium",
    )
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def bounds(difference) -> tuple[float, float]:
    """The interval to go by: Student's while seeds are few."""
    if difference.half is not None:
        return difference.mean - difference.half, difference.mean + difference.half
    return difference.interval or (-math.inf, math.inf)


def verdict(mean: float, low: float, high: float) -> str:
    return OPEN if low <= 0 <= high else GAIN if mean > 0 else LOSS


def draw_curves(
    figure: SubFigure, results: dict[str, list[dict]], variants: list[str], baselines: dict[str, str], name: str
) -> None:
    """Accuracy against all responses, a small picture for each variant: every seed thin, the mean thick, and grey what
    its baseline's mean is."""
    axes = figure.subplots(math.ceil(len(variants) / COLUMNS), COLUMNS, sharex=True, sharey=True, squeeze=False)
    axes = [axis for row in axes for axis in row]
    for axis, variant in zip(axes, variants, strict=False):
        curves = [curve for run in results[variant] if (curve := curve_of(run, name))]
        axis.plot(*mean_curve([curve_of(run, name) for run in results[baselines[variant]]]), color=BASE, linewidth=3)
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), color="#1f77b4", alpha=0.35, linewidth=0.8)
        axis.plot(*mean_curve(curves), color="#1f77b4", linewidth=1.8, marker="o", markersize=2.5)
        axis.set_title("\n".join(wrap(variant, 30)), fontsize=8)
        axis.set(ylim=(-0.04, 1.04), yticks=[0, 0.5, 1])
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    for axis in axes[len(variants) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(variants) - COLUMNS) : len(variants)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("responses sampled, GEPA's included (grey: the baseline; thin: each seed)", fontsize=9)
    figure.supylabel(f"accuracy, {name}, bare prompt", fontsize=9)


def mean_curve(curves: list[list[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """(responses, accuracy), each epoch's mean over the seeds, as far as all of them go.

    >>> mean_curve([[(0, 0.0), (10, 1.0)], [(0, 0.0), (20, 0.5)]])
    ([0, 15], [0.0, 0.75])
    """
    epochs = [list(zip(*points, strict=True)) for points in zip(*curves, strict=False)]
    return [statistics.mean(xs) for xs, _ in epochs], [statistics.mean(ys) for _, ys in epochs]
