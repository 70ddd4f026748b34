"""Charts of a report as SVG, in the colours of its style sheet: curves, intervals, onsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 56, 16, 18, 44
"""Margins of a line chart in its own units."""
WIDE, NARROW = (720, 260), (380, 240)
"""Sizes of a line chart, for a wide screen and for a phone's."""
MAX_DOTS = 40
"""Points of a curve up to which each has a dot."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    style: str
    """Its class in the style sheet."""
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float] | None] = field(default=())
    """Lowest and highest y of each point, or None."""
    labels: Sequence[str] = ()
    """Text beside each point."""


@dataclass(frozen=True)
class Axes:
    """Axes of a chart: maps values to positions."""

    size: tuple[int, int]
    x: tuple[float, float]
    y: tuple[float, float]

    def to_x(self, value: float) -> float:
        """Horizontal position of a value."""
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.size[0] - LEFT - RIGHT)

    def to_y(self, value: float) -> float:
        """Vertical position of a value."""
        bottom = self.size[1] - BOTTOM
        return bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - TOP)


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
    size: tuple[int, int] = WIDE,
) -> str:
    """Curves over a common axis as SVG; empty without a point. `mark` is a vertical line with its label."""
    xs = [x for line in lines for x, y in line.points if math.isfinite(y)]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    ys += [end for line in lines for interval in line.intervals if interval is not None for end in interval]
    if not xs:
        return ""
    x_ticks, y_ticks = round_ticks(min(xs), max(xs), 5), round_ticks(min(ys), max(ys), 5 if size == WIDE else 4)
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    axes = Axes(size, (min(xs), max(max(xs), min(xs) + 1e-9)), (low, max(high, low + 1e-12)))
    shapes = [_draw_axes(axes, [x for x in x_ticks if min(xs) <= x <= max(xs)], y_ticks, x_label, y_label)]
    if mark is not None:
        shapes.append(_draw_mark(axes, *mark))
    shapes += [_draw_curve(axes, line) for line in lines]
    label = escape(f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}")
    view = f'viewBox="0 0 {size[0]} {size[1]}"'
    return f'<svg class="chart" {view} role="img" aria-label="{label}">{"".join(shapes)}</svg>'


def line_charts(
    lines: Sequence[Line], x_label: str, y_label: str, mark: tuple[float, str] | None = None
) -> dict[str, str]:
    """The same chart in two sizes, `wide` and `narrow`, of which the style sheet shows one; empty without a point."""
    sizes = {"wide": WIDE, "narrow": NARROW}
    return {name: line_chart(lines, x_label, y_label, mark, size) for name, size in sizes.items()}


def _draw_curve(axes: Axes, line: Line) -> str:
    shapes = []
    for (x, _), interval in zip(line.points, line.intervals, strict=False):
        if interval is not None:
            at, low, high = (f"{value:.1f}" for value in (axes.to_x(x), axes.to_y(interval[0]), axes.to_y(interval[1])))
            shapes.append(f'<line class="{line.style} span" x1="{at}" x2="{at}" y1="{low}" y2="{high}"/>')
    positions = [(axes.to_x(x), axes.to_y(y)) for x, y in line.points if math.isfinite(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
    shapes.append(f'<polyline class="{line.style}" points="{path}"/>')
    if len(positions) <= MAX_DOTS:
        shapes += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in positions]
    shapes += [_draw_label(axes, *place, text) for place, text in zip(positions, line.labels, strict=False)]
    return "".join(shapes)


def _draw_label(axes: Axes, x: float, y: float, text: str) -> str:
    """A point's label below it, as curves of gains level off above; at the right edge to its left."""
    anchor, shift = ("end", 2) if x > 0.8 * axes.size[0] else ("start", 4)
    return f'<text x="{x + shift:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_mark(axes: Axes, value: float, label: str) -> str:
    x, (width, height) = axes.to_x(value), axes.size
    anchor, shift = ("end", -6) if x > width / 2 else ("start", 6)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text x="{x + shift:.1f}" y="{TOP + 8}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _draw_axes(axes: Axes, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> str:
    width, height = axes.size
    shapes = []
    for value in y_ticks:
        y = axes.to_y(value)
        shapes.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        shapes.append(
            f'<text x="{axes.to_x(value):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    middle = (height - BOTTOM + TOP) / 2
    shapes.append(
        f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(shapes)


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span low to high."""
    value_range = max(high - low, abs(high) * 1e-3, 1e-9)
    raw_step = value_range / count
    power = 10 ** math.floor(math.log10(raw_step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def interval_chart(low: float, mean: float, high: float, limit: float, style: str) -> str:
    """An interval around its mean on an axis from -limit to limit with a line at zero, as SVG."""
    width, height = 200, 26

    def to_x(value: float) -> float:
        """Where a value lies in the picture; values beyond the axis lie at its end."""
        return width / 2 * (1 + max(-1.0, min(1.0, value / limit)) * 0.95)

    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="axis" x1="0" x2="{width}" y1="13" y2="13"/>'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="2" y2="{height - 2}"/>'
        f'<line class="{style} whisker" x1="{to_x(low):.1f}" x2="{to_x(high):.1f}" y1="13" y2="13"/>'
        f'<circle class="{style}" cx="{to_x(mean):.1f}" cy="13" r="5"/></svg>'
    )


def onset_strip(onsets: Sequence[float], reference: Sequence[float], seconds: float) -> str:
    """Onset times in seconds as a strip of ticks (SVG), in front of broad pale ones for the reference's onsets."""

    def draw_ticks(times: Sequence[float], style: str) -> str:
        """One tick per time, as an SVG path; nothing without times."""
        strokes = "".join(f"M{1000 * time / seconds:.0f} 0v9" for time in times)
        return f'<path class="{style}" d="{strokes}" vector-effect="non-scaling-stroke"/>' if strokes else ""

    strip = draw_ticks(reference, "reference") + draw_ticks(onsets, "onset")
    return f'<svg class="onsets" viewBox="0 0 1000 9" preserveAspectRatio="none" aria-hidden="true">{strip}</svg>'
