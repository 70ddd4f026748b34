"""What a video holds: its windows, measured, or the reason why it is left out. Kept, so that a second run looks again
only at files that changed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmaudio.data.audio_stats import FLOOR_DB, FLOOR_LUFS, Heard, heard, levels, lufs
from mmaudio.data.clips import STRIDE, VIDEO_SUFFIXES
from mmaudio.data.shots import cut_detector
from mmaudio.data.speech import speech_detector
from mmaudio.data.video_stats import Interval, Timeline, share, watch
from mmaudio.errors import ConfigError, DataError
from mmaudio.media.audio import sound_blocks, sound_rate
from mmaudio.media.video import VideoInfo, check_whole, covered, probe
from mmaudio.model.spec import CLIP_FPS, SECONDS, SEGMENT_FRAMES, SYNC_FPS
from mmaudio.utils.files import unwritable

VERSION = 3
"""Raised whenever the code measures differently."""
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
    """A block whose peak is below this, in decibels of full scale, is silent."""
    max_gap: float = 1.0
    """Seconds between two frames, beyond which pictures are missing there; no window lies across."""
    track: int = 0
    """Number of the sound track, from 0 on."""
    scenes: bool = False
    """Whether windows keep to one shot."""
    scene_tolerance: float = 0.25
    """Seconds of the next shot that a window may reach into."""
    flags: bool = False
    """Whether speech and music are looked for."""

    def __post_init__(self) -> None:
        for name in ("seconds", "stride", "silence_db", "max_gap", "scene_tolerance"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)}: a finite number is expected")
        if self.seconds < SEGMENT_FRAMES / SYNC_FPS:
            raise ConfigError(f"seconds={self.seconds}: at least {SEGMENT_FRAMES / SYNC_FPS} s are needed; 8 is usual")
        if self.stride < 1 / SYNC_FPS:
            raise ConfigError(f"stride={self.stride}: at least {1 / SYNC_FPS} s, a frame; half a clip is usual")
        if self.max_gap <= 0 or self.scene_tolerance < 0 or self.track < 0:
            raise ConfigError(
                f"max_gap={self.max_gap}, scene_tolerance={self.scene_tolerance}, audio track {self.track}: the gap is "
                "more than 0 s, the others at least 0"
            )

    @property
    def last(self) -> float:
        """The last instant that has a frame, in seconds from a window's start."""
        return max((math.floor(rate * self.seconds + 1e-6) - 1) / rate for rate in (CLIP_FPS, SYNC_FPS))


@dataclass(frozen=True)
class Span:
    """One window of a video and what was measured of it; `data.clips.Clip` says what each is."""

    start: float
    end: float
    peak_db: float = FLOOR_DB
    rms_db: float = FLOOR_DB
    silence: float = 1.0
    lufs: float = FLOOR_LUFS
    clipped: float = 0.0
    black: float = 0.0
    frozen: float = 0.0
    mismatch: float = 0.0
    speech: float | None = None
    music: float | None = None
    reason: str = ""
    """Why it can be no clip, whatever the rules say; empty where it can."""


@dataclass(frozen=True)
class Scan:
    """What was found in one file."""

    video: str
    """Its path relative to the folder of videos, with slashes."""
    key: str
    """Hash of the file's fingerprint and the settings."""
    reason: str = ""
    """Why the whole file is left out; empty where it is used."""
    spans: list[Span] = field(default_factory=list)
    note: str = ""
    """What a user should know of a file that is used."""


def fingerprint(path: Path) -> str:
    """A hash of size, time of change and both ends of a file; empty where it cannot be read."""
    try:
        status = path.stat()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, status.st_size - EDGE))
            digest.update(file.read(EDGE))
    except OSError:
        return ""
    return digest.hexdigest()


def scan_key(path: Path, settings: ScanSettings, video: str) -> str:
    """Changes with the file and with anything that decides about its windows."""
    stated = json.dumps([video, fingerprint(path), asdict(settings), VERSION])
    return hashlib.sha256(stated.encode()).hexdigest()


def scan_video(path: Path, settings: ScanSettings, video: str | None = None) -> Scan:
    """Look through one file, known as `video`: header, all pictures, all sound. What it lacks is a reason, no error."""
    video = path.name if video is None else video
    key = scan_key(path, settings, video)
    try:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise DataError(f"{path.name}: no video file ({path.suffix or 'no suffix'})")
        info = probe(path, settings.track)
        return Scan(video, key, spans=_spans(info, settings), note=_note(info))
    except DataError as error:
        return Scan(video, key, reason=str(error).removeprefix(f"{path.name}: "))


