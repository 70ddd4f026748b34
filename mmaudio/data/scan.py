"""Scan of a video file: its windows with measurements of video and audio, or the reason why it is left out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from mmaudio.data.audio_stats import FLOOR_DB, FLOOR_LUFS, integrated_loudness, measure_levels
from mmaudio.data.clips import DEFAULT_STRIDE
from mmaudio.data.filters import format_beside
from mmaudio.data.fingerprint import fingerprint
from mmaudio.data.shots import make_cut_detector
from mmaudio.data.speech import make_speech_detector
from mmaudio.data.video_files import VIDEO_SUFFIXES
from mmaudio.data.video_stats import Interval, VideoTimeline, measure_video, overlap_share
from mmaudio.errors import ConfigError, DataError
from mmaudio.media.audio import decode_audio, native_sample_rate
from mmaudio.media.audio_windows import AudioWindow, read_native_windows
from mmaudio.media.gain import LevelMeter, video_gain_db
from mmaudio.media.streams import StreamChoice, limit_codec_threads
from mmaudio.media.video import VideoInfo, check_not_truncated, has_frame_at, probe, timing_key
from mmaudio.model.spec import CLIP_FPS, CLIP_SECONDS, FRAMES_PER_SEGMENT, SYNC_FPS

VERSION = 7
"""Raised whenever the code measures differently."""


@dataclass(frozen=True)
class ScanSettings:
    """How a video is cut into windows. A change of any value, or of a field's name, makes earlier scans invalid."""

    seconds: float = CLIP_SECONDS
    """Duration of a window."""
    stride: float = DEFAULT_STRIDE
    """Seconds between the starts of two windows."""
    silence_db: float = -60.0
    """A block whose peak is below this, in decibels of full scale, is silent."""
    max_gap: float = 1.0
    """Seconds between two frames, beyond which frames are missing; no window spans such a gap."""
    track: int = 0
    """Number of the audio track, from 0 on."""
    video_track: int | None = None
    """Number of the picture, from 0 on; None: the default one, else the longest that moves."""
    scenes: bool = False
    """Whether windows stay within one shot."""
    scene_tolerance: float = 0.25
    """Seconds of the next shot that a window may reach into."""
    flags: bool = False
    """Whether speech and music are detected."""

    def __post_init__(self) -> None:
        for name in ("seconds", "stride", "silence_db", "max_gap", "scene_tolerance"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)}: a finite number is expected")
        if self.seconds < FRAMES_PER_SEGMENT / SYNC_FPS:
            raise ConfigError(
                f"seconds={self.seconds}: at least {FRAMES_PER_SEGMENT / SYNC_FPS} s are needed; 8 is usual"
            )
        if self.stride < 1 / SYNC_FPS:
            raise ConfigError(f"stride={self.stride}: at least {1 / SYNC_FPS} s, a frame; half a clip is usual")
        if self.max_gap <= 0 or self.scene_tolerance < 0:
            raise ConfigError(
                f"max_gap={self.max_gap}, scene_tolerance={self.scene_tolerance}: the gap is more than 0 s, the other "
                "at least 0"
            )
        for flag, number in (("--audio-track", self.track), ("--video-track", self.video_track)):
            if number is not None and number < 0:
                raise ConfigError(f"{flag} {number}: tracks are counted from 0")

    @property
    def streams(self) -> StreamChoice:
        """What of a video is used."""
        return StreamChoice(self.track, self.video_track)

    @property
    def last_frame_time(self) -> float:
        """Time of the last frame that an encoder needs, in seconds from a window's start."""
        return max((math.floor(rate * self.seconds + 1e-6) - 1) / rate for rate in (CLIP_FPS, SYNC_FPS))


