"""A response coloured token by token, as HTML for notebooks and the report.

What a colour means is a *scale*: the template ratio, the importance ratio, the advantage, or a log-probability.
Colours are laid over whatever background the page has, so that light and dark pages can both be read; hovering shows
the number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

RED, BLUE = "214, 39, 40", "31, 119, 180"


@dataclass(frozen=True)
class Scale:
    """From a number to a colour: `low` is full red, `neutral` is none, `high` is full blue."""

    name: str
    low: float
    neutral: float
    high: float
    log: bool = False  # equal factors look equally strong
    inside: bool = False  # what lies outside [low, high] does not count: it is struck through

    def share(self, value: float) -> float:
        """-1 at `low`, 0 at `neutral`, 1 at `high`, and never beyond.

        >>> SCALES["ratio"].share(0.1), SCALES["advantage"].share(5.0)
        (-0.5, 1.0)
        """
        low, neutral, high, value = (
            math.log(max(x, 1e-30)) if self.log else x for x in (self.low, self.neutral, self.high, value)
        )
        away = (value - neutral) / (high - neutral if value > neutral else neutral - low)
        return max(-1.0, min(1.0, away))


SCALES = {
    "ratio": Scale("template ratio, bare / templated", 0.01, 1.0, 10.0, log=True, inside=True),
    "advantage": Scale("advantage", -2.0, 0.0, 2.0),
    "importance": Scale("importance ratio, new / old", 0.5, 1.0, 2.0, log=True),
    "logprob": Scale("log-probability", -5.0, 0.0, 0.0),
}
"""By name: what `coloured` takes as its scale."""


def coloured(
    tokens: Sequence[str], values: float | Sequence[float | None], scale: str | Scale, clipped: Sequence[bool] = ()
) -> str:
    """The tokens one after the other, each with its value's colour, as one line of HTML; all text is escaped.

    values: one for all tokens, or one each (None: no colour). clipped: tokens to be struck through, as they have no
    gradient; tokens outside a scale that masks (the template ratio's) are struck through by themselves.

    >>> coloured(["<b>", ";"], [None, 0.1], "ratio")  # doctest: +ELLIPSIS
    '<code ...>&lt;b&gt;<span title="0.1" style="background: rgba(214, 39, 40, 0.35)">;</span></code>'
    """
    scale = SCALES[scale] if isinstance(scale, str) else scale
    values = [values] * len(tokens) if isinstance(values, int | float) or values is None else values
    clipped = clipped or [False] * len(tokens)
    spans = [_span(*token, scale) for token in zip(tokens, values, clipped, strict=True)]
    return f'<code style="white-space: pre-wrap">{"".join(spans)}</code>'


def _span(token: str, value: float | None, clipped: bool, scale: Scale) -> str:
    if value is None or not math.isfinite(value):
        return escape(token)
    share = scale.share(value)
    style = f"background: rgba({BLUE if share > 0 else RED}, {round(0.7 * abs(share), 2)})"
    if clipped or scale.inside and not scale.low <= value <= scale.high:
        style += "; text-decoration: line-through; text-decoration-thickness: 2px"
    return f'<span title="{value:.3g}" style="{style}">{escape(token)}</span>'


def legend(name: str) -> str:
    """What the colours of a scale mean, as one line of HTML."""
    scale = SCALES[name]
    shown = dict.fromkeys((scale.low, scale.neutral, scale.high))
    spans = " ".join(_span(f" {value:g} ", value, False, scale) for value in shown)
    out = "; outside, struck through: masked" if scale.inside else ""
    return f"<small>{escape(scale.name)}: {spans}{out}</small>"
