"""Contact sheet of a split: an HTML page with every window's frames, waveform, measurements and reason if left out."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from mmaudio.data.clips import Clip
from mmaudio.data.folder_split import SplitResult
from mmaudio.data.scan import MeasuredWindow, VideoScan
from mmaudio.errors import DataError
from mmaudio.media.audio import decode_audio, native_sample_rate
from mmaudio.media.audio_windows import read_native_windows
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.streams import StreamChoice
from mmaudio.media.video import probe
from mmaudio.utils.files import atomic_write
from mmaudio.utils.templates import load_templates

STRIP_FRAMES = 6
STRIP_HEIGHT = 54
"""In pixels."""
WAVEFORM_BINS = 200


@dataclass(frozen=True)
class SheetRow:
    """One window on the page."""

    window: MeasuredWindow
    clip: Clip | None
    """None where it is left out."""
    reason: str
    strip: str
    """The frames as a JPEG data URI, empty where they cannot be read."""
    waveform: str
    """The waveform as an SVG path in a box of WAVEFORM_BINS by 2."""


def write_contact_sheet(
    path: Path,
    root: Path,
    result: SplitResult,
    progress: Callable[[list[VideoScan]], Iterable[VideoScan]] = iter,
) -> None:
    """Write the page of `result`, whose videos lie below `root`, to `path`; every video is decoded once more."""
    clips = {(clip.video, clip.start): clip for clip in result.clips}
    reasons = {(row.video, row.start): row.reason for row in result.left_out}
    scans = [scan for scan in result.scans if scan.windows]
    videos = [
        (scan, reasons.get((scan.video, None), ""), _build_rows(root, scan, clips, reasons)) for scan in progress(scans)
    ]
    with_windows = {scan.video for scan in scans}
    unusable_files = [row for row in result.unused if row.video not in with_windows]
    page = (
        load_templates("mmaudio.data", ".")
        .get_template("contact_sheet.html.j2")
        .render(result=result, videos=videos, unusable_files=unusable_files, bins=WAVEFORM_BINS)
    )
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")


def _build_rows(
    root: Path,
    scan: VideoScan,
    clips: dict[tuple[str, float], Clip],
    reasons: dict[tuple[str, float | None], str],
) -> list[SheetRow]:
    readable = [window for window in scan.windows if not window.reason]
    strips = _frame_strips(root / scan.video, scan.streams, readable)
    waveforms = _waveform_paths(root / scan.video, scan.streams, readable)
    rows = []
    for window in scan.windows:
        key = (scan.video, window.start)
        reason = window.reason or reasons.get(key) or reasons.get((scan.video, None), "")
        strip, waveform = ("", "") if window.reason else (next(strips, ""), next(waveforms, ""))
        rows.append(SheetRow(window, clips.get(key), reason, strip, waveform))
    return rows


def _frame_strips(path: Path, streams: StreamChoice, windows: list[MeasuredWindow]) -> Iterator[str]:
    """A strip of frames for every window, as far as they can be read."""
    if not windows:
        return
    seconds = windows[0].end - windows[0].start
    fps = max(1, round(STRIP_FRAMES / seconds))
    grid = FrameGrid(fps, min(STRIP_FRAMES, int(seconds * fps)), _resize_frame)
    try:
        for window in read_frame_windows(probe(path, streams), [window.start for window in windows], [grid]):
            yield _jpeg_data_uri(torch.cat(window.frames[0], dim=-1))
    except DataError:
        return  # the page shows the rest; extraction names the video


def _resize_frame(frames: Tensor) -> Tensor:
    """RGB (1, 3, H, W) at the strip's height."""
    width = max(1, min(4 * STRIP_HEIGHT, round(frames.shape[-1] * STRIP_HEIGHT / frames.shape[-2])))
    resized: Tensor = vision.resize(frames, [STRIP_HEIGHT, width], antialias=True)
    return resized


def _jpeg_data_uri(image: Tensor) -> str:
    """RGB (3, H, W), uint8, as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=60, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _waveform_paths(path: Path, streams: StreamChoice, windows: list[MeasuredWindow]) -> Iterator[str]:
    """The waveform of every window as an SVG path."""
    if not windows:
        return
    try:
        info = probe(path, streams)
        times = [(window.start, window.end) for window in windows]
        for audio in read_native_windows(decode_audio(info), native_sample_rate(info), times):
            yield _waveform_path(audio.waveform)
    except DataError:
        return


def _waveform_path(waveform: Tensor) -> str:
    """An SVG path around the highest and the lowest sample of each bin of (T,)."""
    bins = [samples for samples in torch.tensor_split(waveform, WAVEFORM_BINS) if len(samples)]
    tops = [f"{x},{1 - float(samples.max().clamp(-1, 1)):.2f}" for x, samples in enumerate(bins)]
    bottoms = [f"{x},{1 - float(samples.min().clamp(-1, 1)):.2f}" for x, samples in enumerate(bins)]
    return "M" + " ".join([*tops, *reversed(bottoms)]) + "Z" if bins else ""