@dataclass(frozen=True)
class MeasuredWindow:
    """One window of a video with its measurements; `data.clips.Clip` documents the fields."""

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
class VideoScan:
    """The windows of one file, or the reason why there are none."""

    video: str
    """Its path relative to the folder of videos, with slashes."""
    key: str
    """Hash of the file's fingerprint and the settings."""
    reason: str = ""
    """Why the whole file is left out; empty where it is used."""
    windows: list[MeasuredWindow] = field(default_factory=list)
    note: str = ""
    """A hint for the user about a file that is used."""
    gain_db: float = 0.0
    """The gain in decibels that brings the video to the loudness of training; see `media.gain`."""
    track: int = 0
    """Number of the audio track, from 0 on."""
    video_track: int | None = None
    """Number of the picture, from 0 on; None: the only one."""
    channel: int | None = None
    """The only channel of the audio that is used; None: the mean of all."""

    @property
    def streams(self) -> StreamChoice:
        """What of the video is used."""
        return StreamChoice(self.track, self.video_track, self.channel)


class _Segment(NamedTuple):
    """A stretch of the video stream without gaps, and without cuts where scenes are detected."""

    start: float
    end: float
    is_last: bool
    """Whether it ends with the video stream."""


def scan_key(path: Path, settings: ScanSettings, video: str) -> str:
    """Hash of the file and of everything that determines its windows."""
    content = json.dumps([video, fingerprint(path), asdict(settings), VERSION, *timing_key(path, settings.streams)])
    return hashlib.sha256(content.encode()).hexdigest()


def scan_video(path: Path, settings: ScanSettings, video: str | None = None) -> VideoScan:
    """Scan one file, known as `video`: header, all frames, all audio. A defect becomes a reason, not an error."""
    video = path.name if video is None else video
    key = scan_key(path, settings, video)
    try:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise DataError(f"{path.name}: no video file ({path.suffix or 'no suffix'})")
        info = probe(path, settings.streams)
        meter = LevelMeter(native_sample_rate(info))  # no video is decoded where there is no audio
        timeline = measure_video(info, settings.max_gap, make_cut_detector(info.fps) if settings.scenes else None)
        windows = _measure_windows(info, timeline, settings, meter)
        if (channel := meter.channel_instead_of_mean()) is not None:
            info, meter = replace(info, channel=channel), LevelMeter(native_sample_rate(info))
            windows = _measure_windows(info, timeline, settings, meter)
        return VideoScan(
            video,
            key,
            windows=windows,
            note=_describe_file(info, timeline),
            gain_db=video_gain_db(meter.peaks),
            track=info.audio_track,
            video_track=info.video_track if info.video_track_count > 1 else None,
            channel=info.channel,
        )
    except DataError as error:
        return VideoScan(video, key, reason=str(error).removeprefix(f"{path.name}: "))


def scan_on_threads(count: int, path: Path, settings: ScanSettings, video: str) -> VideoScan:
    """`scan_video` with `count` threads, for a process beside others that do the same."""
    torch.set_num_threads(count)
    with limit_codec_threads(count):
        return scan_video(path, settings, video)


def _measure_windows(
    info: VideoInfo, timeline: VideoTimeline, settings: ScanSettings, meter: LevelMeter
) -> list[MeasuredWindow]:
    """The file's windows; DataError with the reason where there is none."""
    if not timeline.continuous:
        raise DataError(f"{info.path.name}: its picture ({info.codec}) cannot be decoded")
    if timeline.restart is None:
        check_not_truncated(info, timeline.end)
    segments = _find_segments(timeline, settings)
    times = [window for segment in segments for window in _window_times(segment, settings)]
    if not times:
        raise _too_short_error(info, timeline, segments, settings)
    windows = _measure_audio_and_video(info, times, timeline, settings, meter)
    return sorted([*windows, *_unusable_windows(timeline, segments, settings)], key=lambda window: window.start)


def _find_segments(timeline: VideoTimeline, settings: ScanSettings) -> list[_Segment]:
    """The segments that windows may lie in, by time."""
    segments = []
    for start, end in timeline.continuous:
        bounds = [start, *(cut for cut in timeline.cuts if start < cut < end), end]
        segments += [_Segment(a, b, b == timeline.end) for a, b in itertools.pairwise(bounds)]
    return segments


def _window_times(segment: _Segment, settings: ScanSettings) -> list[Interval]:
    """Start and end of the windows of one segment: every instant of them has a frame in it."""
    times: list[Interval] = []
    tolerance = settings.scene_tolerance if settings.scenes and not segment.is_last else 0.0
    while True:
        start = round(segment.start + len(times) * settings.stride, 6)
        last_frame = start + settings.last_frame_time
        if not (has_frame_at(segment.end, last_frame) if segment.is_last else last_frame <= segment.end + tolerance):
            return times
        times.append((start, round(start + settings.seconds, 6)))


