"""Media files opened and created by name: a name is never an address, and what is in a file opens nothing else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import av

PLAYLIST_FORMATS = frozenset(
    {"concat", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sap", "sdp", "vobsub", "webm_dash_manifest"}
)
"""FFmpeg's names of the formats whose files name other files or addresses."""
PLAYLIST_MARKS = (b"#EXTM3U", b"ffconcat", b"# VobSub", b"v=0\n", b"v=0\r")
"""How the files of some of these begin."""


def open_media(path: Path) -> Any:
    """Open a media file for reading, whatever its name looks like; FFmpeg's errors, and those of the system.

    A playlist is refused (`av.ArgumentError`). Tags in another encoding than UTF-8 have replacement characters.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": _allowed_formats()}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def create_media(path: Path, muxer: str) -> Any:
    """Create a media file by FFmpeg's `muxer`, whatever its name looks like."""
    return av.open(f"file:{path}", "w", format=muxer)


@functools.cache
def _allowed_formats() -> str:
    """FFmpeg's names of all formats but PLAYLIST_FORMATS, with commas."""
    names = {name for names in av.formats_available for name in names.split(",")}
    return ",".join(sorted(names - PLAYLIST_FORMATS))
