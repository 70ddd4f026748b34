"""The files that splitting writes: the table of clips and those beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmaudio.data.clip_table import left_out_path
from mmaudio.data.table_checksums import checksums_path


@dataclass(frozen=True)
class SplitFiles:
    """The files of one splitting."""

    table: Path

    @property
    def scans(self) -> Path:
        """The measurements of each file."""
        return self.table.with_suffix(".scans.jsonl")

    @property
    def splits(self) -> Path:
        """Which videos are held out."""
        return self.table.with_suffix(".splits.json")

    @property
    def page(self) -> Path:
        """The page that shows every clip."""
        return self.table.with_suffix(".report.html")

    def ignored_paths(self, videos: Path) -> tuple[Path, ...]:
        """The files and folders that are no part of the folder `videos`, wherever the table lies."""
        table = self.table
        paths = [table, left_out_path(table), checksums_path(table), self.scans, self.splits, self.page]
        paths += table.parent.glob(f"{table.stem}.edited-*.tsv")
        if videos.resolve() in table.resolve().parent.parents:
            paths.append(table.parent)  # clips, features and results below the folder of videos
        return tuple(paths)
