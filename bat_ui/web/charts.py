"""Line charts as SVG text: no script, no request, light and dark by the page's own colours (css classes in theme.py).

In: series of points.  Out: one `<figure>` with axes, a legend and a sentence for those who cannot see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

import numpy as np

WIDTH, HEIGHT = 900, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 34
LETTER = 8  # width of a mark's letter, at most


@dataclass(frozen=True)
class Series:
    """Points to be joined; `style` is a css class, an empty label leaves the series out of the legend."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Mark:
    """A labelled dot with a line down to the x axis."""

    x: float
    y: float
    label: str
    style: str = "mark"


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    description: str,
    marks: Sequence[Mark] = (),
    zero: bool = True,
) -> str:
    """The chart; x counts something, y starts at 0 if `zero`.  Nothing for series without points."""
    points = [p for s in series for p in s.points]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = 0.0 if zero else min(p[1] for p in points), max(p[1] for p in points)
    y_ticks = _ticks(y_low, y_high, 4)
    x_ticks = [t for t in _ticks(x_low, x_high, 5, whole=True) if x_low <= t <= x_high]
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = at(tick, y_low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    for one in series:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in one.points))
        parts.append(f'<polyline class="{one.style}" points="{path}"/>')
    for mark in marks:
        x, y = at(mark.x, mark.y)
        anchor = "end" if x > WIDTH * 0.7 else "start"
        parts.append(f'<line class="{mark.style}" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<circle class="{mark.style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        shift = -10 if anchor == "end" else 10
        end = x + shift + LETTER * len(mark.label) * (-1 if anchor == "end" else 1)
        lines = [[at(*p) for p in one.points] for one in series]
        above = min([y, *(_highest(line, min(x, end), max(x, end)) for line in lines)])
        parts.append(
            f'<text class="note" x="{x + shift:.1f}" y="{max(above - 8, TOP + 8):.1f}" text-anchor="{anchor}">'
            f"{escape(mark.label)}</text>"
        )
    legend = "".join(f'<span class="{s.style}">{escape(s.label)}</span>' for s in series if s.label)
    return (
        f'<figure class="chart"><figcaption><b>{escape(y_label)}</b><span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{"".join(parts)}</svg></figure>'
    )


def _highest(line: Sequence[tuple[float, float]], left: float, right: float) -> float:
    """The least y, which is the highest place, of a line between two x, all in pixels; infinite where it has none."""
    xs, ys = zip(*line)
    inside = [y for x, y in line if left <= x <= right]
    ends = [float(np.interp(x, xs, ys)) for x in (left, right) if xs[0] <= x <= xs[-1]]
    return min([*inside, *ends], default=float("inf"))


def smoothed(values: Sequence[float], keep: float = 0.92) -> list[float]:
    """Exponential moving average, without the pull of its start towards zero."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + 1 - keep
        result.append(total / weight)
    return result


def _ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers, whole ones if `whole`, from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = max(span / count, 1.0 if whole else 0.0)
    size = 10.0 ** floor(log10(rough))
    step = next(m * size for m in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)) if m * size >= rough * 0.999)
    first, last = int(low // step), -int(-high // step)
    return [round(i * step, 12) for i in range(first, last + 1)]