def _too_short_error(
    info: VideoInfo, timeline: VideoTimeline, segments: Sequence[_Segment], settings: ScanSettings
) -> DataError:
    """The error for a video without a window."""
    name, shortest = info.path.name, f"shorter than a clip of {settings.seconds:g} s"
    if len(segments) == 1:
        return DataError(f"{name}: {format_beside(timeline.end, settings.seconds, 2)} s long, {shortest}")
    longest = max(segment.end - segment.start for segment in segments)
    limits = "without a gap in its time stamps" + " or a new shot" * bool(timeline.cuts)
    return DataError(f"{name}: at most {format_beside(longest, settings.seconds, 2)} s {limits}, {shortest}")


def _measure_audio_and_video(
    info: VideoInfo, times: Sequence[Interval], timeline: VideoTimeline, settings: ScanSettings, meter: LevelMeter
) -> Iterator[MeasuredWindow]:
    """Measure the windows in one decoding pass of the audio."""
    sample_rate = native_sample_rate(info)
    detector = make_speech_detector() if settings.flags else None
    audio_windows = read_native_windows(meter.watch(decode_audio(info)), sample_rate, times)
    for (start, end), audio in zip(times, audio_windows, strict=True):
        speech, music = (None, None) if detector is None else detector(audio.waveform, sample_rate)
        peak_db, rms_db, silence = measure_levels(audio.waveform, sample_rate, settings.silence_db)
        yield MeasuredWindow(
            start=start,
            end=end,
            peak_db=peak_db,
            rms_db=rms_db,
            silence=silence,
            lufs=integrated_loudness(audio.waveform, sample_rate),
            clipped=_clipped_share(audio),
            black=round(overlap_share(timeline.black, start, end), 3),
            frozen=round(overlap_share(timeline.frozen, start, end), 3),
            mismatch=round(audio.missing_seconds, 3),
            speech=speech,
            music=music,
        )


def _clipped_share(audio: AudioWindow) -> float:
    """Share of the samples at full scale."""
    return round(float(audio.full_scale.double().mean()), 5) if len(audio.full_scale) else 0.0


def _unusable_windows(
    timeline: VideoTimeline, segments: Sequence[_Segment], settings: ScanSettings
) -> Iterator[MeasuredWindow]:
    """The segments that are too short for a window, where there are several, and what follows a restart."""
    for segment in segments if len(segments) > 1 else ():
        if not _window_times(segment, settings):
            length = format_beside(segment.end - segment.start, settings.seconds, 2)
            reason = f"too short: {length} s between gaps or cuts, shorter than a clip of {settings.seconds:g} s"
            yield MeasuredWindow(segment.start, segment.end, reason=reason)
    if timeline.restart is not None:
        reason = f"time stamps jump back: what follows {timeline.restart:.2f} s is not used"
        yield MeasuredWindow(timeline.restart, timeline.restart, reason=reason)


def _describe_file(info: VideoInfo, timeline: VideoTimeline) -> str:
    """Notes on the choice among several tracks, pictures and channels, and on the order of the frames."""
    notes = [_describe_tracks(info), info.timing.describe(), info.describe_pictures()]
    if info.channel is not None:
        notes.append(f"its channels cancel each other (one is inverted): channel {info.channel} alone is used")
    if timeline.moved_frames:
        notes.append(f"frames out of turn, which were put in their places: {timeline.moved_frames}")
    if timeline.dropped_frames:
        notes.append(f"frames not used, as others had their instants before: {timeline.dropped_frames}")
    return "; ".join(filter(None, notes))


def _describe_tracks(info: VideoInfo) -> str:
    """A note on the choice among several audio tracks."""
    tracks = info.audio_tracks
    if len(tracks) < 2:
        return ""
    labels = [track.title or track.language.removeprefix("und") or f"number {n}" for n, track in enumerate(tracks)]
    return f"{len(tracks)} sound tracks ({', '.join(labels)}): number {info.audio_track} is used (--audio-track)"
