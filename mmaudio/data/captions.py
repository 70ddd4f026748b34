"""Captions of clips: from a table, a text file beside the video, its folder's text file, or one prompt for all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from mmaudio.data.caption_table import (
    MAX_CHARACTERS,
    CaptionRow,
    match_videos,
    one_line,
    read_captions,
    video_names,
)
from mmaudio.data.video_files import FOLDER_CAPTION, caption_names
from mmaudio.errors import DataError
from mmaudio.utils.files import read_text

START_TOLERANCE = 0.01
"""Seconds by which a row's start may differ from a clip's."""


class Captions:
    """The captions of the videos below `root`; the first source that has one wins."""

    def __init__(self, root: Path, prompt: str = "", table: Path | None = None) -> None:
        self.root, self.prompt, self.table = root, prompt, table
        self.rows = read_captions(table) if table else []
        self.unreadable: dict[Path, str] = {}
        """Text files without a readable caption, with the reason."""
        self._used: set[CaptionRow] = set()
        self._file_names: dict[Path, dict[str, str]] = {}

    def match_videos(self, videos: Sequence[str]) -> None:
        """Find out which of `videos` the table's longer paths mean; DataError where none of its rows can apply."""
        self.rows = match_videos(self.rows, videos, self.root)
        if not any(row.id for row in self.rows):
            self.check_used(videos)

    def check_used(self, videos: Sequence[str]) -> None:
        """DataError where no clip has used a row of the table, and no row names one of `videos`."""
        names = {name for video in videos for name in video_names(video)}
        if self.rows and names and not self._used and not any(row.video in names for row in self.rows):
            raise DataError(
                f"{self.table}: none of its {len(self.rows)} rows names a video or a clip here; a row has "
                f"{self.rows[0].video or self.rows[0].id}, a video is {videos[0]}. Write paths below {self.root}, or "
                "file names"
            )

    def find(self, video: str, clip_id: str, start: float) -> str:
        """The caption of one clip, in one line; empty where there is none."""
        for row in self._matching_rows(video, clip_id, start):
            self._used.add(row)
            return row.caption
        source, text = next(self._read_files(video), (None, self.prompt))
        caption = one_line(text)
        if len(caption) > MAX_CHARACTERS:
            name = source or "the prompt"
            raise DataError(f"{name}: {len(caption)} characters; a caption has at most {MAX_CHARACTERS}")
        return caption

    def unused(self) -> list[CaptionRow]:
        """Rows of the table that no clip has used so far."""
        return [row for row in self.rows if row not in self._used]

    def _matching_rows(self, video: str, clip_id: str, start: float) -> Iterator[CaptionRow]:
        """The rows that fit: those that name the clip before those that name the video, the most exact name first."""
        names = video_names(video)
        of_video = sorted((row for row in self.rows if row.names_video(video)), key=lambda row: names.index(row.video))
        yield from (row for row in self.rows if row.id and row.id == clip_id)
        yield from (row for row in of_video if row.start is not None and abs(row.start - start) <= START_TOLERANCE)
        yield from (row for row in of_video if row.start is None and not row.id)

    def _read_files(self, video: str) -> Iterator[tuple[Path, str]]:
        """The text files with the caption of a video, and their texts; one that cannot be read is in `unreadable`."""
        path = self.root / video
        folders = [self.root / parent for parent in PurePosixPath(video).parents]
        candidates = [(path.parent, name) for name in caption_names(path)]
        for folder, name in candidates + [(folder, FOLDER_CAPTION) for folder in folders]:
            file = folder / self._list_folder(folder).get(name, name)
            if not os.path.isfile(file) or file in self.unreadable:  # noqa: PTH113, Path's own raises for long names
                continue
            try:
                yield file, read_text(file)
            except DataError as error:
                self.unreadable[file] = str(error).removeprefix(f"{file}: ")

    def _list_folder(self, folder: Path) -> dict[str, str]:
        """The files of a folder by their names with a suffix in small letters."""
        if folder not in self._file_names:
            names: list[str] = []
            with suppress(OSError):  # a folder that cannot be listed may have files that can be read
                names = sorted(path.name for path in folder.iterdir())
            self._file_names[folder] = {_lower_suffix(name): name for name in names}
        return self._file_names[folder]


def _lower_suffix(name: str) -> str:
    path = Path(name)
    return path.stem + path.suffix.lower()


def find_caption(video: Path, prompt: str) -> str:
    """The text of the file beside a video, else its folder's caption, else `prompt`, in one line.

    DataError where such a file cannot be read.
    """
    captions = Captions(video.parent, prompt)
    caption = captions.find(video.name, "", 0.0)
    for path, reason in captions.unreadable.items():
        raise DataError(f"{path}: {reason}")
    return caption
