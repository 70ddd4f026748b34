"""What one video, or one prompt, becomes: the wish, and the files that its sounds are written to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaudio.data.captions import caption
from mmaudio.data.clips import VIDEO_SUFFIXES, LeftOut, find_videos
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.generate import LONGEST, Span, Wish, span
from mmaudio.media.audio_file import CODECS, write_sound
from mmaudio.media.containers import CONTAINERS, fits, suffix_for
from mmaudio.media.mux import mux_audio

KINDS = (*CODECS, *CONTAINERS)
"""What a file to write may end in."""


@dataclass(frozen=True)
class Job:
    """One video, or one prompt, and where its sounds go."""

    wish: Wish
    span: Span
    takes: list[list[Path]]
    """The files of each sound, in the order of the seeds."""

    @property
    def files(self) -> list[Path]:
        """All files that it writes."""
        return [file for take in self.takes for file in take]

    @property
    def existing(self) -> list[Path]:
        """Those of them that are there."""
        return [file for file in self.files if file.exists()]

    def notes(self) -> list[str]:
        """What a user may not expect of it."""
        video = self.wish.video
        said: list[str] = []
        if video is None or self.span.left is None:
            return said
        if self.span.left - self.span.seconds > 0.1:
            said.append(
                f"{video.name}: {self.span.left:.2f} s of picture, sound for {self.span.seconds:g} s of it; "
                f"--seconds takes up to {LONGEST:g}"
            )
        elif self.wish.seconds is not None and self.wish.seconds - self.span.seconds > 0.1:
            said.append(f"{video.name}: the picture ends after {self.span.left:.2f} s, and the sound with it")
        moved = sorted({file.suffix for file in self.files if file.suffix in CONTAINERS} - {video.suffix.lower()})
        if moved:
            said.append(
                f"{video.name}: its picture is copied into {', '.join(moved)}, as a {video.suffix} is not written"
            )
        return said


@dataclass(frozen=True)
class Plan:
    """What is made of a folder."""

    jobs: list[Job]
    left_out: list[LeftOut] = field(default_factory=list)
    """Files that cannot be used, with the reason."""
    found: int = 0
    """Files in all."""
    kept: int = 0
    """Videos whose files are there already."""
    broken: int = 0
    """Videos among those left out; the others are no videos at all."""


def plan_folder(folder: Path, common: Wish, output: Path, count: int, overwrite: bool) -> Plan:
    """The jobs of every video in `folder`, whose `common` wish has the prompt for those without a caption beside them.

    Videos whose files are all there are passed over, unless `overwrite`. Raises DataError where there is no folder or
    nothing in it, ConfigError for an output that is a file or the folder itself.
    """
    if is_file(output) or output.resolve() == folder.resolve():
        raise ConfigError(f"--output {output}: with --folder it is a folder, and not that of the videos")
    videos = find_videos(folder)
    if not videos:
        raise DataError(f"{folder}: no file in it; a folder of videos is expected")
    names = stems(videos)
    jobs, left_out, kept, broken = [], [], 0, 0
    for video in videos:
        try:
            job = job_for(_wish_for(common, video), output, count, names[video])
        except DataError as error:
            left_out.append(LeftOut(video.name, str(error).removeprefix(f"{video.name}: ")))
            broken += video.suffix.lower() in VIDEO_SUFFIXES
            continue
        there = job.existing
        if there and not overwrite and len(there) < len(job.files):
            left_out.append(LeftOut(video.name, f"{there[0]} is there already, others are not; take --overwrite"))
            broken += 1
        elif there and not overwrite:
            kept += 1
        else:
            jobs.append(job)
    return Plan(jobs, left_out, len(videos), kept, broken)


def job_for(wish: Wish, output: Path, count: int, stem: str | None = None) -> Job:
    """The job of a wish: `count` sounds, in the folder `output` or, where it ends in one of KINDS, in that one file.

    `stem` names the files; without one the video or the prompt's "sound" does. Raises DataError for a video that cannot
    be used, ConfigError for an output that does not fit.
    """
    reach = span(wish)
    folder, name, suffixes = output, stem or (wish.video.stem if wish.video is not None else "sound"), [".flac"]
    if is_file(output):
        folder, name, suffixes = output.parent, output.stem, [output.suffix]
        _check_file(output, wish.video)
    elif wish.video is not None:
        suffixes.append(suffix_for(wish.video))
    seeds = range(wish.seed, wish.seed + count)
    names = [name] if count == 1 else [f"{name}_seed{seed}" for seed in seeds]
    takes = [[folder / f"{own}{suffix}" for suffix in suffixes] for own in names]
    job = Job(wish, reach, takes)
    if wish.video is not None and wish.video.resolve() in {file.resolve() for file in job.files}:
        raise ConfigError(f"{wish.video}: the video itself would be overwritten; choose another --output")
    return job


def is_file(output: Path) -> bool:
    """Whether `output` names one file, not a folder; ConfigError for a suffix that is none of KINDS."""
    if output.is_dir() or not output.suffix:
        return False
    if output.suffix.lower() not in KINDS:
        raise ConfigError(f"--output {output}: a folder, or a file that ends in {', '.join(KINDS)}")
    return True


def _check_file(output: Path, video: Path | None) -> None:
    suffix = output.suffix.lower()
    if suffix in CODECS:
        return
    if video is None:
        raise ConfigError(f"--output {output}: there is no --video to take the picture from; choose .flac or .wav")
    if not fits(video, suffix):
        raise ConfigError(f"--output {output}: that kind of file does not take the picture of {video.name}; .mkv does")


def _wish_for(common: Wish, video: Path) -> Wish:
    if video.suffix.lower() not in VIDEO_SUFFIXES:
        raise DataError(f"{video.name}: no video file ({video.suffix or 'no suffix'})")
    return replace(common, video=video, prompt=caption(video, common.prompt))


def stems(videos: Sequence[Path]) -> dict[Path, str]:
    """What each video's files are called: its name without the suffix, or with it where two would be the same."""
    taken = Counter(name.lower() for video in videos for name in (video.stem, video.name))
    return {video: video.stem if taken[video.stem.lower()] == 1 else video.name for video in videos}


def write(job: Job, waveforms: Tensor, rate: int, settings: Mapping[str, Any]) -> None:
    """Write the sounds (count, samples) at `rate` Hz, each alone or beside the picture, from the wish's start on.

    What each was made from stays in the file, as JSON in its comment. Raises DataError and MMAudioError as `mux_audio`.
    """
    wish = job.wish
    for number, (take, waveform) in enumerate(zip(job.takes, waveforms, strict=True)):
        made_from = {**settings, "prompt": wish.prompt, "negative_prompt": wish.negative_prompt, "start": wish.start}
        made_from |= {"seconds": job.span.seconds, "seed": wish.seed + number, "method": wish.method}
        tags = {"comment": json.dumps(made_from, ensure_ascii=False, sort_keys=True)}
        for file in take:
            if file.suffix.lower() in CODECS:
                write_sound(file, waveform.numpy(), rate, tags)
                continue
            assert wish.video is not None
            before = torch.zeros(round(wish.start * rate))
            mux_audio(wish.video, torch.cat([before, waveform]).numpy(), rate, file, tags)
