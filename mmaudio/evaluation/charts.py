"""Pictures of a report that follow its colours: SVG lines and intervals, and mel spectrograms as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
"""Margins of a line chart in its own units."""
MEL_RANGE = 3.5
"""Powers of ten from the brightest to the darkest colour of a mel picture."""
COLOURS = 96
"""Colours of a mel picture; fewer make a smaller file."""


@dataclass(frozen=True)
class Line:
    """One curve: its name, its class in the style sheet, its points."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, mark: tuple[float, str] | None = None) -> str:
    """Curves over a common axis as SVG; `mark` is a vertical line with its label. Empty where there is no point."""
    points = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / max(y_high - y_low, 1e-12)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(place, [x for x in x_ticks if x_low <= x <= x_high], y_ticks, (x_low, y_low), x_label, y_label)]
    if mark is not None:
        x, bottom = place(mark[0], y_low)
        anchor = "end" if x > WIDTH / 2 else "start"
        shift = -6 if anchor == "end" else 6
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>')
        parts.append(f'<text x="{x + shift:.1f}" y="{TOP + 10}" text-anchor="{anchor}">{escape(mark[1])}</text>')
    for line in lines:
        spots = [place(x, y) for x, y in line.points if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
        if len(spots) <= 40:
            parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in spots]
    label = escape(f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


Place = Callable[[float, float], tuple[float, float]]


def _axes(
    place: Place, x_ticks: list[float], y_ticks: list[float], origin: tuple[float, float], x_label: str, y_label: str
) -> str:
    left, bottom = place(*origin)
    parts = []
    for value in y_ticks:
        y = place(origin[0], value)[1]
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x = place(value, origin[1])[0]
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
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
        return width / 2 * (1 + max(-1.0, min(1.0, value / limit)) * 0.96)

    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="2" y2="{height - 2}"/>'
        f'<line class="{style} whisker" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="13" y2="13"/>'
        f'<circle class="{style}" cx="{across(middle):.1f}" cy="13" r="5"/></svg>'
    )


def mel_picture(mel: Tensor, log_base: float, top: float) -> str:
    """A mel spectrogram (M, T) as a PNG data URI, low notes below; `top` is the brightest colour's common logarithm."""
    decades = np.asarray(mel.float().cpu()) * (math.log(log_base) / math.log(10))
    level = np.clip((decades - top) / MEL_RANGE + 1, 0, 1)[::-1]
    picture = Image.fromarray(np.round(level * (COLOURS - 1)).astype(np.uint8), mode="P")
    shades = matplotlib.colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3]
    picture.putpalette(np.round(255 * shades).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