def _spans(info: VideoInfo, settings: ScanSettings) -> list[Span]:
    """The file's windows; DataError with the reason where there is none."""
    name, rate = info.path.name, sound_rate(info)
    line = watch(info, settings.max_gap, cut_detector(info.fps) if settings.scenes else None)
    if not line.parts:
        raise DataError(f"{name}: its picture ({info.codec}) cannot be decoded")
    if line.restart is None:
        check_whole(info, line.end)
    stretches = _stretches(line, settings)
    windows = [window for stretch in stretches for window in _windows(*stretch, settings)]
    if not windows and len(stretches) == 1:
        raise DataError(f"{name}: {line.end:.2f} s long, shorter than a clip of {settings.seconds:g} s")
    if not windows:
        longest = max(end - start for start, end, _ in stretches)
        what = "without a gap in its time stamps" + " or a new shot" * bool(line.cuts)
        raise DataError(f"{name}: at most {longest:.2f} s {what}, shorter than a clip of {settings.seconds:g} s")
    detector = speech_detector() if settings.flags else None
    spans = []
    for (start, end), sound in zip(windows, heard(sound_blocks(info), rate, windows), strict=True):
        speech, music = (None, None) if detector is None else detector(sound.wave, rate)
        spans.append(_measured(start, end, sound, rate, line, settings, speech, music))
    return sorted([*spans, *_unusable(line, stretches, settings)], key=lambda span: span.start)


def _stretches(line: Timeline, settings: ScanSettings) -> list[tuple[float, float, bool]]:
    """From, to, and whether it is the picture's end that it ends with: what windows may lie in."""
    found = []
    for start, end in line.parts:
        bounds = [start, *(cut for cut in line.cuts if start < cut < end), end]
        found += [(a, b, b == line.end) for a, b in itertools.pairwise(bounds)]
    return found


def _windows(start: float, end: float, final: bool, settings: ScanSettings) -> list[Interval]:
    """The windows of one stretch: every instant of them has a frame in it."""
    made: list[Interval] = []
    tolerance = settings.scene_tolerance if settings.scenes and not final else 0.0
    while True:
        first = round(start + len(made) * settings.stride, 6)
        last = first + settings.last
        if not (covered(end, last) if final else last <= end + tolerance):
            return made
        made.append((first, round(first + settings.seconds, 6)))


def _measured(
    start: float,
    end: float,
    sound: Heard,
    rate: int,
    line: Timeline,
    settings: ScanSettings,
    speech: float | None,
    music: float | None,
) -> Span:
    peak, rms, silence = levels(sound.wave, rate, settings.silence_db)
    return Span(
        start=start,
        end=end,
        peak_db=peak,
        rms_db=rms,
        silence=silence,
        lufs=lufs(sound.wave, rate),
        clipped=round(float(sound.full.double().mean()), 5) if len(sound.full) else 0.0,
        black=round(share(line.black, start, end), 3),
        frozen=round(share(line.frozen, start, end), 3),
        mismatch=round(sound.missing, 3),
        speech=speech,
        music=music,
    )


def _unusable(line: Timeline, stretches: Sequence[tuple[float, float, bool]], settings: ScanSettings) -> list[Span]:
    """What of the picture can be in no window, where it is in several stretches."""
    found = []
    for start, end, final in stretches if len(stretches) > 1 else ():
        if not _windows(start, end, final, settings):
            reason = f"too short: {end - start:.2f} s between gaps or cuts, shorter than a clip"
            found.append(Span(start, end, reason=reason))
    if line.restart is not None:
        reason = f"time stamps jump back: what follows {line.restart:.2f} s is not used"
        found.append(Span(line.restart, line.restart, reason=reason))
    return found


def _note(info: VideoInfo) -> str:
    """What a user should know of the file."""
    if len(info.tracks) < 2:
        return ""
    named = [track.title or track.language.removeprefix("und") or f"number {n}" for n, track in enumerate(info.tracks)]
    return f"{len(info.tracks)} sound tracks ({', '.join(named)}): number {info.track} is used (--audio-track)"


class ScanStore:
    """The scans of a folder in a file of JSON lines; a line is added as soon as a video is through."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._ragged = bool(text) and not text.endswith("\n")
        self._known: dict[str, Scan] = {}
        for line in text.split("\n"):
            scan = _parsed(line)
            if scan is not None:
                self._known[scan.key] = scan

    def find(self, path: Path, settings: ScanSettings, video: str) -> Scan | None:
        """The scan of the file `path`, known as `video`, where neither it nor the settings changed."""
        return self._known.get(scan_key(path, settings, video))

    def add(self, scan: Scan) -> None:
        """Keep `scan`; MMAudioError where the file cannot be written."""
        self._known[scan.key] = scan
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._ragged + json.dumps(asdict(scan), ensure_ascii=False) + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._ragged = False


def _parsed(line: str) -> Scan | None:
    """The scan that a line holds; None for one that a kill cut off."""
    try:
        stated = json.loads(line)
        return Scan(**{**stated, "spans": [Span(**span) for span in stated["spans"]]})
    except (ValueError, TypeError, KeyError):
        return None
