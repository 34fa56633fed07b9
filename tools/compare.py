"""Is a variant better than another one? The runs of a study, compared seed by seed; and the figure of it.

A run is what results/studies.json keeps of it:
{"seed", "curve": [{"rollouts", "accuracy": {held-out file: share}}], ...}.
`rollouts` are all responses sampled by then, GEPA's included. `results` is {variant: [run]}. One seed draws the same
questions in the same order for every variant, so differences are taken within a seed, and the interval is theirs.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten, wrap
from typing import NamedTuple

import numpy as np

from tools.svg import short

SOLVED = 0.9  # the accuracy whose price in responses is compared
DRAWS = 10_000
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student, n seeds

NOTE = (
    "Differences are taken seed by seed, those of responses over the seeds in which both get there. In brackets the "
    "95 % interval of a paired bootstrap over seeds. With few seeds it is too narrow, so Student's stands beside that "
    "of the area. An interval that holds 0 has shown nothing."
)

Curve = list[tuple[float, float]]  # (responses, accuracy), by responses


class Cell(NamedTuple):
    """A table's cell: what it says, and the number that it is sorted by."""

    text: str
    value: float | None


# ---------------------------------------------------------------------------------------------------- of a single run


def curve_of(run: dict, file: str) -> Curve:
    return [(point["rollouts"], point["accuracy"][file]) for point in run["curve"] if file in point["accuracy"]]


def area(curve: Curve, budget: float) -> float:
    """Mean height of a piecewise linear curve from its first point up to `budget`: how early as well as how good.

    >>> area([(0, 0.0), (100, 1.0), (200, 1.0)], 150)
    0.6666666666666666
    """
    xs, ys = np.array(curve, dtype=float).T
    if budget <= xs[0]:
        return float(ys[0])
    before = xs < budget
    xs, ys = np.append(xs[before], budget), np.append(ys[before], np.interp(budget, xs, ys))
    return float(np.trapezoid(ys, xs) / (budget - xs[0]))


def responses_to(curve: Curve, height: float = SOLVED) -> float | None:
    """The responses spent when the accuracy was first measured at `height` or above; None if it never was.

    >>> responses_to([(0, 0.0), (1104, 0.4), (2208, 0.95)]), responses_to([(0, 0.0), (1104, 0.4)])
    (2208, None)
    """
    return next((spent for spent, accuracy in curve if accuracy >= height), None)


# ------------------------------------------------------------------------------------------------- of runs, by seed


def bootstrap(differences: list[float]) -> tuple[float, float]:
    """95 % interval of the mean: percentiles of the means of as many differences, drawn with replacement, under a fixed
    seed.

    With few seeds it is too narrow: of normal differences it holds the true mean in 84 % of all cases with five seeds,
    in 75 % with three. `student` is the honest one there; this one asks for no normal distribution.

    >>> bootstrap([0.0, 0.0, 0.0, 4.0])  # a mean of 3 or 4 has probability 13 / 256, one of 4 only 1 / 256
    (0.0, 3.0)
    """
    values, rng = np.array(differences), np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def student(differences: list[float]) -> float | None:
    """Half the width of Student's 95 % interval of the mean; None beyond the table's seeds, where `bootstrap` will do.

    >>> round(student([0.1, 0.2, 0.3]), 3)
    0.248
    """
    n = len(differences)
    return T_95[n] * statistics.stdev(differences) / math.sqrt(n) if n in T_95 else None


@dataclass(frozen=True)
class Difference:
    """What a variant has more than its baseline: the mean over seeds, and its intervals if there are several seeds."""

    seeds: list[float]  # the difference of each seed

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seeds)

    @cached_property  # thousands of draws
    def interval(self) -> tuple[float, float] | None:
        return bootstrap(self.seeds) if len(self.seeds) > 1 else None

    @property
    def half(self) -> float | None:
        return student(self.seeds) if len(self.seeds) > 1 else None

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval to go by: Student's while seeds are few. Of one seed it has no end."""
        if self.half is not None:
            return self.mean - self.half, self.mean + self.half
        return self.interval or (-math.inf, math.inf)

    def text(self, form: str = "+.3f") -> str:
        """
        >>> paired({0: 0.5, 1: 1.0}, {0: 0.5, 1: 0.5}).text("+.2f")
        '+0.25 [+0.00, +0.50]'
        """
        ends = f" [{', '.join(format(end, form) for end in self.interval)}]" if self.interval else ""
        return f"{self.mean:{form}}{ends}"


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """Ours minus theirs, {seed: value}, over the seeds that both have; None if there are none."""
    seeds = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return Difference(seeds) if seeds else None


