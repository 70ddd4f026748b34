"""What words go with a clip: a table of captions, a text beside the video, its folder's own, one for all, or none.

The table (`--captions`) is a .tsv, .csv or .jsonl with a `caption` and at least one of `id` (a clip's), and `video`
(its path below the folder of videos, its file name, or that without the suffix), which `start` in seconds may narrow to
one clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmaudio.data.clips import FOLDER_CAPTION
from mmaudio.errors import DataError
from mmaudio.utils.files import read_text, table_columns, table_rows

FORMATS = (".tsv", ".csv", ".jsonl")
NEAR = 0.01
"""Seconds by which a stated start may differ from a clip's."""
LONGEST = 10_000
"""Characters of a caption; the text encoder reads some hundreds of them."""


@dataclass(frozen=True)
class Row:
    """One caption of a table; empty fields say nothing."""

    caption: str
    id: str = ""
    video: str = ""
    start: float | None = None

    def names(self, video: str) -> bool:
        """Whether it speaks of `video`, a path below the folder of videos."""
        return self.video in _names(video)


class Captions:
    """The captions of the videos below `root`; the first source that has one wins."""

    def __init__(self, root: Path, prompt: str = "", table: Path | None = None) -> None:
        self.root, self.prompt = root, prompt
        self.rows = read_captions(table) if table else []
        self._used: set[Row] = set()

    def of(self, video: str, clip_id: str, start: float) -> str:
        """The caption of one clip, in one line; empty where there is none."""
        for row in self._candidates(video, clip_id, start):
            self._used.add(row)
            return row.caption
        path = self.root / video
        texts = [path.with_suffix(".txt"), *(folder / FOLDER_CAPTION for folder in self._folders(video))]
        beside = next((text for text in texts if text.is_file()), None)
        found = one_line(self.prompt if beside is None else read_text(beside))
        if len(found) > LONGEST:
            raise DataError(f"{beside or 'the prompt'}: {len(found)} characters; a caption has at most {LONGEST}")
        return found

    def unused(self) -> list[Row]:
        """Rows of the table that no clip has asked for so far."""
        return [row for row in self.rows if row not in self._used]

    def _candidates(self, video: str, clip_id: str, start: float) -> Iterator[Row]:
        """The rows that fit, those that name the clip before those that name the video, the most exact name first."""
        named = sorted((row for row in self.rows if row.names(video)), key=lambda row: _names(video).index(row.video))
        yield from (row for row in self.rows if row.id and row.id == clip_id)
        yield from (row for row in named if row.start is not None and abs(row.start - start) <= NEAR)
        yield from (row for row in named if row.start is None and not row.id)

    def _folders(self, video: str) -> list[Path]:
        """The folder of a video and those above it, up to the folder of videos."""
        return [self.root / parent for parent in PurePosixPath(video).parents]


def _names(video: str) -> list[str]:
    """What a table may call a video, the most exact first."""
    path = PurePosixPath(video)
    return [video, str(path.with_suffix("")), path.name, path.stem]


def caption(video: Path, prompt: str) -> str:
    """The text of the .txt file beside a video, else its folder's caption, else `prompt`, in one line."""
    return Captions(video.parent, prompt).of(video.name, "", 0.0)


def one_line(text: str) -> str:
    """`text` without line breaks and double spaces."""
    return " ".join(text.split())


def read_captions(path: Path) -> list[Row]:
    """The rows of a table of captions; DataError that names the line where one makes no sense."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: a table of captions ends in {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: not there; a table of captions is expected")
    text = read_text(path)
    lines = _json_lines(path, text) if path.suffix.lower() == ".jsonl" else _table_lines(path, text)
    rows: dict[tuple[str, str, float | None], Row] = {}
    for number, cells in lines:
        row = _row(path, number, cells)
        first = rows.setdefault((row.id, row.video, row.start), row)
        if first.caption != row.caption:
            raise DataError(f"{path}, line {number}: a second caption for {row.id or row.video}; leave one of them")
    return list(rows.values())


def _table_lines(path: Path, text: str) -> Iterable[tuple[int, dict[str, object]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    names = table_columns(path, text, delimiter)
    if names.count("caption") != 1 or not {"id", "video"} & set(names):
        raise DataError(f"{path}: its first line has to name the columns: one caption, and video or id")
    for number, cells in table_rows(path, text, delimiter):
        yield number, dict(cells)


def _json_lines(path: Path, text: str) -> Iterable[tuple[int, dict[str, object]]]:
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


def _row(path: Path, number: int, cells: dict[str, object]) -> Row:
    stated = {name: cells.get(name) for name in ("caption", "id", "video", "start")}
    if not isinstance(stated["caption"], str) or not (stated["id"] or stated["video"]):
        raise DataError(f"{path}, line {number}: a caption, and a video or the id of a clip, are expected")
    try:
        start = None if stated["start"] in (None, "") else float(str(stated["start"]))
    except ValueError as error:
        raise DataError(f"{path}, line {number}: start {stated['start']!r} is no number of seconds") from error
    words = one_line(stated["caption"])
    if len(words) > LONGEST:
        raise DataError(f"{path}, line {number}: {len(words)} characters; a caption has at most {LONGEST}")
    video = str(stated["video"] or "").replace("\\", "/").removeprefix("./")
    return Row(words, str(stated["id"] or ""), video, start)
