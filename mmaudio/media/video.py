"""Video files: properties of the file, its packets and its decoded frames.

Times are seconds from the first frame. The frame of an instant is the first one that is presented at it or later; past
the last frame's time, that frame stands for instants less than one frame after it. `media.audio` reads the audio,
`media.frame_windows` windows of frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from mmaudio.errors import DataError
from mmaudio.media.frame_times import (
    CHECKED_FRAMES,
    FrameOrder,
    Stamps,
    Timing,
    detect_timing,
    packet_stamp,
    stamp_of,
)
from mmaudio.media.frames import SQUARE_PIXEL, deinterlace_frames
from mmaudio.media.local_files import PLAYLIST_MARKS, open_media
from mmaudio.media.streams import (
    DEFAULT_STREAMS,
    AudioTrack,
    StreamChoice,
    describe_tracks,
    picture_streams,
    select_track,
    video_stream,
)

TIME_TOLERANCE = 1e-6
"""Seconds by which a frame may precede its instant: time stamps are rounded to the stream's time base."""
SUFFIXES_WITHOUT_ORDER = (".avi", ".divx", ".wmv", ".asf")
"""Files that often have no presentation stamps in the order of their frames."""
FALLBACK_FPS = 25
"""Frame rate of a stream whose header has none."""
MAX_MISSING_SECONDS = 0.5
"""Seconds by which a file may be shorter than its header states before it counts as truncated."""
EMPTY_FILE = "an empty file"
"""Why a file without bytes cannot be opened."""
FORMATS_STATING_LENGTH = ("mov", "matroska", "avi", "flv")
"""Formats whose header states the length, so that a file that ends earlier is truncated."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file, from its header and its first frame."""

    path: Path
    duration: float
    """Length in seconds by the header; 0 where it has none."""
    duration_scope: str
    """`video` where it is the video stream's, `file` where it counts from time stamp 0, empty where it is a guess."""
    start_time: float
    """Time stamp of the first frame in seconds; all other times are counted from it."""
    fps: float
    """Average frames per second."""
    width: int
    height: int
    """Of the stored frames: before they are scaled to square pixels and rotated."""
    codec: str
    audio_sample_rate: int | None
    """Of the selected track, in hertz; None without audio."""
    audio_channels: int
    audio_codec: str
    audio_track: int = 0
    """Number of the selected audio track, from 0 on."""
    audio_tracks: tuple[AudioTrack, ...] = ()
    """All audio tracks."""
    channel: int | None = None
    """The only channel of the audio that is used; None: the mean of all."""
    rotation: int = 0
    """Degrees by which the frames have to be rotated counterclockwise."""
    pixel_aspect: Fraction = SQUARE_PIXEL
    """A pixel's width over its height."""
    interlaced: bool = False
    """Whether the first frame is interlaced."""
    pixel_format: str = ""
    """FFmpeg's name, such as yuv420p or yuv420p10le."""
    color_transfer: int = 2
    """Transfer function by its number in H.273: 16 and 18 are HDR, 2 is unknown."""
    video_track: int = 0
    """Number of the video stream that is used, from 0 on, without covers."""
    video_track_count: int = 1
    """Video streams, without covers."""
    timing: Timing = field(default_factory=Timing)
    """What gives the frames' times."""

    def describe_pictures(self) -> str:
        """A note on the choice among several pictures; empty where there is one."""
        if self.video_track_count < 2:
            return ""
        return f"{self.video_track_count} pictures: number {self.video_track} is used (--video-track)"


@contextmanager
def open_container(path: Path) -> Iterator[Any]:
    """Open the container of a video file; DataError with the reason where that fails."""
    try:
        kind = _describe_kind(path)
    except OSError as error:  # a folder without access
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error
    if kind:
        raise DataError(f"{path.name}: {kind}")
    try:
        container = open_media(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path.name}: {_unopenable_reason(path)}") from error
    with container:
        yield container


def _describe_kind(path: Path) -> str:
    """What stands in place of a video; empty for a file with content, and for what is not there."""
    if path.is_fifo() or path.is_char_device() or path.is_block_device() or path.is_socket():  # opening one may wait
        kind = "a named pipe" if path.is_fifo() else "a socket" if path.is_socket() else "a device"
        return f"{kind}, not a video file; name a regular file"
    return EMPTY_FILE if path.is_file() and not path.stat().st_size else ""  # reading one of those in /proc may wait


