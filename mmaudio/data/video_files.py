"""Search of a folder for videos, captions and other files that may be videos."""

from __future__ import annotations

import os
from pathlib import Path

from mmaudio.errors import DataError

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".ts",
    ".mts",
    ".m2ts",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ogv",
    ".3gp",
)
"""Splitting names a file of another kind as left out, without opening it."""
CAPTION_SUFFIXES = (".txt", ".caption")
"""Of a video's caption, in small or capital letters."""
FOLDER_CAPTION = "caption.txt"
"""The caption of all videos of a folder, and of those below it, that have none of their own."""
EXPERIMENT_ENTRIES = frozenset({"lora_checkpoints", "metrics.json"})
"""Names that mark the folder of an experiment: the videos it generated are not for training."""


def find_videos(root: Path, ignored_paths: tuple[Path, ...] = (), recursive: bool = False) -> list[Path]:
    """The files in `root` that are not hidden, not captions and not among or below `ignored_paths`, by name.

    `recursive`: those in its sub-folders too. Files that are no videos, broken links and folders that cannot be read
    are included: splitting names them as left out. Raises DataError where there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'a file' if root.exists() else 'not there'}; a folder of videos is expected")
    ignored = {path for ignored_path in ignored_paths for path in (ignored_path, ignored_path.resolve())}
    files = [path for path in _list_files(root, recursive) if not _is_hidden(path.relative_to(root))]
    videos = {path.with_suffix("") for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    videos |= {path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}  # dog.txt and dog.mp4.txt
    captions = {path for path in files if path.suffix.lower() in CAPTION_SUFFIXES and path.with_suffix("") in videos}
    candidates = [
        path
        for path in files
        if path not in captions
        and path.with_suffix(path.suffix.lower()).name != FOLDER_CAPTION
        and ignored.isdisjoint([Path(os.path.realpath(path)), *path.parents])
    ]
    return sorted(candidates, key=lambda path: path.relative_to(root).as_posix())


def caption_names(video: Path) -> list[str]:
    """The names of the files beside a video that may have its caption, with a suffix in small letters."""
    return [f"{name}{suffix}" for suffix in CAPTION_SUFFIXES for name in (video.stem, video.name)]


def _list_files(root: Path, recursive: bool) -> list[Path]:
    """All files. Links to folders are followed, but no folder is read twice, and none of an experiment."""
    files: list[Path] = []
    visited: set[Path] = set()

    def on_error(error: OSError) -> None:
        """Note a folder that cannot be read; raise where it is the whole folder."""
        if Path(error.filename) == root:
            raise DataError(f"{root}: cannot be read ({error.strerror})") from error
        files.append(Path(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=on_error, followlinks=True):
        if _skip_experiment(root, folder, subfolders, names):
            continue
        visited.add(Path(folder).resolve())
        files += [path for name in names if _is_file(path := Path(folder, name)) or _is_broken_link(path)]
        subfolders[:] = [
            name for name in sorted(subfolders) if recursive and Path(folder, name).resolve() not in visited
        ]
    return files


def _skip_experiment(root: Path, folder: str, subfolders: list[str], names: list[str]) -> bool:
    """Whether `folder` below `root` is an experiment's; `subfolders` is emptied then, so that os.walk skips them."""
    if Path(folder) == root or EXPERIMENT_ENTRIES.isdisjoint([*subfolders, *names]):
        return False
    subfolders.clear()
    return True


def find_video_below(root: Path, ignored_paths: tuple[Path, ...] = ()) -> str | None:
    """The first video in a sub-folder of `root`, which only --recursive searches; None where there is none."""
    ignored = {path.resolve() for path in ignored_paths}
    for folder, subfolders, names in os.walk(root):
        if _skip_experiment(root, folder, subfolders, names):
            continue
        subfolders[:] = sorted(
            name for name in subfolders if name[0] != "." and Path(folder, name).resolve() not in ignored
        )
        videos = [name for name in names if name[0] != "." and Path(name).suffix.lower() in VIDEO_SUFFIXES]
        if Path(folder) != root and videos:
            return Path(folder, min(videos)).relative_to(root).as_posix()
    return None


def _is_file(path: Path) -> bool:
    """Whether a path is a file, or in a folder without access, where one cannot know: it is named as left out."""
    try:
        return path.is_file()
    except OSError:
        return True


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not os.path.exists(path)  # noqa: PTH110, Path's own raises in a folder without access


def _is_hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)
