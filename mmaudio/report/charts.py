"""Pictures of a report that follow its colours, as SVG: curves, intervals, onsets; and mel spectrograms as images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

LEFT, RIGHT, TOP, BOTTOM = 56, 16, 18, 44
"""Margins of a line chart in its own units."""
WIDE, NARROW = (720, 260), (380, 240)
"""Sizes of a line chart: for a desk's screen and for a phone's."""
MEL_RANGE = 3.5
"""Powers of ten from the brightest to the darkest colour of a mel picture."""
QUALITY = 60
"""WebP's: a mel picture of 8 s at 16 kHz takes some 7 kB, as PNG of the same colours 27 kB."""
DOTS = 40
"""A curve with at most so many points has a dot at each."""


@dataclass(frozen=True)
class Line:
    """One curve: its name, its class in the style sheet, its points, and an interval around each or none."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float] | None] = field(default=())
    """Lowest and highest y of each point."""


@dataclass(frozen=True)
class Frame:
    """Where values lie on a chart."""

    size: tuple[int, int]
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        """The horizontal place of a value."""
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.size[0] - LEFT - RIGHT)

    def up(self, value: float) -> float:
        """The vertical place of a value."""
        bottom = self.size[1] - BOTTOM
        return bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - TOP)


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
    size: tuple[int, int] = WIDE,
) -> str:
    """Curves over a common axis as SVG; `mark` is a vertical line with its label. Empty where there is no point."""
    xs = [x for line in lines for x, y in line.points if math.isfinite(y)]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    ys += [end for line in lines for span in line.spans if span is not None for end in span]
    if not xs:
        return ""
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 5 if size == WIDE else 4)
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    frame = Frame(size, (min(xs), max(max(xs), min(xs) + 1e-9)), (low, max(high, low + 1e-12)))
    parts = [_axes(frame, [x for x in x_ticks if min(xs) <= x <= max(xs)], y_ticks, x_label, y_label)]
    if mark is not None:
        parts.append(_mark(frame, *mark))
    parts += [_curve(frame, line) for line in lines]
    label = escape(f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}")
    view = f'viewBox="0 0 {size[0]} {size[1]}"'
    return f'<svg class="chart" {view} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def both_sizes(
    lines: Sequence[Line], x_label: str, y_label: str, mark: tuple[float, str] | None = None
) -> dict[str, str]:
    """The same chart as `wide` and `narrow`, one of which the style sheet shows; both empty without a point."""
    sizes = {"wide": WIDE, "narrow": NARROW}
    return {name: line_chart(lines, x_label, y_label, mark, size) for name, size in sizes.items()}


def _curve(frame: Frame, line: Line) -> str:
    parts = []
    for (x, _), span in zip(line.points, line.spans, strict=False):
        if span is not None:
            at, low, high = (f"{value:.1f}" for value in (frame.across(x), frame.up(span[0]), frame.up(span[1])))
            parts.append(f'<line class="{line.style} span" x1="{at}" x2="{at}" y1="{low}" y2="{high}"/>')
    spots = [(frame.across(x), frame.up(y)) for x, y in line.points if math.isfinite(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts.append(f'<polyline class="{line.style}" points="{path}"/>')
    if len(spots) <= DOTS:
        parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in spots]
    return "".join(parts)


def _mark(frame: Frame, value: float, label: str) -> str:
    x, (width, height) = frame.across(value), frame.size
    anchor, shift = ("end", -6) if x > width / 2 else ("start", 6)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text x="{x + shift:.1f}" y="{TOP + 8}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _axes(frame: Frame, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> str:
    width, height = frame.size
    parts = []
    for value in y_ticks:
        y = frame.up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        parts.append(
            f'<text x="{frame.across(value):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    middle = (height - BOTTOM + TOP) / 2
    parts.append(
        f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span low to high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def interval_chart(low: float, middle: float, high: float, limit: float, style: str) -> str:
    """An interval around its mean on an axis from -limit to limit with a line at zero, as SVG."""
    width, height = 200, 26

    def across(value: float) -> float:
        return width / 2 * (1 + max(-1.0, min(1.0, value / limit)) * 0.95)

    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="axis" x1="0" x2="{width}" y1="13" y2="13"/>'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="2" y2="{height - 2}"/>'
        f'<line class="{style} whisker" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="13" y2="13"/>'
        f'<circle class="{style}" cx="{across(middle):.1f}" cy="13" r="5"/></svg>'
    )


def onset_marks(own: Sequence[float], original: Sequence[float], seconds: float) -> str:
    """Onset times as a strip of ticks (SVG); the original's stand behind as broad pale ones."""

    def path(times: Sequence[float], style: str) -> str:
        strokes = "".join(f"M{1000 * time / seconds:.0f} 0v9" for time in times)
        return f'<path class="{style}" d="{strokes}" vector-effect="non-scaling-stroke"/>' if strokes else ""

    marks = path(original, "theirs") + path(own, "own")
    return f'<svg class="onsets" viewBox="0 0 1000 9" preserveAspectRatio="none" aria-hidden="true">{marks}</svg>'


def mel_picture(mel: Tensor, log_base: float, top: float) -> str:
    """A mel spectrogram (M, T) as a WebP data URI, low notes below; `top`: the brightest colour's common logarithm."""
    decades = np.asarray(mel.float().cpu()) * (math.log(log_base) / math.log(10))
    level = np.clip((decades - top) / MEL_RANGE + 1, 0, 1)[::-1]
    colours = np.round(255 * matplotlib.colormaps["magma"](level)[..., :3]).astype(np.uint8)
    return image_uri(Image.fromarray(colours), QUALITY)


def image_uri(image: Image.Image, quality: int) -> str:
    """A picture as a WebP data URI."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
