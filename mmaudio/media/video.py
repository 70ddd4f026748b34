"""Reading videos: what a file is, and its decoded frames one after the other.

Times are seconds from the first picture. The frame of an instant is the first one that is shown at it or later; past
the last frame's time, that frame stands for instants less than one frame after it. Sound is read by `data.audio`,
windows of the picture by `data.windows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from mmaudio.errors import DataError
from mmaudio.media.frames import SQUARE, Deinterlacer

TOLERANCE = 1e-6
"""Seconds by which a frame may precede its instant: time stamps are rounded to the stream's time base."""
FALLBACK_FPS = 25.0
"""Frame rate of a stream that states none."""
LACKING = 0.5
"""Seconds that the end of a file may lack of what its header states before it counts as cut off."""
STATED = ("mov", "matroska", "avi", "flv")
"""Formats whose header states the length, so that a file that ends earlier is cut off."""


@dataclass(frozen=True)
class AudioTrack:
    """What the header says of one sound track."""

    rate: int
    """Samples per second; 0 where the header does not say or the codec is unknown."""
    channels: int
    codec: str
    language: str
    title: str


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame of a file say."""

    path: Path
    duration: float
    """Stated length in seconds; 0 where the file does not state it."""
    stated: str
    """What `duration` is of: `picture`, `file` (from time stamp 0 on), or empty where it is no more than a guess."""
    origin: float
    """Time stamp of the first frame in seconds; what is called time elsewhere is counted from it."""
    fps: float
    """Average frames per second."""
    width: int
    height: int
    """Of the stored picture: before it is stretched and turned."""
    codec: str
    audio_rate: int | None
    """Samples per second of the chosen track; None without sound."""
    audio_channels: int
    audio_codec: str
    track: int = 0
    """Number of the chosen sound track, from 0 on."""
    tracks: tuple[AudioTrack, ...] = ()
    """All sound tracks."""
    rotation: int = 0
    """Degrees by which the picture has to be turned counterclockwise."""
    pixel: Fraction = SQUARE
    """A pixel's width over its height."""
    interlaced: bool = False
    """Whether the first frame is."""
    pixel_format: str = ""
    """FFmpeg's name, such as yuv420p or yuv420p10le."""
    transfer: int = 2
    """Transfer function by its number in H.273: 16 and 18 are HDR, 2 is unknown."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The open container; DataError with the reason where it is no video that can be opened."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path.name}: {_why_closed(path)}") from error
    with container:
        yield container


def probe(path: Path | str, track: int = 0) -> VideoInfo:
    """Open `path`, decode its first frame, and choose the sound track number `track`.

    Raises DataError where it is no video, its picture cannot be decoded, or it has sound but no such track.
    """
    place = Path(path)
    with opened(place) as container:
        stream = picture_stream(container, place)
        first = next(decoded(container, stream, whole_lines=False), None)
        if first is None:
            raise DataError(f"{place.name}: its picture ({stream.codec_context.name}) cannot be decoded")
        tracks = tuple(_track(sound) for sound in container.streams.audio)
        if tracks and not 0 <= track < len(tracks):
            raise DataError(f"{place.name}: no sound track {track}: it has {len(tracks)}, counted from 0")
        chosen = tracks[track] if tracks else None
        rate = stream.average_rate or stream.guessed_rate
        length, stated = _stated_length(container, stream)
        return VideoInfo(
            path=place,
            duration=length,
            stated=stated,
            origin=frame_time(first),
            fps=float(rate) if rate else FALLBACK_FPS,
            width=first.width,
            height=first.height,
            codec=stream.codec_context.name,
            audio_rate=chosen.rate if chosen is not None else None,
            audio_channels=chosen.channels if chosen is not None else 0,
            audio_codec=chosen.codec if chosen is not None else "",
            track=track,
            tracks=tracks,
            rotation=round(first.rotation / 90) % 4 * 90,
            pixel=stream.sample_aspect_ratio or SQUARE,
            interlaced=bool(first.interlaced_frame),
            pixel_format=first.format.name,
            transfer=int(first.color_trc),
        )


def _track(sound: Any) -> AudioTrack:
    context, tags = sound.codec_context, sound.metadata
    language, title = tags.get("language", ""), tags.get("title", "")
    if context is None:
        return AudioTrack(0, 0, "unknown codec", language, title)
    return AudioTrack(context.sample_rate or 0, context.channels or 0, context.name, language, title)


def picture_end(info: VideoInfo) -> float:
    """Where the picture really ends in seconds, one frame after the last packet; nothing is decoded."""
    last = info.origin
    with opened(info.path) as container:
        for packet in packets(container, picture_stream(container, info.path)):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and not packet.is_corrupt and not packet.is_discard:
                last = max(last, float(stamp * packet.time_base))
    return last - info.origin + 1 / info.fps


def check_whole(info: VideoInfo, end: float) -> None:
    """DataError for a file that is cut off: `end`, where its picture really ends, is well before its stated length."""
    if not info.stated or info.duration - end <= LACKING:
        return
    reached = _reached(info, end)
    if info.duration - reached > LACKING:
        raise DataError(
            f"{info.path.name}: cut off: {info.duration:.2f} s are stated, it ends after {reached:.2f} s; "
            "copy or download it again"
        )


def _reached(info: VideoInfo, end: float) -> float:
    """Where a file really ends whose last frame counts until `end`, in the time that its length is stated in."""
    with opened(info.path) as container:
        if info.stated == "file":  # which another stream may have made longer than the picture
            stamps = [float(packet.pts * packet.time_base) for packet in packets(container) if packet.pts is not None]
            return max([info.origin + end, *stamps])
        last = info.origin + end - 1 / info.fps + TOLERANCE
        picture = packets(container, picture_stream(container, info.path))
        shown = [  # a screen recording's last frame may stay for long
            float((packet.pts + (packet.duration or 0)) * packet.time_base) - info.origin
            for packet in picture
            if packet.pts is not None and packet.pts * packet.time_base <= last
        ]
        return max([end, *shown])


def covered(end: float, instant: float) -> bool:
    """Whether a picture that ends at `end` has a frame for `instant`."""
    return instant < end - TOLERANCE


def picture_stream(container: Any, path: Path) -> Any:
    """The first video stream that is no cover picture, decoding on all cores; DataError where there is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise DataError(f"{path.name}: its picture cannot be decoded: unknown codec")
            stream.thread_type = "AUTO"
            return stream
    raise DataError(f"{path.name}: no picture in it")


