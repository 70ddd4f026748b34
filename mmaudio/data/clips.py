"""The table of clips: which windows of which videos are used, for what, and what was left out.

`clips.tsv` has a row per clip, `clips.left_out.tsv` beside it a row per video or window that is not used. Both are
written only where their content changed.
"""

from __future__ import annotations

import csv
import io
import math
import os
from codecs import BOM_UTF8
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.files import read_text, table_columns, table_rows, writing

STRIDE = 4.0
"""Seconds between the starts of two clips of a video."""
SPLITS = ("train", "val", "test")
FOLDER_CAPTION = "caption.txt"
"""The caption of all videos of a folder, and of those below it, that have none of their own."""
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
"""A file of another kind is named as left out without a look into it."""
RESULTS = frozenset({"lora_checkpoints", "metrics.json"})
"""What lies in an experiment's folder: its sounds and films are no videos to train on."""

NUMBERS = ("start", "end", "peak_db", "rms_db", "silence")
MEASURED = ("lufs", "clipped", "black", "frozen", "mismatch", "speech", "music")
"""Columns that may be empty: a table made by hand need not have them."""
Row = TypeVar("Row", "Clip", "LeftOut")


@dataclass(frozen=True)
class Clip:
    """One window of one video."""

    id: str
    """Unique in the table, fit for a file name."""
    video: str
    """Path relative to the folder of videos."""
    start: float
    """Seconds from the first picture."""
    end: float
    caption: str
    split: str
    """train, val or test."""
    peak_db: float
    """Peak of the sound in decibels of full scale."""
    rms_db: float
    """Root mean square of the sound in decibels of full scale."""
    silence: float
    """Share of the window's 50 ms blocks that stay below the silence threshold."""
    lufs: float | None = None
    """Loudness of the mean of all channels (ITU-R BS.1770), at least -70."""
    clipped: float | None = None
    """Share of the samples at full scale in any channel."""
    black: float | None = None
    """Share of the time with a black picture."""
    frozen: float | None = None
    """Share of the time in which the picture does not change."""
    mismatch: float | None = None
    """Seconds of the picture without sound."""
    speech: float | None = None
    """Share of the time with speech, where it was looked for."""
    music: float | None = None
    """Share of the time with music or singing, where it was looked for."""
    track: int = 0
    """Number of the sound track, from 0 on."""
    breaks: str = ""
    """The rules that it breaks, kept all the same."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return round(self.end - self.start, 6)


@dataclass(frozen=True)
class LeftOut:
    """A file, or one window of it, that is not used."""

    video: str
    reason: str
    start: float | None = None
    """Seconds; None for the whole file."""
    end: float | None = None


def find_videos(root: Path, ignored: tuple[Path, ...] = (), recursive: bool = False) -> list[Path]:
    """The files in `root` that are not hidden, no captions and not among or below `ignored`, by name.

    `recursive`: those in its sub-folders too. Files that are no videos, links to nothing and folders that cannot be
    looked into are in it: splitting names them as left out. DataError where there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'a file' if root.exists() else 'not there'}; a folder of videos is expected")
    others = {path for given in ignored for path in (given, given.resolve())}
    files = [path for path in _files(root, recursive) if not _hidden(path.relative_to(root))]
    videos = {path.with_suffix("") for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    captions = {path for path in files if path.suffix.lower() == ".txt" and path.with_suffix("") in videos}
    kept = [
        path
        for path in files
        if path not in captions
        and path.name != FOLDER_CAPTION
        and others.isdisjoint([Path(os.path.realpath(path)), *path.parents])
    ]
    return sorted(kept, key=lambda path: path.relative_to(root).as_posix())


def _files(root: Path, recursive: bool) -> list[Path]:
    """All files. Links to folders are followed, but no folder is looked into twice, and none of an experiment's."""
    found: list[Path] = []
    seen: set[Path] = set()

    def refused(error: OSError) -> None:
        if Path(error.filename) == root:
            raise DataError(f"{root}: cannot be read ({error.strerror})") from error
        found.append(Path(error.filename))

    for folder, below, names in os.walk(root, onerror=refused, followlinks=True):
        if _of_experiment(root, folder, below, names):
            continue
        seen.add(Path(folder).resolve())
        found += [path for name in names if (path := Path(folder, name)).is_file() or _broken(path)]
        below[:] = [name for name in sorted(below) if recursive and Path(folder, name).resolve() not in seen]
    return found


def _of_experiment(root: Path, folder: str, below: list[str], names: list[str]) -> bool:
    """Whether `folder` below `root` is an experiment's; os.walk then looks into none `below` it."""
    if Path(folder) == root or RESULTS.isdisjoint([*below, *names]):
        return False
    below.clear()
    return True


def video_below(root: Path, ignored: tuple[Path, ...] = ()) -> str | None:
    """The first video in a sub-folder of `root`, where only --recursive looks; None where there is none."""
    others = {path.resolve() for path in ignored}
    for folder, below, names in os.walk(root):
        if _of_experiment(root, folder, below, names):
            continue
        below[:] = sorted(name for name in below if name[0] != "." and Path(folder, name).resolve() not in others)
        videos = [name for name in names if name[0] != "." and Path(name).suffix.lower() in VIDEO_SUFFIXES]
        if Path(folder) != root and videos:
            return Path(folder, min(videos)).relative_to(root).as_posix()
    return None


def _broken(path: Path) -> bool:
    """Whether it is a link to nothing, or to itself."""
    return path.is_symlink() and not os.path.exists(path)  # noqa: PTH110, Path's own raises where a folder forbids a look


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def check_table(path: Path) -> None:
    """ConfigError where `path` is no name for a table of clips, or the file there is something else's, not to lose."""
    wanted = "--output_tsv takes a name such as lora_data/clips.tsv"
    if path.suffix != ".tsv" or path.is_dir():
        raise ConfigError(f"{path}: no name of a table; {wanted}")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(64).removeprefix(BOM_UTF8).startswith(b"id\tvideo\t"):
                raise ConfigError(f"{path}: is there already and no table of clips, so it stays; {wanted}")


def left_out_path(clips_tsv: Path) -> Path:
    """The table of what was left out, beside the table of clips."""
    return clips_tsv.with_suffix(".left_out.tsv")


def write_clips(path: Path, clips: list[Clip]) -> bool:
    """Write the table; False where the file already says the same and stays untouched."""
    return _write(path, Clip, clips)


def write_left_out(path: Path, rows: list[LeftOut]) -> bool:
    """Write the table of what was left out; False where the file already says the same and stays untouched."""
    return _write(path, LeftOut, rows)


def read_clips(path: Path) -> list[Clip]:
    """The clips of a table; DataError that names the line where one makes no sense."""
    clips = [_clip(path, number, row) for number, row in _rows(path, Clip)]
    if len({clip.id for clip in clips}) < len(clips):
        raise DataError(f"{path}: an id stands there twice; every clip needs its own")
    return clips


def read_left_out(path: Path) -> list[LeftOut]:
    """What a table of left-out files and windows lists, nothing where there is no such file."""
    if not path.is_file():
        return []
    return [
        LeftOut(row["video"], row["reason"], *(float(row[name]) if row[name] else None for name in ("start", "end")))
        for _, row in _rows(path, LeftOut)
    ]


def _clip(path: Path, number: int, row: dict[str, str]) -> Clip:
    try:
        start, end, peak_db, rms_db, silence = (float(row[name]) for name in NUMBERS)
        measured = {name: float(row[name]) for name in MEASURED if row.get(name)}
        track = int(row.get("track") or 0)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, line {number}: {error}") from error
    if row["split"] not in SPLITS or not 0 <= start < end < math.inf:
        raise DataError(f"{path}, line {number}: split {row['split']!r}, {start} to {end} s makes no sense")
    if not row["id"] or not row["video"]:
        raise DataError(f"{path}, line {number}: every clip needs an id and a video")
    return Clip(
        row["id"],
        row["video"],
        start,
        end,
        row["caption"],
        row["split"],
        peak_db,
        rms_db,
        silence,
        **measured,
        track=track,
        breaks=row.get("breaks") or "",
    )


def _rows(path: Path, kind: type[Row]) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells by name of every row."""
    if not path.is_file():
        raise DataError(f"{path}: not there; split the videos first (training/split_videos_for_finetuning.py)")
    text = read_text(path)
    columns = table_columns(path, text, "\t")
    needed = [field.name for field in fields(kind) if kind is LeftOut or field.default is MISSING]
    absent = [name for name in needed if name not in columns]
    if absent:
        raise DataError(f"{path}: no column {', '.join(absent)}; split the videos again")
    return [(number, _whole(path, number, row)) for number, row in table_rows(path, text, "\t")]


def _whole(path: Path, number: int, row: dict[str, str | None]) -> dict[str, str]:
    """`row` where it has a cell for every column."""
    cells = {name: cell for name, cell in row.items() if cell is not None}
    if len(cells) < len(row):
        raise DataError(f"{path}, line {number}: fewer cells than the first line names columns")
    return cells


def _write(path: Path, kind: type[Row], rows: list[Row]) -> bool:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], dialect="excel-tab", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if cell is None else cell for name, cell in asdict(row).items()} for row in rows)
    content = text.getvalue().encode()
    if path.is_file() and path.read_bytes() == content:
        return False
    with writing(path) as part:
        part.write_bytes(content)
    return True
