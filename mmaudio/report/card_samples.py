"""Samples for a model card: held-out clips as the base and the adapted model sound, under numbers for names."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mmaudio.errors import DataError
from mmaudio.evaluation.clip_set import HELD_OUT
from mmaudio.lora.clip_names import is_listed
from mmaudio.media.audio_file import read_audio_file
from mmaudio.media.mux import mux_audio
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.report.clip_media import MEDIA_FOLDER, clip_stem
from mmaudio.utils.escapes import decode_cell

MAX_SAMPLES = 6
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class HeldOutRow:
    """A clip of the evaluation: its number in the report, its id and its video."""

    number: int
    id: str
    video: str


def read_held_out(path: Path) -> list[HeldOutRow]:
    """The held-out clips in `metrics.tsv`, in the report's order; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["set"] == HELD_OUT]
    return [HeldOutRow(number, row["id"], decode_cell(row["video"])) for number, row in enumerate(rows)]


def choose_samples(rows: Collection[HeldOutRow], count: int, trained: Collection[str]) -> list[HeldOutRow]:
    """At most `count` clips, of as many videos as can be, and of none that is in `trained`."""
    rounds: dict[str, int] = {}
    ranked = []
    for row in rows:
        if not is_listed(row.video, trained):
            rounds[row.video] = rounds.get(row.video, 0) + 1
            ranked.append((rounds[row.video], row.number, row))
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:2])][:count]


def select_played(report: Path, rows: Collection[HeldOutRow]) -> list[HeldOutRow]:
    """The clips that the report in this folder plays; all of them where its media are gone."""
    played = [row for row in rows if any((report / MEDIA_FOLDER).glob(f"{clip_stem(row.number)}_*.flac"))]
    return played or list(rows)


def write_samples(
    report: Path, rows: Collection[HeldOutRow], folder: Path, with_video: bool = False
) -> list[tuple[str, str]]:
    """Write base and adapted of the clips into `folder`, from the media of a `report`'s folder; their names there.

    Audio alone, or `with_video` the small video of the report with that audio. Raises DataError where media are absent.
    """
    (folder / SAMPLES_FOLDER).mkdir()
    names = []
    for index, row in enumerate(rows, 1):
        pair = []
        for sound in (BASE, ADAPTED):
            source = report / MEDIA_FOLDER / f"{clip_stem(row.number)}_{sound}.flac"
            name = f"{SAMPLES_FOLDER}/{index:02d}_{sound}{'.mp4' if with_video else '.flac'}"
            if not source.is_file():
                raise DataError(f"{source}: not there; evaluate again, or leave --samples out")
            if with_video:
                audio, sample_rate = read_audio_file(source)
                mux_audio(source.with_name(f"{clip_stem(row.number)}.mp4"), audio, sample_rate, folder / name)
            else:
                shutil.copyfile(source, folder / name)
            pair.append(name)
        names.append((pair[0], pair[1]))
    return names
