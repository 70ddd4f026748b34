"""What a video holds: its windows, measured, or the reason why it is left out. Kept, so that a second run looks again
only at files that changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from mmaudio.data.audio import read_audio
from mmaudio.data.clips import STRIDE, VIDEO_SUFFIXES
from mmaudio.data.video import LACKING, covered, picture_end, probe
from mmaudio.errors import ConfigError, DataError
from mmaudio.model.spec import CLIP_FPS, SECONDS, SEGMENT_FRAMES, SYNC_FPS

VERSION = 1
"""Raised whenever the code measures or judges differently."""
SOUND_GAP = 0.1
"""Seconds of a window, at either end, that may have no sound."""
BLOCK = 0.05
"""Seconds of the blocks that silence is measured in."""
FLOOR_DB = -120.0
EDGE = 65_536
"""Bytes at a file's head and tail that its fingerprint covers."""


@dataclass(frozen=True)
class ScanSettings:
    """How a video is cut into windows."""

    seconds: float = SECONDS
    """Duration of a window."""
    stride: float = STRIDE
    """Seconds between the starts of two windows."""
    silence_db: float = -60.0
    """A window whose peak is below this, in decibels of full scale, is silent and left out."""

    def __post_init__(self) -> None:
        if self.seconds < SEGMENT_FRAMES / SYNC_FPS:
            raise ConfigError(f"seconds={self.seconds}: at least {SEGMENT_FRAMES / SYNC_FPS} s are needed; 8 is usual")
        if self.stride <= 0:
            raise ConfigError(f"stride={self.stride}: more than 0 s; half a clip is usual")


@dataclass(frozen=True)
class Span:
    """One window of a video and its sound's measurements, in decibels of full scale."""

    start: float
    end: float
    peak_db: float
    rms_db: float
    silence: float
    """Share of the blocks whose peak is below the threshold."""
    reason: str = ""
    """Why it is left out; empty where it is used."""


@dataclass(frozen=True)
class Scan:
    """What was found in one file."""

    video: str
    """Name of the file, which is its path relative to the folder."""
    key: str
    """Hash of the file's fingerprint and the settings."""
    reason: str = ""
    """Why the whole file is left out; empty where it is used."""
    spans: list[Span] = field(default_factory=list)


def fingerprint(path: Path) -> str:
    """A hash of size, time of change and both ends of a file."""
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, status.st_size - EDGE))
        digest.update(file.read(EDGE))
    return digest.hexdigest()


def scan_key(path: Path, settings: ScanSettings) -> str:
    """Changes with the file and with anything that decides about its windows."""
    stated = json.dumps([path.name, fingerprint(path), asdict(settings), VERSION])
    return hashlib.sha256(stated.encode()).hexdigest()


def scan_video(path: Path, settings: ScanSettings) -> Scan:
    """Look through one file: header, all packets, all sound; nothing of it is raised."""
    key = scan_key(path, settings)
    try:
        return Scan(path.name, key, spans=_spans(path, settings))
    except DataError as error:
        return Scan(path.name, key, reason=str(error).removeprefix(f"{path.name}: "))


def _spans(path: Path, settings: ScanSettings) -> list[Span]:
    """The file's windows; DataError with the reason where none can be used."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise DataError(f"{path.name}: no video file ({path.suffix or 'no suffix'})")
    info = probe(path)
    if info.audio_rate is None:
        raise DataError(f"{path.name}: no sound")
    end = picture_end(info)
    waveform, rate = read_audio(path, info)
    reached = info.origin + max(end, len(waveform) / rate) if info.stated == "file" else end
    if info.stated and info.duration - reached > LACKING:
        raise DataError(f"{path.name}: cut off: {info.duration:.2f} s are stated, it ends after {reached:.2f} s")
    count = _count(end, settings)
    if count == 0:
        raise DataError(f"{path.name}: {end:.2f} s long, shorter than a clip of {settings.seconds:g} s")
    spans = [_span(waveform, rate, index * settings.stride, settings) for index in range(count)]
    if all(span.reason for span in spans):
        raise DataError(f"{path.name}: {spans[0].reason}" + (" throughout" if count > 1 else ""))
    return spans


def _count(end: float, settings: ScanSettings) -> int:
    """How many windows have a frame for each of their instants."""
    last = max((math.floor(rate * settings.seconds + 1e-6) - 1) / rate for rate in (CLIP_FPS, SYNC_FPS))
    count = 0
    while covered(end, count * settings.stride + last):
        count += 1
    return count


def _span(waveform: Tensor, rate: int, start: float, settings: ScanSettings) -> Span:
    end = start + settings.seconds
    window = waveform[round(start * rate) : round(end * rate)]
    if len(window) < (settings.seconds - SOUND_GAP) * rate:
        sound = len(waveform) / rate
        return Span(start, end, FLOOR_DB, FLOOR_DB, 1.0, reason=f"the sound ends at {sound:.2f} s")
    block = max(1, round(BLOCK * rate))
    peaks = window[: len(window) // block * block].reshape(-1, block).abs().amax(1)
    peak = _decibels(float(window.abs().max()))
    return Span(
        start=start,
        end=end,
        peak_db=peak,
        rms_db=_decibels(float(window.double().square().mean().sqrt())),
        silence=round(float((peaks < 10 ** (settings.silence_db / 20)).double().mean()), 3),
        reason="silent" if peak < settings.silence_db else "",
    )


def _decibels(amplitude: float) -> float:
    return round(max(FLOOR_DB, 20 * math.log10(amplitude)), 2) if amplitude > 0 else FLOOR_DB


class ScanStore:
    """The scans of a folder in a file of JSON lines; a line is added as soon as a video is through."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._ragged = bool(text) and not text.endswith("\n")
        self._known: dict[str, Scan] = {}
        for line in text.splitlines():
            scan = _parsed(line)
            if scan is not None:
                self._known[scan.key] = scan

    def find(self, path: Path, settings: ScanSettings) -> Scan | None:
        """The scan of a file where neither it nor the settings changed."""
        return self._known.get(scan_key(path, settings))

    def add(self, scan: Scan) -> None:
        """Keep `scan`."""
        self._known[scan.key] = scan
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._ragged + json.dumps(asdict(scan), ensure_ascii=False) + "\n")
        self._ragged = False


def _parsed(line: str) -> Scan | None:
    """The scan that a line holds; None for one that a kill cut off."""
    try:
        stated = json.loads(line)
        return Scan(**{**stated, "spans": [Span(**span) for span in stated["spans"]]})
    except (ValueError, TypeError, KeyError):
        return None