# ------------------------------------------------------------------------------------------------------- of a study


def files_of(results: dict[str, list[dict]]) -> list[str]:
    """Whatever accuracy was measured of, the headline first: held-out files, perhaps also sampled from."""
    points = [point for runs in results.values() for run in runs for point in run["curve"]]
    return list(dict.fromkeys(file for point in points for file in point["accuracy"]))


def shared_budget(results: dict[str, list[dict]]) -> int:
    """The responses that every run of the study has spent at least."""
    return min(run["curve"][-1]["rollouts"] for runs in results.values() for run in runs)


@dataclass(frozen=True)
class Comparison:
    """A variant's numbers, {seed: value}, and how they differ from the baseline's."""

    areas: dict[int, float]
    reached: dict[int, float]  # responses to SOLVED, of the seeds that reach it
    final: dict[int, float]
    against: dict[str, Difference | None]  # of these three; empty for the baseline itself


def compare(results: dict[str, list[dict]], file: str, baselines: dict[str, str]) -> dict[str, Comparison]:
    """{variant: how it compares on a held-out file}, of the variants that have runs."""
    budget, found = shared_budget(results), {}

    def of_each(runs: list[dict], number: Callable[[Curve], float | None]) -> dict[int, float]:
        numbers = {run["seed"]: number(curve) for run in runs if (curve := curve_of(run, file))}
        return {seed: value for seed, value in numbers.items() if value is not None}

    numbers = {"areas": lambda curve: area(curve, budget), "reached": responses_to, "final": lambda curve: curve[-1][1]}
    measured = {
        variant: {name: of_each(runs, number) for name, number in numbers.items()} for variant, runs in results.items()
    }
    nothing = dict.fromkeys(numbers, {})
    for variant, ours in measured.items():
        if ours["areas"]:
            theirs = measured.get(baselines[variant], nothing)
            against = {name: paired(ours[name], theirs[name]) for name in numbers}
            found[variant] = Comparison(**ours, against={} if variant == baselines[variant] else against)
    return found


HEADER = ["variant", "area", "area, difference", "Student's", f"to {SOLVED} (seeds)"]
HEADER += [f"to {SOLVED}, difference", "final", "final, difference"]


def caption(budget: int, baselines: dict[str, str]) -> str:
    return (
        f"The area is the mean accuracy on the way to {budget:,} responses; to {SOLVED}: the responses spent when that "
        f"accuracy was first measured. {compared_with(baselines)}"
    )


def compared_with(baselines: dict[str, str]) -> str:
    """
    >>> compared_with({"a": "a", "b": "a"}), compared_with({"a": "a", "b": "a", "c": "c", "d": "c"})
    ('Differences are from a.', 'Differences are from the baseline that the study names for each variant: a; c.')
    """
    names = list(dict.fromkeys(baselines.values()))
    whose = "" if len(names) == 1 else "the baseline that the study names for each variant: "
    return f"Differences are from {whose}{'; '.join(names)}."


def comparison_rows(compared: dict[str, Comparison]) -> list[list[Cell]]:
    """A row for each variant, below HEADER."""
    rows = []
    for variant, of in compared.items():
        areas, reached, final = (of.against.get(name) for name in ("areas", "reached", "final"))
        half = Cell(f"± {areas.half:.3f}", areas.half) if areas and areas.half is not None else Cell("", None)
        row = [Cell(variant, None), mean_cell(list(of.areas.values()), ".3f"), difference_cell(areas, "+.3f"), half]
        row += [reached_cell(of), difference_cell(reached, "+,.0f")]
        row += [mean_cell(list(of.final.values()), ".2f"), difference_cell(final, "+.2f")]
        rows.append(row)
    return rows


def mean_cell(values: list[float], form: str) -> Cell:
    """
    >>> mean_cell([0.5, 1.0], ".3f")
    Cell(text='0.750', value=0.75)
    """
    mean = statistics.fmean(values)
    return Cell(format(mean, form), mean)


def difference_cell(difference: Difference | None, form: str) -> Cell:
    return Cell(difference.text(form), difference.mean) if difference else Cell("", None)