def packets(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of the streams, of all where none is named; reading ends quietly where the file is cut off."""
    read = container.demux(*streams)
    while True:
        try:
            packet = next(read, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def decoded(container: Any, stream: Any, whole_lines: bool = True) -> Iterator[Any]:
    """The stream's frames; a packet that cannot be decoded is passed over.

    `whole_lines=False`: interlaced pictures stay as they are, which is faster.
    """
    lines = Deinterlacer() if whole_lines and stream.type == "video" else None
    for packet in packets(container, stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            yield from [frame] if lines is None else lines.push(frame)
    if lines is not None:
        yield from lines.flush()


def frame_time(frame: Any) -> float:
    """Time stamp of a frame in seconds."""
    stamp = frame.pts if frame.pts is not None else frame.dts
    return float((stamp or 0) * frame.time_base)


def _stated_length(container: Any, stream: Any) -> tuple[float, str]:
    """Length in seconds and what it is of, as in `VideoInfo`."""
    states = any(name in STATED for name in container.format.name.split(","))
    if stream.duration:
        return float(stream.duration * stream.time_base), "picture" if states else ""
    if container.duration:
        return container.duration / av.time_base, "file" if states else ""
    return 0.0, ""


def _why_closed(path: Path) -> str:
    """Why a file cannot be opened, in words."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        return "a link to a file that is not there" if path.is_symlink() else "not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return "cut off: the index that its end should hold is missing"
    return "no video"