def probe(path: Path | str, streams: StreamChoice = DEFAULT_STREAMS) -> VideoInfo:
    """Open `path`, select its streams, and decode its first frame.

    Raises DataError where it is no video, its frames cannot be decoded, or it has no such picture, or audio but no such
    track.
    """
    video_path = Path(path)
    with open_container(video_path) as container:
        stream = video_stream(container, video_path, streams.video_track)
        frame_rate = stream.average_rate or stream.guessed_rate or Fraction(FALLBACK_FPS)
        audio_tracks, pictures = describe_tracks(container), picture_streams(container)
        track = select_track(audio_tracks, streams, video_path)
        first_frame, stamps = _read_first_frames(container, stream)
        if first_frame is None:
            raise DataError(f"{video_path.name}: its picture ({stream.codec_context.name}) cannot be decoded")
        frame_ticks = float(1 / (frame_rate * stream.time_base))
        sound_start = _sound_start(container, streams.audio_track, stream.time_base)
        timing = detect_timing(stamps, container.format.name == "avi", frame_ticks, sound_start)
        duration, duration_scope = _stated_duration(container, stream)
        return VideoInfo(
            path=video_path,
            duration=duration,
            duration_scope=duration_scope,
            start_time=float((stamp_of(first_frame, timing) or 0) * first_frame.time_base),
            fps=float(frame_rate),
            width=first_frame.width,
            height=first_frame.height,
            codec=stream.codec_context.name,
            audio_sample_rate=track.sample_rate if track is not None else None,
            audio_channels=track.channels if track is not None else 0,
            audio_codec=track.codec if track is not None else "",
            audio_track=streams.audio_track,
            audio_tracks=audio_tracks,
            channel=streams.channel,
            rotation=round(first_frame.rotation / 90) % 4 * 90,
            pixel_aspect=stream.sample_aspect_ratio or SQUARE_PIXEL,
            interlaced=bool(first_frame.interlaced_frame),
            pixel_format=first_frame.format.name,
            color_transfer=int(first_frame.color_trc),
            video_track=pictures.index(stream),
            video_track_count=len(pictures),
            timing=timing,
        )


def timing_key(path: Path, streams: StreamChoice = DEFAULT_STREAMS) -> list[str]:
    """What gives a file's times where its time stamps are out of order, else nothing: scans and features depend on it.

    Only files of the formats in SUFFIXES_WITHOUT_ORDER are opened.
    """
    if path.suffix.lower() not in SUFFIXES_WITHOUT_ORDER:
        return []
    try:
        return list(filter(None, [probe(path, streams).timing.describe()]))
    except DataError:
        return []


def find_video_end(info: VideoInfo) -> float:
    """The actual end of the video stream in seconds, one frame after the last packet; nothing is decoded."""
    last_time = info.start_time
    with open_container(info.path) as container:
        for packet in read_packets(container, video_stream(container, info.path, info.video_track)):
            timestamp = packet_stamp(packet, info.timing)
            if timestamp is not None and not packet.is_corrupt and not packet.is_discard:
                last_time = max(last_time, float(timestamp * packet.time_base))
    return last_time - info.start_time + 1 / info.fps


def check_not_truncated(info: VideoInfo, end: float) -> None:
    """DataError for a truncated file: `end`, the actual end of its video stream, is well before its stated length."""
    if not info.duration_scope or info.duration - end <= MAX_MISSING_SECONDS:
        return
    actual_end = _find_actual_end(info, end)
    if info.duration - actual_end > MAX_MISSING_SECONDS:
        raise DataError(
            f"{info.path.name}: cut off: {info.duration:.2f} s are stated, it ends after {actual_end:.2f} s; "
            "copy or download it again"
        )


