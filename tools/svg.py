"""Pictures for the report as inline SVG: curves, sparklines, the lineage of templates.

They have classes rather than colours (tools/page/base.html), so that they follow the page into the dark and onto paper.
All text goes through Markup.format, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup

MOST_NUMBERS = 4  # beside jumps; more would hide each other
LONGEST_TITLE = 34  # letters that have room above a chart
COLOURS = 8  # classes c0, c1, ... of the style sheet; a ninth run begins again, in dashes (see polyline)
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 322, 26, 174  # the frame inside

Point = tuple[float, float | None]
Band = tuple[int, float, float, str]  # number of the run, from, to, what the mouse reads
Jump = tuple[int, float, float, float]  # number of the run, where, from, to


def nice_step(span: float) -> float:
    """The smallest of 1, 2, 5, 10, ... with which at most five steps cover the span.

    >>> nice_step(1.0), nice_step(37)
    (0.2, 10)
    """
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 5 * (1 - 1e-9))
    return int(step) if step >= 1 else step


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`.

    >>> ticks(0, 0.83), ticks(0, 3, whole=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0, 1, 2, 3])
    """
    step = nice_step(high - low or 1)
    step = max(1, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def short(number: float) -> str:
    """
    >>> short(0.25), short(20000)
    ('0.25', '20k')
    """
    return f"{number / 1000:g}k" if abs(number) >= 10_000 else f"{number:g}"


def elided(title: str) -> str:
    """A title without its middle, if it is too long for the room above a chart. Its end says most.

    >>> elided("hard: accuracy by epoch"), elided("olympiadbench-in-english: accuracy by responses")
    ('hard: accuracy by epoch', 'olympiadbe…: accuracy by responses')
    """
    return title if len(title) <= LONGEST_TITLE else f"{title[:10]}…{title[11 - LONGEST_TITLE :].lstrip()}"


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def chart(
    title: str,
    x_label: str,
    curves: list[tuple[str, list[Point]]],
    share: bool = False,
    up_to: float = 0,
    bands: Iterable[Band] = (),
    jumps: Iterable[Jump] = (),
) -> Markup:
    """One curve for each run, in the run's colour; a point says its numbers when the mouse is on it.

    share: the axis goes from 0 to 1, unless a reward of the user's own goes beyond. up_to: where the lower axis ends at
    the earliest, so that charts side by side can have the same. bands: parts of the lower axis to be shaded. jumps:
    changes of a level to be marked. Points without a value are left out; without any there is no picture.
    """
    known = [[(x, y) for x, y in points if y is not None and math.isfinite(y)] for _, points in curves]
    xs, ys = [x for points in known for x, _ in points], [y for points in known for _, y in points]
    if not xs:
        return Markup("")
    across = ticks(min(xs), max(up_to, *xs), whole=True)
    beyond = min(ys) < 0 or max(ys) > 1
    up = [0, 0.25, 0.5, 0.75, 1] if share and not beyond else ticks(min(0, *ys), max(0, *ys))

    def place(x: float, y: float) -> tuple[str, str]:
        right = LEFT + (RIGHT - LEFT) * (x - across[0]) / (across[-1] - across[0])
        return f"{right:.1f}", f"{BOTTOM + (TOP - BOTTOM) * (y - up[0]) / (up[-1] - up[0]):.1f}"

    # The bands of several runs lie upon each other: the more runs, the fainter, or they would hide the curves.
    bands, jumps = list(bands), list(jumps)
    opacity = min(0.13, 0.26 / max(1, len({i for i, *_ in bands})))
    shaded = []
    for i, start, stop, said in bands:
        left, right = (float(place(max(x, across[0]), 0)[0]) for x in (start, stop))
        shaded.append(
            Markup(
                '<rect class="band c{}" opacity="{:.2f}" x="{}" y="{}" width="{:.1f}" height="{}">'
                "<title>{}</title></rect>"
            ).format(i % COLOURS, opacity, left, TOP, right - left, BOTTOM - TOP, said)
        )
    grid = [
        Markup('<path class="grid" d="M{} {}H{}"/><text class="y" x="{}" y="{}" dy="4">{}</text>').format(
            *place(across[0], y), RIGHT, LEFT - 6, place(0, y)[1], short(y)
        )
        for y in up
    ]
    grid += [
        Markup('<text class="x" x="{}" y="{}">{}</text>').format(place(x, 0)[0], BOTTOM + 15, short(x)) for x in across
    ]
    drawn = []
    for i, ((label, _), points) in enumerate(zip(curves, known, strict=True)):
        dots = [
            Markup('<circle cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
                *place(x, y), f"{label}: {y:.4g} at {x_label} {x:g}"
            )
            for x, y in points
        ]
        many = "many" if len(points) > 30 else ""
        drawn.append(
            Markup('<g class="curve c{} {}">{}{}</g>').format(
                i % COLOURS, many, polyline(i, (place(x, y) for x, y in points)), join(dots)
            )
        )
    for i, x, before, after in jumps:
        (at, start), (_, stop), (_, middle) = (place(x, y) for y in (before, after, (before + after) / 2))
        number = Markup('<text x="{}" y="{}" dx="4" dy="4">{:+.2f}</text>').format(at, middle, after - before)
        drawn.append(
            Markup('<g class="jump c{}"><path d="M{} {}V{}"><title>{}: {:+.2f}</title></path>{}</g>').format(
                i % COLOURS, at, start, stop, curves[i][0], after - before, number if len(jumps) <= MOST_NUMBERS else ""
            )
        )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><text class="title" x="{}" y="14">{}'
        '<title>{}</title></text>{}<text class="x" x="{}" y="{}">{}</text>{}</svg>'
    ).format(
        WIDTH, HEIGHT, title, LEFT, elided(title), title, join(shaded + grid),
        (LEFT + RIGHT) / 2, HEIGHT - 4, x_label, join(drawn),
    )  # fmt: skip


