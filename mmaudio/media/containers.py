"""Container formats: those a video stream can be copied into unchanged, and the audio codec of each."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from mmaudio.errors import DataError
from mmaudio.media.streams import video_stream
from mmaudio.media.video import open_container


@dataclass(frozen=True)
class ContainerFormat:
    """A container format, by FFmpeg's names."""

    muxer: str
    audio_codec: str
    """The audio's encoder."""

    def accepts(self, stream: Any) -> bool:
        """Whether a video stream can be copied into it: a header is written in memory to find out."""
        try:
            with av.open(io.BytesIO(), "w", format=self.muxer) as trial:
                trial.add_stream_from_template(stream, opaque=True)
                trial.start_encoding()
        except (av.FFmpegError, ValueError):
            return False
        return True


CONTAINERS = {
    ".mp4": ContainerFormat("mp4", "aac"),
    ".m4v": ContainerFormat("mp4", "aac"),
    ".mov": ContainerFormat("mov", "aac"),
    ".mkv": ContainerFormat("matroska", "flac"),
    ".webm": ContainerFormat("webm", "libopus"),
    ".wmv": ContainerFormat("asf", "wmav2"),
}
"""Output formats by suffix. Each preserves the sync of video and audio to the millisecond."""
FALLBACK_SUFFIXES = (".mp4", ".mkv")
"""Formats for the video stream of another kind of file, in this order."""


def choose_suffix(video: Path, video_track: int | None = None) -> str:
    """The suffix of a file that can hold the picture of `video`: the same where possible, else MP4 or Matroska.

    Raises DataError where `video` cannot be opened or its stream fits nowhere.
    """
    with open_container(video) as container:
        stream = video_stream(container, video, video_track)
        suffix = video.suffix.lower()
        for candidate in (suffix, *FALLBACK_SUFFIXES):
            if candidate in CONTAINERS and CONTAINERS[candidate].accepts(stream):
                return candidate
        codec = stream.codec_context.name
    raise DataError(f"{video.name}: its picture ({codec}) fits neither {suffix} nor MP4 nor Matroska; convert it first")


def can_hold_video(video: Path, suffix: str, video_track: int | None = None) -> bool:
    """Whether a file with `suffix` can hold the picture of `video`; DataError where that cannot be opened."""
    with open_container(video) as container:
        output = CONTAINERS.get(suffix.lower())
        return output is not None and output.accepts(video_stream(container, video, video_track))
