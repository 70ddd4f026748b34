"""Choice among the streams of a video file: which picture, which sound track, and which of its channels.

A picture is a video stream that is no cover. Pictures, sound tracks and channels are counted from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av.stream import Disposition

from mmaudio.errors import DataError

STILL_SECONDS = 0.2
"""A video stream that is no longer than this by the header is a still."""
_THREADS: ContextVar[int] = ContextVar("codec_threads", default=0)
"""Threads that decode a picture; 0: one per core."""


@contextmanager
def limit_codec_threads(count: int) -> Iterator[None]:
    """Pictures that are opened in the block are decoded by `count` threads, not by one per core."""
    token = _THREADS.set(count)
    try:
        yield
    finally:
        _THREADS.reset(token)


@dataclass(frozen=True)
class StreamChoice:
    """What of a file is used, by number."""

    audio_track: int = 0
    video_track: int | None = None
    """None: the default picture, else the longest that moves."""
    channel: int | None = None
    """The only channel of the sound that is used; None: the mean of all."""


DEFAULT_STREAMS = StreamChoice()


@dataclass(frozen=True)
class AudioTrack:
    """One audio track by the file's header."""

    sample_rate: int
    """In hertz; 0 where the header has none or the codec is unknown."""
    channels: int
    codec: str
    language: str
    title: str


def picture_streams(container: Any) -> list[Any]:
    """The video streams that are no covers."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def video_stream(container: Any, path: Path, number: int | None = None) -> Any:
    """The video stream that is used, decoded on all cores or in `limit_codec_threads`; DataError where there is none.

    Without a `number` it is, of several, the default one, else the longest one; stills beside a stream that moves do
    not count.
    """
    pictures = picture_streams(container)
    if not pictures:
        raise DataError(f"{path.name}: no picture in it")
    if number is not None and not 0 <= number < len(pictures):
        raise DataError(f"{path.name}: no picture number {number}: it has {len(pictures)}, counted from 0")
    stream = _default_picture(pictures) if number is None else pictures[number]
    if stream.codec_context is None:
        raise DataError(f"{path.name}: its picture cannot be decoded: unknown codec")
    stream.thread_type, stream.codec_context.thread_count = "AUTO", _THREADS.get()
    return stream


def _default_picture(pictures: list[Any]) -> Any:
    """The default one of those that move, where any does; else the longest one."""
    moving = [stream for stream in pictures if _stated_seconds(stream) > STILL_SECONDS] or pictures
    defaults = [stream for stream in moving if stream.disposition & Disposition.default]
    return defaults[0] if len(defaults) == 1 else max(moving, key=_stated_seconds)


def _stated_seconds(stream: Any) -> float:
    """Length of a video stream by the header, 0 where it has none."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska's tag, such as 00:01:02.500000000
    minutes, _, seconds = rest.partition(":")
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return float((stream.duration or 0) * stream.time_base)


def describe_tracks(container: Any) -> tuple[AudioTrack, ...]:
    """All audio tracks of a file."""
    return tuple(_describe_track(stream) for stream in container.streams.audio)


def _describe_track(stream: Any) -> AudioTrack:
    codec_context, tags = stream.codec_context, stream.metadata
    language, title = tags.get("language", ""), tags.get("title", "")
    if codec_context is None:
        return AudioTrack(0, 0, "unknown codec", language, title)
    return AudioTrack(codec_context.sample_rate or 0, codec_context.channels or 0, codec_context.name, language, title)


def select_track(tracks: tuple[AudioTrack, ...], choice: StreamChoice, path: Path) -> AudioTrack | None:
    """The chosen track, None where there is no audio; DataError where there is no such track, or no such channel."""
    if not tracks:
        return None
    if not 0 <= choice.audio_track < len(tracks):
        raise DataError(f"{path.name}: no sound track {choice.audio_track}: it has {len(tracks)}, counted from 0")
    track = tracks[choice.audio_track]
    if choice.channel is not None and not 0 <= choice.channel < track.channels:
        raise DataError(f"{path.name}: no channel {choice.channel}: its sound has {track.channels}, counted from 0")
    return track