def polyline(run: int, points: Iterable[tuple[str, str]]) -> Markup:
    """A run's curve. Its colour is its class's; from the ninth run on it has dashes with a dot between, or two, ..."""
    dots = " 2 3" * (run // COLOURS)
    style = Markup(' style="stroke-dasharray: 9 3{}"').format(dots) if dots else ""
    return Markup('<polyline points="{}"{}/>').format(" ".join(map(",".join, points)), style)


def key(run: int) -> Markup:
    """What a run's curve looks like, for the legend."""
    return Markup('<svg class="key curve c{}" viewBox="0 0 36 8">{}</svg>').format(
        run % COLOURS, polyline(run, [("0", "4"), ("36", "4")])
    )


def sparkline(shares: list[float], colour: int) -> Markup:
    """How a share went from epoch to epoch, small enough for a table's cell, in the colour of its run.

    From 0 to 1, unless a reward of the user's own goes beyond.
    """
    step, low, high = 72 / max(1, len(shares) - 1), min(0, *shares), max(1, *shares)
    heights = [18 - 16 * (share - low) / (high - low) for share in shares]
    line = " ".join(f"{4 + i * step:.1f},{height:.1f}" for i, height in enumerate(heights))
    said = " → ".join(f"{share:.2f}" for share in shares)
    return Markup(
        '<svg class="spark c{}" viewBox="0 0 80 20" role="img"><title>{}</title><polyline points="{}"/></svg>'
    ).format(colour % COLOURS, said, line)


def interval(mean: float, low: float, high: float, span: float) -> Markup:
    """A row of a forest plot, small enough for a table's cell: an interval beside zero, on an axis from -span to span.

    Its class says whether it leaves zero out: good, bad, or neither.
    """
    clear = "" if low <= 0 <= high else "good" if mean > 0 else "bad"
    left, middle, right = (f"{60 + 56 * value / (span or 1):.1f}" for value in (low, mean, high))
    return Markup(
        '<svg class="forest {}" viewBox="0 0 120 16" role="img"><title>{}</title><path class="grid" d="M60 0V16"/>'
        '<path class="range" d="M{} 8H{}"/><circle cx="{}" cy="8" r="3.5"/></svg>'
    ).format(clear, f"{mean:+.3f}, 95 %: {low:+.3f} to {high:+.3f}", left, right, middle)


def strip(scores: list[float]) -> Markup:
    """Which dev questions a template solves: a cell for each, filled where it does."""
    width = 160 / len(scores)
    cells = "".join(f"M{n * width:.2f} 1h{width:.2f}v10h-{width:.2f}z" for n, score in enumerate(scores) if score > 0)
    return Markup(
        '<svg class="strip" viewBox="0 0 160 12" role="img"><title>{} of {} solved</title>'
        '<rect width="160" height="12"/><path d="{}"/></svg>'
    ).format(sum(score > 0 for score in scores), len(scores), cells)


# ------------------------------------------------------------------------------------------------------- the lineage


def family_tree(parents: list[list[int | None]]) -> list[tuple[float, int]]:
    """(column, generation) of each candidate: every leaf has a column, a parent stands over the middle of its children.

    A merged candidate hangs under its first parent.

    >>> family_tree([[None], [0], [0], [1]])
    [(0.5, 0), (0.0, 1), (1.0, 1), (0.0, 2)]
    """
    children: dict[int | None, list[int]] = {}
    for k, above in enumerate(parents):
        children.setdefault(above[0] if above else None, []).append(k)
    places: dict[int, tuple[float, int]] = {}
    leaves = 0

    def settle(k: int, generation: int) -> float:
        nonlocal leaves
        below = [settle(child, generation + 1) for child in children.get(k, [])]
        leaves += not below
        column = (below[0] + below[-1]) / 2 if below else leaves - 1.0
        places[k] = column, generation
        return column

    for root in children[None]:
        settle(root, 0)
    return [places[k] for k in range(len(parents))]


def lineage(evolution: dict, anchor: str) -> Markup:
    """Who came from whom. The fuller a node, the better its dev score; a ring marks the cover.

    A node leads to the candidate's row, whose id is `anchor` and its number.
    """
    scores = [sum(row) / len(row) for row in evolution["dev_scores"]]
    at = [(36 + 64 * column, 24 + 80 * generation) for column, generation in family_tree(evolution["parents"])]
    edges, nodes = [], []
    for k, (x, y) in enumerate(at):
        for number, parent in enumerate(p for p in evolution["parents"][k] if p is not None):
            above_x, above_y = at[parent][0], at[parent][1] + 34  # below its score
            middle = (above_y + y - 16) / 2
            path = f"M{above_x} {above_y}C{above_x} {middle} {x} {middle} {x} {y - 16}"
            edges.append(Markup('<path class="{}" d="{}"/>').format("edge merged" if number else "edge", path))
        nodes.append(
            Markup(
                '<a href="#{}{}"><title>{}</title><circle class="{}" cx="{}" cy="{}" r="16" fill-opacity="{:.2f}"/>'
                '<text x="{}" y="{}" dy="4">{}</text><text class="score" x="{}" y="{}">{:.2f}</text></a>'
            ).format(
                anchor, k, evolution["candidates"][k] or "(empty: the bare question)",
                "chosen" if k in evolution["chosen"] else "", x, y, 0.7 * min(1, max(0, scores[k])),
                x, y, k, x, y + 29, scores[k],
            )
        )  # fmt: skip
    width, height = max(x for x, _ in at) + 36, max(y for _, y in at) + 36
    return Markup(
        '<div class="wide"><svg class="lineage" width="{}" height="{}" role="img" aria-label="lineage">{}{}</svg></div>'
    ).format(width, height, join(edges), join(nodes))
