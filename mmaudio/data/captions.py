"""Captions of clips: from a table, a text file beside the video, its folder's text file, or one prompt for all.

The table (`--captions`) is a .tsv, .csv or .jsonl with a `caption` and at least one of `id` (a clip's), and `video`
(its path below the folder of videos, its file name, or that without the suffix), which `start` in seconds may narrow to
one clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmaudio.data.video_files import FOLDER_CAPTION
from mmaudio.errors import DataError
from mmaudio.utils.files import read_text, table_columns, table_rows

FORMATS = (".tsv", ".csv", ".jsonl")
START_TOLERANCE = 0.01
"""Seconds by which a row's start may differ from a clip's."""
MAX_CHARACTERS = 10_000
"""Longest caption; the text encoder reads some hundreds of characters."""


@dataclass(frozen=True)
class CaptionRow:
    """One caption of a table; fields may be empty."""

    caption: str
    id: str = ""
    video: str = ""
    start: float | None = None

    def names_video(self, video: str) -> bool:
        """Whether it applies to `video`, a path below the folder of videos."""
        return self.video in _video_names(video)


class Captions:
    """The captions of the videos below `root`; the first source that has one wins."""

    def __init__(self, root: Path, prompt: str = "", table: Path | None = None) -> None:
        self.root, self.prompt = root, prompt
        self.rows = read_captions(table) if table else []
        self._used: set[CaptionRow] = set()

    def find(self, video: str, clip_id: str, start: float) -> str:
        """The caption of one clip, in one line; empty where there is none."""
        for row in self._matching_rows(video, clip_id, start):
            self._used.add(row)
            return row.caption
        video_path = self.root / video
        paths = [video_path.with_suffix(".txt"), *(folder / FOLDER_CAPTION for folder in self._folders(video))]
        path = next((path for path in paths if path.is_file()), None)
        caption = one_line(self.prompt if path is None else read_text(path))
        if len(caption) > MAX_CHARACTERS:
            source = path or "the prompt"
            raise DataError(f"{source}: {len(caption)} characters; a caption has at most {MAX_CHARACTERS}")
        return caption

    def unused(self) -> list[CaptionRow]:
        """Rows of the table that no clip has used so far."""
        return [row for row in self.rows if row not in self._used]

    def _matching_rows(self, video: str, clip_id: str, start: float) -> Iterator[CaptionRow]:
        """The rows that fit: those that name the clip before those that name the video, the most exact name first."""
        names = _video_names(video)
        of_video = sorted((row for row in self.rows if row.names_video(video)), key=lambda row: names.index(row.video))
        yield from (row for row in self.rows if row.id and row.id == clip_id)
        yield from (row for row in of_video if row.start is not None and abs(row.start - start) <= START_TOLERANCE)
        yield from (row for row in of_video if row.start is None and not row.id)

    def _folders(self, video: str) -> list[Path]:
        """The folder of a video and those above it, up to the folder of videos."""
        return [self.root / parent for parent in PurePosixPath(video).parents]


def _video_names(video: str) -> list[str]:
    """The names that a table may use for a video, the most exact first."""
    path = PurePosixPath(video)
    return [video, str(path.with_suffix("")), path.name, path.stem]


def find_caption(video: Path, prompt: str) -> str:
    """The text of the .txt file beside a video, else its folder's caption, else `prompt`, in one line."""
    return Captions(video.parent, prompt).find(video.name, "", 0.0)


def one_line(text: str) -> str:
    """`text` without line breaks and double spaces."""
    return " ".join(text.split())


def read_captions(path: Path) -> list[CaptionRow]:
    """The rows of a table of captions; DataError that names the line where one is not valid."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: a table of captions ends in {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: not there; a table of captions is expected")
    text = read_text(path)
    lines = _read_json_lines(path, text) if path.suffix.lower() == ".jsonl" else _read_table(path, text)
    rows: dict[tuple[str, str, float | None], CaptionRow] = {}
    for number, cells in lines:
        row = _parse_row(path, number, cells)
        first = rows.setdefault((row.id, row.video, row.start), row)
        if first.caption != row.caption:
            raise DataError(f"{path}, line {number}: a second caption for {row.id or row.video}; leave one of them")
    return list(rows.values())


def _read_table(path: Path, text: str) -> Iterable[tuple[int, dict[str, object]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = table_columns(path, text, delimiter)
    if columns.count("caption") != 1 or not {"id", "video"} & set(columns):
        raise DataError(f"{path}: its first line has to name the columns: one caption, and video or id")
    for number, cells in table_rows(path, text, delimiter):
        yield number, dict(cells)


def _read_json_lines(path: Path, text: str) -> Iterable[tuple[int, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if not isinstance(cells, dict):
            raise DataError(f'{path}, line {number}: {{"video": ..., "caption": ...}} is expected')
        yield number, cells


def _parse_row(path: Path, number: int, cells: dict[str, object]) -> CaptionRow:
    caption, clip_id, video, start = (cells.get(name) for name in ("caption", "id", "video", "start"))
    if not isinstance(caption, str) or not (clip_id or video):
        raise DataError(f"{path}, line {number}: a caption, and a video or the id of a clip, are expected")
    try:
        seconds = None if start in (None, "") else float(str(start))
    except ValueError as error:
        raise DataError(f"{path}, line {number}: start {start!r} is no number of seconds") from error
    caption = one_line(caption)
    if len(caption) > MAX_CHARACTERS:
        raise DataError(f"{path}, line {number}: {len(caption)} characters; a caption has at most {MAX_CHARACTERS}")
    relative = str(video or "").replace("\\", "/").removeprefix("./")
    return CaptionRow(caption, str(clip_id or ""), relative, seconds)