def _find_actual_end(info: VideoInfo, end: float) -> float:
    """The actual end of a file whose last frame lasts until `end`, on the time axis of its stated length."""
    with open_container(info.path) as container:
        if info.duration_scope == "file":  # another stream may be longer than the video stream
            timestamps = [
                float(packet.pts * packet.time_base) for packet in read_packets(container) if packet.pts is not None
            ]
            return max([info.start_time + end, *timestamps])
        last_time = info.start_time + end - 1 / info.fps + TIME_TOLERANCE
        video_packets = read_packets(container, video_stream(container, info.path, info.video_track))
        frame_ends = [  # a screen recording's last frame may be long
            float((packet.pts + (packet.duration or 0)) * packet.time_base) - info.start_time
            for packet in video_packets
            if packet.pts is not None and packet.pts * packet.time_base <= last_time
        ]
        return max([end, *frame_ends])


def has_frame_at(end: float, instant: float) -> bool:
    """Whether a video stream that ends at `end` has a frame for `instant`."""
    return instant < end - TIME_TOLERANCE


def read_packets(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of the streams, of all where none is passed; a truncated file ends without an error."""
    demuxer = container.demux(*streams)
    while True:
        try:
            packet = next(demuxer, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def decode_frames(container: Any, stream: Any, deinterlace: bool = True) -> Iterator[Any]:
    """Decode the stream's frames, as the decoder passes them on; a packet that cannot be decoded is skipped.

    `deinterlace=False`: interlaced frames stay as they are, which is faster.
    """
    frames = chain.from_iterable(map(_decode_packet, read_packets(container, stream)))
    yield from deinterlace_frames(frames) if deinterlace and stream.type == "video" else frames


def _decode_packet(packet: Any) -> list[Any]:
    try:
        frames: list[Any] = packet.decode()
    except av.FFmpegError:
        return []
    return frames


def read_frames(info: VideoInfo, order: FrameOrder | None = None, for_scan: bool = False) -> Iterator[Any]:
    """All frames of a file, each once and with rising presentation stamps.

    `order`: a new `FrameOrder`, which knows afterwards what was out of order. `for_scan`, which is faster: frames
    are not deinterlaced, and those that no other frame refers to are not deblocked.
    """
    order = order or FrameOrder(info.timing, info.fps)
    with open_container(info.path) as container:
        stream = video_stream(container, info.path, info.video_track)
        if for_scan:
            stream.codec_context.options = {"skip_loop_filter": "noref"}
        frames = order.sort(decode_frames(container, stream, deinterlace=False))
        yield from frames if for_scan else deinterlace_frames(frames)


def _read_first_frames(container: Any, stream: Any) -> tuple[Any, Stamps]:
    """The first frame, None where none can be decoded, and the time stamps of so many that tell their order."""
    first_frame, stamps = None, Stamps([], [], {})
    for packet in read_packets(container, stream):
        if packet.pts is not None:
            stamps.packet_times.setdefault(packet.pts, packet.dts)
        for frame in _decode_packet(packet):
            first_frame = frame if first_frame is None else first_frame
            stamps.presentation.append(frame.pts)
            stamps.decoding.append(frame.dts)
        is_reordered = stream.codec_context.has_b_frames and container.format.name != "avi"
        if len(stamps.presentation) >= (CHECKED_FRAMES if is_reordered else 2):
            break
    return first_frame, stamps


def _sound_start(container: Any, audio_track: int, time_base: Fraction) -> float | None:
    """Where an audio track begins, in units of `time_base`; None without one, and in ASF, whose stamps are right."""
    if container.format.name == "asf" or not container.streams.audio:
        return None
    stream = container.streams.audio[audio_track]
    return None if stream.start_time is None else float(stream.start_time * stream.time_base / time_base)


def _stated_duration(container: Any, stream: Any) -> tuple[float, str]:
    """`duration` and `duration_scope` of `VideoInfo`."""
    states_length = any(name in FORMATS_STATING_LENGTH for name in container.format.name.split(","))
    if stream.duration:
        return float(stream.duration * stream.time_base), "video" if states_length else ""
    if container.duration:
        return container.duration / av.time_base, "file" if states_length else ""
    return 0.0, ""


def _unopenable_reason(path: Path) -> str:
    """Why a file cannot be opened."""
    try:
        with path.open("rb") as file:
            header = file.read(12)
    except FileNotFoundError:
        return "a link to a file that is not there" if path.is_symlink() else "not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not header:
        return EMPTY_FILE
    if header.startswith(PLAYLIST_MARKS):
        return "a list of other files or addresses, no video"
    if header[4:8] == b"ftyp":
        return "cut off: the index that its end should hold is missing"
    return "no video"
