"""The two folders that the page may read and write, and the check of every path that a browser sends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmaudio.errors import ConfigError
from mmaudio.utils.escapes import escape_controls

UPLOADS = ".uploads"
"""Folder in that of the results for what browsers send, and for Gradio's copies."""
GENERATED = "generated"
"""Folder in that of the results for generated audio."""
NAME = re.compile(r"\w[\w.-]{0,63}")
"""Names of what is new: one part of a path, which is no hidden file and no flag."""


@dataclass(frozen=True)
class Folders:
    """The folder of videos and the folder of results, without links in their paths."""

    videos: Path
    output: Path

    @classmethod
    def create(cls, videos: Path, output: Path) -> Folders:
        """The folders, made where they are absent; ConfigError where one is a file or cannot be made."""
        for folder in (videos, output):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
        return cls(videos.resolve(), output.resolve())

    @property
    def uploads(self) -> Path:
        """Where uploads lie until they are used."""
        return self.output / UPLOADS

    def find_video(self, name: str) -> Path:
        """A file below the folder of videos."""
        return _existing(find_below(self.videos, name), name, Path.is_file)

    def find_video_folder(self, name: str) -> Path:
        """A folder below the folder of videos, or that itself."""
        return _existing(find_below(self.videos, name), name, Path.is_dir)

    def find_result(self, name: str) -> Path:
        """A file or folder below the folder of results."""
        return _existing(find_below(self.output, name), name, Path.exists)

    def find_upload(self, path: str) -> Path:
        """A file that a browser has sent; Gradio names it by its whole path."""
        root = self.uploads.resolve()
        resolved = _resolve(Path(path), path) if path and "\0" not in path else root
        if root not in resolved.parents:
            raise ConfigError(f"{_shown(path)}: nothing that was uploaded here; upload it again")
        return _existing(resolved, path, Path.is_file)


def find_below(root: Path, name: str) -> Path:
    """The path `name` below `root`, links resolved; ConfigError where it is outside, absolute, or no path at all."""
    path = Path(name)
    if not name or path.is_absolute() or "\0" in name or ".." in path.parts:
        raise ConfigError(f"{_shown(name)}: no name below {root}; choose one from the list")
    resolved = _resolve(root / path, name)
    if not resolved.is_relative_to(root):
        raise ConfigError(f"{_shown(name)}: leads out of {root}; choose one from the list")
    return resolved


def check_name(name: str) -> str:
    """`name`, where it may name something new; ConfigError for anything but one part of a path."""
    name = name.strip()
    if not NAME.fullmatch(name):
        raise ConfigError(f"{_shown(name)}: a name has letters, digits, _, - and points, 64 at most, as in: dogs-2")
    return name


def list_video_folders(root: Path) -> list[str]:
    """Names of the folders below `root`, two deep, and `.` for itself; hidden ones and links to outside are none."""
    return [".", *(folder.relative_to(root).as_posix() for folder in walk_folders(root, 2))]


def walk_folders(root: Path, depth: int, below: Path | None = None) -> Iterator[Path]:
    """The folders below `root` in order, parents first, that are not hidden and whose links stay within it."""
    try:
        entries = sorted((below or root).iterdir())
    except OSError:  # no access, or just removed: it has nothing to choose
        return
    for path in entries:
        if path.name.startswith(".") or not path.is_dir() or not path.resolve().is_relative_to(root):
            continue
        yield path
        if depth > 1:
            yield from walk_folders(root, depth - 1, path)


def _resolve(path: Path, name: str) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, no UTF-8, links in a circle
        raise ConfigError(f"{_shown(name)}: no path that this system can read") from error


def _existing(path: Path, name: str, is_there: Callable[[Path], bool]) -> Path:
    try:
        if is_there(path):
            return path
    except OSError:  # too long, or in a folder without access
        pass
    raise ConfigError(f"{_shown(name)}: not there any more; reload the page and choose again")


def _shown(name: str) -> str:
    """The beginning of what a browser sent, in one line."""
    return escape_controls(name[:80].encode("utf-8", "replace").decode()) or "(nothing)"
