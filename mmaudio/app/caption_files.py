"""Captions that were edited in the page, written as the .txt files beside the videos that splitting reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmaudio.app.folders import find_below
from mmaudio.data.caption_table import MAX_CHARACTERS, one_line
from mmaudio.data.captions import Captions
from mmaudio.data.folder_split import name_in_table
from mmaudio.data.video_files import VIDEO_SUFFIXES, caption_names, find_videos
from mmaudio.errors import ConfigError
from mmaudio.utils.escapes import escape_controls
from mmaudio.utils.files import atomic_write


def write_captions(root: Path, rows: Sequence[tuple[str, str]], prompt: str = "") -> list[Path]:
    """Write the captions (video, caption) that differ from those of the folder `root`; the files.

    ConfigError, and nothing is written, where a row names no video of the folder, or a caption is too long.
    """
    videos = {name_in_table(path, root): path for path in find_videos(root, recursive=True)}
    current = Captions(root, prompt)
    changes: dict[Path, str] = {}
    for video, text in rows:
        caption = one_line(text)
        path = videos.get(video)
        if path is None or path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ConfigError(f"{video[:80]!r}: no video of this folder; look at the clips again")
        if caption != escape_controls(caption.encode("utf-8", "replace").decode()):
            raise ConfigError(f"{video}: a control character in its caption; take it out")
        if len(caption) > MAX_CHARACTERS:
            raise ConfigError(f"{video}: {len(caption)} characters; a caption has at most {MAX_CHARACTERS}")
        find_below(root, path.parent.relative_to(root).as_posix())  # a linked folder may lead out of it
        if caption != current.find(video, "", 0.0):
            changes[caption_file(path, list(videos.values()))] = caption
    for file, caption in changes.items():
        with atomic_write(file) as temporary:
            temporary.write_text(caption + "\n", encoding="utf-8")
    return list(changes)


def caption_file(video: Path, videos: Sequence[Path]) -> Path:
    """The file that has a video's caption, or will have it; ConfigError where it is that of another video, too."""
    names = {path.name.lower(): path for path in video.parent.iterdir()}
    file = next((names[name.lower()] for name in caption_names(video) if name.lower() in names), None)
    stems = Counter((path.parent, path.stem) for path in videos if path.suffix.lower() in VIDEO_SUFFIXES)
    is_shared = stems[video.parent, video.stem] > 1
    if file is not None and is_shared and file.stem == video.stem:
        raise ConfigError(f"{file.name} is the caption of several videos; rename it to {video.name}.txt first")
    return file or (video.with_name(f"{video.name}.txt") if is_shared else video.with_suffix(".txt"))
