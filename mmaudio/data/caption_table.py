"""Tables of captions: rows by video or by clip, and the videos that their paths mean.

The table is a .tsv, .csv or .jsonl with a `caption` and at least one of `id` (a clip's), and `video` (its path below
the folder of videos, its file name, or that without the suffix; or its path elsewhere), which `start` in seconds may
narrow to one clip.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mmaudio.errors import DataError
from mmaudio.utils.files import read_text, table_columns, table_rows

FORMATS = (".tsv", ".csv", ".jsonl")
VIDEO_COLUMNS = ("video", "video_path", "file_name", "path")
"""Names of the column of videos; the first that has a value counts."""
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
        return self.video in video_names(video)


def video_names(video: str) -> list[str]:
    """The names that a table may use for a video, the most exact first."""
    path = PurePosixPath(video)
    return [video, str(path.with_suffix("")), path.name, path.stem]


def one_line(text: str) -> str:
    """`text` without line breaks and double spaces."""
    return " ".join(text.split())


def match_videos(rows: Sequence[CaptionRow], videos: Sequence[str], root: Path) -> list[CaptionRow]:
    """The rows, with the path below `root` in place of a longer or absolute path of one of `videos`.

    A longer path means the video whose path it ends with; an absolute one from elsewhere means the only video of its
    file name. The other rows stay as they are, and those of which several mean one video.
    """
    names = {name for video in videos for name in video_names(video)}
    by_tail = {name: video for video in videos for name in reversed(video_names(video)[:2])}
    counts = Counter(name for video in videos for name in set(video_names(video)[2:]))
    by_name = {name: video for video in videos for name in video_names(video)[2:] if counts[name] == 1}

    def find(path: str) -> str | None:
        """The video that a path of the table means; None for no video, or several."""
        parts = PurePosixPath(path).parts
        is_absolute = re.match(r"/|[A-Za-z]:/", path) is not None
        if not is_absolute and (root / parts[0]).exists():  # it is below the folder of videos, and not there
            return None
        tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
        tail = next((tail for tail in tails if tail in by_tail), None)
        if tail is not None:
            return by_tail[tail]
        is_elsewhere = is_absolute and not Path(path).is_relative_to(root.absolute())
        return by_name.get(parts[-1]) if is_elsewhere else None

    paths = {row.video for row in rows if row.video}
    meant = {path: find(path) for path in paths - names}
    unique = Counter([*paths, *meant.values()])
    return [
        replace(row, video=video) if (video := meant.get(row.video)) and unique[video] == 1 else row for row in rows
    ]


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
    if columns.count("caption") != 1 or not {"id", *VIDEO_COLUMNS} & set(columns):
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
    caption, clip_id, start = (cells.get(name) for name in ("caption", "id", "start"))
    video = next((cells[name] for name in VIDEO_COLUMNS if cells.get(name)), None)
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