def reached_cell(of: Comparison) -> Cell:
    """
    >>> reached_cell(Comparison({0: 0.2, 1: 0.7}, {1: 2208}, {}, {})).text
    '2,208 (1 of 2)'
    """
    mean = statistics.fmean(of.reached.values()) if of.reached else math.inf
    spent = f"{mean:,.0f}" if of.reached else "never"
    return Cell(f"{spent} ({len(of.reached)} of {len(of.areas)})", mean)


def markdown(header: list[str], rows: list[list[Cell]]) -> str:
    """
    >>> print(markdown(["a|b", "c"], [[Cell("x|<b>", None), Cell("1", 1)]]))
    | a\\|b | c |
    | --- | --- |
    | x\\|\\<b> | 1 |
    """
    table = [header, ["---"] * len(header), *[[cell.text for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(map(plain, row))} |" for row in table)


def plain(text: str) -> str:
    """A name in Markdown: no new cell begins in it, no HTML, and no new line."""
    return " ".join(re.sub(r"[|<]", r"\\\g<0>", text).split())


# ------------------------------------------------------------------------------------------------ the figure of a study

WIDTH, COLUMNS = 10, 4  # inches; small pictures in a row
GAIN, LOSS, OPEN, BASE = "#1b9e77", "#d95f02", "#7b8794", "#b0b7c0"  # better, worse, not shown, the baseline


def draw_study(results: dict[str, list[dict]], baselines: dict[str, str], file: Path) -> None:
    """The figure of a study: what each variant gains or loses, then how its accuracy grew.

    Of the first held-out file; the tables beside the figure have all.
    """
    from matplotlib import rc_context  # takes a while, and whoever compares does not always draw
    from matplotlib.figure import Figure

    name = files_of(results)[0]
    compared = compare(results, name, baselines)
    rows = math.ceil(len(compared) / COLUMNS)
    heights = [0.9 + 0.3 * len(compared), 0.6 + 1.7 * rows]
    with rc_context({"text.parse_math": False}):  # a $ in a name is no formula
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        forest, curves = figure.subfigures(2, 1, height_ratios=heights)
        draw_forest(forest.subplots(), compared, baselines, f"{name}: area up to {shared_budget(results):,} responses")
        draw_curves(curves, results, list(compared), baselines, name)
        figure.savefig(file, dpi=110)


def draw_forest(axis, compared: dict[str, Comparison], baselines: dict[str, str], title: str) -> None:
    """The paired difference of each variant's area, coloured where its interval (its bounds) leaves 0 out."""
    for row, (name, of) in enumerate(compared.items()):
        difference = of.against.get("areas")
        if not difference:
            if name == baselines[name]:
                axis.annotate("baseline", (0, row), xytext=(5, 0), textcoords="offset points", va="center", color=OPEN)
            continue
        low, high = difference.bounds
        colour = OPEN if low <= 0 <= high else GAIN if difference.mean > 0 else LOSS
        axis.plot(difference.seeds, [row] * len(difference.seeds), "o", color=BASE, markersize=3, zorder=1)
        if difference.interval:
            axis.plot([low, high], [row, row], color=colour, linewidth=1.2)
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


def draw_curves(
    figure, results: dict[str, list[dict]], variants: list[str], baselines: dict[str, str], name: str
) -> None:
    """Accuracy against all responses, a small picture for each variant: every seed thin, the mean thick, and grey what
    its baseline's mean is."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes = figure.subplots(math.ceil(len(variants) / COLUMNS), COLUMNS, sharex=True, sharey=True, squeeze=False)
    axes = [axis for row in axes for axis in row]
    heights = [y for variant in variants for run in results[variant] for _, y in curve_of(run, name)]
    low, high = min(0, *heights), max(1, *heights)  # a reward of the user's own may go beyond 0 and 1
    for axis, variant in zip(axes, variants, strict=False):
        curves = [curve for run in results[variant] if (curve := curve_of(run, name))]
        axis.plot(*mean_curve([curve_of(run, name) for run in results[baselines[variant]]]), color=BASE, linewidth=3)
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), color="#1f77b4", alpha=0.35, linewidth=0.8)
        axis.plot(*mean_curve(curves), color="#1f77b4", linewidth=1.8, marker="o", markersize=2.5)
        axis.set_title("\n".join(wrap(variant, 30)), fontsize=8)
        axis.set(ylim=(low - 0.04 * (high - low), high + 0.04 * (high - low)), yticks=[low, (low + high) / 2, high])
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
