"""Which files a picture can be copied into as it is, and which sound codec stands beside it there."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from mmaudio.errors import DataError
from mmaudio.media.video import opened, picture_stream


@dataclass(frozen=True)
class Container:
    """A kind of video file, by FFmpeg's names."""

    muxer: str
    sound: str
    """The sound's encoder."""

    def takes(self, picture: Any) -> bool:
        """Whether a video stream can be copied into it: a header is tried in memory."""
        try:
            with av.open(io.BytesIO(), "w", format=self.muxer) as trial:
                trial.add_stream_from_template(picture, opaque=True)
                trial.start_encoding()
        except (av.FFmpegError, ValueError):
            return False
        return True


CONTAINERS = {
    ".mp4": Container("mp4", "aac"),
    ".m4v": Container("mp4", "aac"),
    ".mov": Container("mov", "aac"),
    ".mkv": Container("matroska", "flac"),
    ".webm": Container("webm", "libopus"),
    ".wmv": Container("asf", "wmav2"),
}
"""By suffix: the kinds that are written. Each keeps picture and sound aligned to the millisecond."""
OTHERS = (".mp4", ".mkv")
"""What the picture of another kind of file goes into, in this order."""


def suffix_for(video: Path) -> str:
    """The suffix of a file that takes the picture of `video`: its own where it can be, else MP4, else Matroska.

    Raises DataError where `video` cannot be opened or its picture fits nowhere.
    """
    with opened(video) as container:
        picture = picture_stream(container, video)
        own = video.suffix.lower()
        for suffix in (own, *OTHERS):
            if suffix in CONTAINERS and CONTAINERS[suffix].takes(picture):
                return suffix
        codec = picture.codec_context.name
    raise DataError(f"{video.name}: its picture ({codec}) fits neither {own} nor MP4 nor Matroska; convert it first")


def fits(video: Path, suffix: str) -> bool:
    """Whether a file that ends in `suffix` takes the picture of `video`; DataError where that cannot be opened."""
    with opened(video) as container:
        return suffix.lower() in CONTAINERS and CONTAINERS[suffix.lower()].takes(picture_stream(container, video))
