"""A page to look through before spending hours: every window of every video with a strip of its frames, its waveform,
what was measured, and whether it is used, or why not.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from mmaudio.data.audio_stats import heard
from mmaudio.data.clips import Clip
from mmaudio.data.folder_split import SplitResult
from mmaudio.data.scan import Scan, Span
from mmaudio.errors import DataError
from mmaudio.media.audio import sound_blocks, sound_rate
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.video import probe
from mmaudio.utils.files import writing

FRAMES = 6
"""Frames of a strip."""
HEIGHT = 54
"""Of a strip, in pixels."""
BINS = 200
"""Points of a waveform."""


@dataclass(frozen=True)
class Card:
    """One window on the page."""

    span: Span
    clip: Clip | None
    """None where it is left out."""
    reason: str
    strip: str
    """The frames as a JPEG data URI, empty where they cannot be read."""
    wave: str
    """The waveform as an SVG path in a box of BINS by 2."""


def write_contact_sheet(
    path: Path,
    root: Path,
    result: SplitResult,
    track: int = 0,
    progress: Callable[[list[Scan]], Iterable[Scan]] = iter,
) -> None:
    """Write the page of `result`, whose videos lie below `root`, to `path`; every video is decoded once more."""
    clips = {(clip.video, clip.start): clip for clip in result.clips}
    reasons = {(row.video, row.start): row.reason for row in result.left_out}
    usable = [scan for scan in result.scans if scan.spans]
    videos = [
        (scan, reasons.get((scan.video, None), ""), _cards(root, scan, clips, reasons, track))
        for scan in progress(usable)
    ]
    others = [row for row in result.unused if row.video not in {scan.video for scan in usable}]
    loader = jinja2.PackageLoader("mmaudio.data", ".")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = page.get_template("contact_sheet.html.j2").render(result=result, videos=videos, others=others, bins=BINS)
    with writing(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")


def _cards(
    root: Path,
    scan: Scan,
    clips: dict[tuple[str, float], Clip],
    reasons: dict[tuple[str, float | None], str],
    track: int,
) -> list[Card]:
    windows = [span for span in scan.spans if not span.reason]
    strips, waves = iter(_strips(root / scan.video, windows)), iter(_waves(root / scan.video, windows, track))
    cards = []
    for span in scan.spans:
        readable = not span.reason
        where = (scan.video, span.start)
        reason = span.reason or reasons.get(where) or reasons.get((scan.video, None), "")
        strip, wave = (next(strips, ""), next(waves, "")) if readable else ("", "")
        cards.append(Card(span, clips.get(where), reason, strip, wave))
    return cards


def _strips(path: Path, spans: list[Span]) -> Iterator[str]:
    """A strip of frames for every window, as far as they can be read."""
    if not spans:
        return
    rate = max(1, round(FRAMES / (spans[0].end - spans[0].start)))
    grid = Grid(rate, min(FRAMES, int((spans[0].end - spans[0].start) * rate)), _small)
    try:
        for window in read_windows(probe(path), [span.start for span in spans], [grid]):
            yield _jpeg(torch.cat(window.frames[0], dim=-1))
    except DataError:
        return  # the page shows the rest; extraction names the video


def _small(frames: Tensor) -> Tensor:
    """RGB (1, 3, H, W) at the strip's height."""
    width = max(1, min(4 * HEIGHT, round(frames.shape[-1] * HEIGHT / frames.shape[-2])))
    resized: Tensor = vision.resize(frames, [HEIGHT, width], antialias=True)
    return resized


def _jpeg(picture: Tensor) -> str:
    """RGB (3, H, W), uint8, as a data URI."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=60, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _waves(path: Path, spans: list[Span], track: int) -> Iterator[str]:
    """The waveform of every window as an SVG path: the highest and the lowest sample of each bin."""
    if not spans:
        return
    try:
        info = probe(path, track)
        for sound in heard(sound_blocks(info), sound_rate(info), [(span.start, span.end) for span in spans]):
            yield _outline(sound.wave)
    except DataError:
        return


def _outline(wave: Tensor) -> str:
    bins = [part for part in torch.tensor_split(wave, BINS) if len(part)]
    tops = [f"{x},{1 - float(part.max().clamp(-1, 1)):.2f}" for x, part in enumerate(bins)]
    bottoms = [f"{x},{1 - float(part.min().clamp(-1, 1)):.2f}" for x, part in enumerate(bins)]
    return "M" + " ".join([*tops, *reversed(bottoms)]) + "Z" if bins else ""
