"""Generation jobs: the output files of each video or prompt, and their writing.

    job = plan_job(GenerationRequest(Path("dog.mp4")), Path("sound"), count=2)
    write_outputs(job, waveforms, sample_rate, settings)

Audio is written to .flac and, with the copied video stream, to a video file; or to the one file of --output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaudio.data.captions import find_caption
from mmaudio.data.clip_table import read_left_out, write_left_out
from mmaudio.data.clips import LeftOut
from mmaudio.data.video_files import VIDEO_SUFFIXES, find_videos
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.generate import ClipRange, GenerationRequest, find_clip_range
from mmaudio.generation.take_ranking import RankedTakes, check_rankable, write_takes
from mmaudio.media.audio_file import CODECS, write_audio
from mmaudio.media.containers import CONTAINERS, can_hold_video, choose_suffix
from mmaudio.media.mux import mux_audio
from mmaudio.media.still_video import write_still_video

LEFT_OUT_TABLE = "generation.left_out.tsv"
"""File in the output folder that names what the last run for a folder left out, with the reasons."""
STILL_SUFFIX = ".mp4"
"""Suffix of a video of a still."""
SUFFIXES = (*CODECS, *CONTAINERS)
"""Suffixes of the files that can be written."""


@dataclass(frozen=True)
class OutputFiles:
    """The files that a job writes."""

    by_sample: list[list[Path]]
    """Files of each sample, in the order of the seeds, or of the ranks."""
    table: Path | None = None
    """Of all takes with their scores, where they are ranked."""

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for paths in self.by_sample for path in paths] + ([] if self.table is None else [self.table])

    @property
    def existing(self) -> list[Path]:
        """The files that exist already."""
        return [path for path in self.paths if path.exists()]


@dataclass(frozen=True)
class Job:
    """One video, or one prompt, and the files that its samples are written to."""

    request: GenerationRequest
    clip_range: ClipRange
    outputs: OutputFiles

    def notes(self) -> list[str]:
        """Notes on what a user may not expect: audio shorter than the video, or another container."""
        video, available, seconds = self.request.video, self.clip_range.available, self.clip_range.seconds
        if video is None or available is None:
            return []
        notes = [f"{video.name}: {self.clip_range.note}"] if self.clip_range.note else []
        if available - seconds > 0.1:
            notes.append(f"{video.name}: {available:.2f} s of picture, audio for {seconds:g} s of it")
        elif self.request.seconds is not None and self.request.seconds - seconds > 0.1:
            notes.append(f"{video.name}: the picture ends after {available:.2f} s, and the audio with it")
        suffixes = {path.suffix for path in self.outputs.paths if path.suffix in CONTAINERS} - {video.suffix.lower()}
        if suffixes:
            notes.append(
                f"{video.name}: its picture is copied into {', '.join(sorted(suffixes))}, as a {video.suffix} is not "
                "written"
            )
        return notes


@dataclass(frozen=True)
class Plan:
    """The jobs of a folder of videos, or a single job."""

    jobs: list[Job]
    left_out: list[LeftOut] = field(default_factory=list)
    """Unusable files with the reasons."""
    num_files: int = 0
    """Files in all."""
    complete: list[Job] = field(default_factory=list)
    """Jobs whose output files all exist already."""
    changes: list[str] = field(default_factory=list)
    """Videos whose files are replaced, and what is different now."""


def plan_folder(
    folder: Path,
    defaults: GenerationRequest,
    output: Path,
    count: int,
    overwrite: bool,
    metric: str = "",
    find_changes: Callable[[Job], str | None] = lambda job: None,
) -> Plan:
    """Plan the jobs of every video in `folder`; `defaults` has the prompt for videos without a caption file.

    Videos whose output files all exist are skipped, unless `overwrite`, or `find_changes` (of GenerationTable) says
    what would be different now. With a `metric` the `count` best takes are written. Raises DataError for a missing or
    empty folder, ConfigError for an output that is a file or the folder itself.
    """
    if is_output_file(output) or output.resolve() == folder.resolve():
        raise ConfigError(f"--output {output}: with --folder it is a folder, and not that of the videos")
    videos = find_videos(folder)
    if not videos:
        raise DataError(f"{folder}: no file in it; a folder of videos is expected")
    stems = unique_stems(videos)
    plan = Plan([], num_files=len(videos))
    for video in videos:
        try:
            job = plan_job(_request_for(video, defaults), output, count, stems[video], metric)
            existing = job.outputs.existing
            changes = None if overwrite or not existing else find_changes(job)
        except DataError as error:
            plan.left_out.append(LeftOut(video.name, str(error).removeprefix(f"{video.name}: ")))
            continue
        is_whole = len(existing) == len(job.outputs.paths)
        if is_whole and not changes and not overwrite:
            plan.complete.append(job)
        elif existing and changes is None and not overwrite:
            reason = f"{existing[0]} is there already, others are not; take --overwrite"
            plan.left_out.append(LeftOut(video.name, reason))
        else:
            plan.jobs.append(job)
            plan.changes.extend([f"{video.name}: {changes}"] if changes else [])
    return plan


def find_new_failures(output: Path, left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """The videos of `left_out` that the table in the folder `output` does not name yet; writes the table anew.

    Files that are no videos are in the table, and no failures. There is no table where nothing was generated.
    """
    table = output / LEFT_OUT_TABLE
    known: list[LeftOut] = []
    with suppress(DataError):  # somebody else's: everything is new
        known = read_left_out(table)
    if output.is_dir() and (left_out or table.exists()):
        write_left_out(table, list(left_out))
    return [row for row in left_out if row not in known and Path(row.video).suffix.lower() in VIDEO_SUFFIXES]


def plan_job(request: GenerationRequest, output: Path, count: int, stem: str | None = None, metric: str = "") -> Job:
    """Plan the job of a request: `count` samples in the folder `output`, or in that file if it has one of SUFFIXES.

    `stem`: of the files' names, by default the video's, or "sound". With a `metric` the samples are the best takes by
    it. Raises DataError for an unusable video, ConfigError for an unsuitable output, and as `check_rankable`.
    """
    clip_range = find_clip_range(request)
    if metric:
        check_rankable(metric, request, clip_range.seconds)
    video, source = request.video, request.video or request.image
    folder, stem, suffixes = output, stem or (source.stem if source is not None else "sound"), [".flac"]
    if is_output_file(output):
        folder, stem, suffixes = output.parent, output.stem, [output.suffix]
        _check_output_file(output, request)
    elif source is not None:
        suffixes.append(STILL_SUFFIX if video is None else choose_suffix(video, request.video_track))
    numbers = range(1, count + 1) if metric else range(request.seed, request.seed + count)
    stems = [stem] if count == 1 else [f"{stem}_{'best' if metric else 'seed'}{number}" for number in numbers]
    files = [[folder / f"{name}{suffix}" for suffix in suffixes] for name in stems]
    outputs = OutputFiles(files, folder / f"{stem}.takes.tsv" if metric else None)
    if video is not None and video.resolve() in {path.resolve() for path in outputs.paths}:
        raise ConfigError(f"{video}: the video itself would be overwritten; choose another --output")
    return Job(request, clip_range, outputs)


def is_output_file(output: Path) -> bool:
    """Whether `output` names a file, not a folder; ConfigError for a suffix that is not in SUFFIXES."""
    if output.is_dir() or not output.suffix:
        return False
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {output}: a folder, or a file that ends in {', '.join(SUFFIXES)}")
    return True


def _check_output_file(output: Path, request: GenerationRequest) -> None:
    suffix, video = output.suffix.lower(), request.video
    if suffix in CODECS:
        return
    if request.image is not None:
        if suffix != STILL_SUFFIX:
            raise ConfigError(f"--output {output}: a still with its audio is written as {STILL_SUFFIX}")
        return
    if video is None:
        raise ConfigError(f"--output {output}: there is no --video to take the picture from; choose .flac or .wav")
    if not can_hold_video(video, suffix, request.video_track):
        raise ConfigError(f"--output {output}: that kind of file does not take the picture of {video.name}; .mkv does")


def _request_for(video: Path, defaults: GenerationRequest) -> GenerationRequest:
    if video.suffix.lower() not in VIDEO_SUFFIXES:
        raise DataError(f"{video.name}: no video file ({video.suffix or 'no suffix'})")
    return replace(defaults, video=video, prompt=find_caption(video, defaults.prompt))


def unique_stems(videos: Sequence[Path]) -> dict[Path, str]:
    """Choose the stem of each video's output files: the video's stem, or its whole name where two would collide."""
    counts = Counter(name.lower() for video in videos for name in (video.stem, video.name))
    return {video: video.stem if counts[video.stem.lower()] == 1 else video.name for video in videos}


def describe_job(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's samples are made from, but for their seeds: the `settings` of the run and the request."""
    request = job.request
    return {
        **settings,
        "video": None if request.video is None else request.video.name,
        "image": None if request.image is None else request.image.name,
        "prompt": request.prompt,
        "prompts": [(prompt.start, prompt.last_time, prompt.text) for prompt in request.prompts],
        "one_pass": request.one_pass,
        "negative_prompt": request.negative_prompt,
        "start": request.start,
        "seconds": job.clip_range.seconds,
        "method": request.method,
        "mask_away_clip": request.mask_away_clip,
        "video_track": request.video_track,
    }


def write_outputs(
    job: Job, waveforms: Tensor, sample_rate: int, settings: Mapping[str, Any], ranked: RankedTakes | None = None
) -> None:
    """Write the waveforms (count, samples) as audio files, and into copies of the video from the request's start on.

    Of `ranked` takes the best are written, and the table of all. The request, the `settings` and a take's score are
    stored in each file's comment tag, as JSON. Raises DataError and MMAudioError as `mux_audio`.
    """
    request, description = job.request, describe_job(job, settings)
    for place, (paths, seed) in enumerate(zip(job.outputs.by_sample, sample_seeds(job, ranked), strict=True)):
        ranking = {} if ranked is None else {"ranking": ranked.describe(place)}
        tags = {"comment": json.dumps(description | {"seed": seed} | ranking, ensure_ascii=False, sort_keys=True)}
        for path in paths:
            _write_audio_or_video(path, request, waveforms[seed - request.seed], sample_rate, tags)
    if ranked is not None and job.outputs.table is not None:
        write_takes(job.outputs.table, ranked, request.seed, [paths[0].name for paths in job.outputs.by_sample])


def sample_seeds(job: Job, ranked: RankedTakes | None = None) -> list[int]:
    """The seeds of the samples that are written: those from the request's on, or of the best takes."""
    count = len(job.outputs.by_sample)
    indices = range(count) if ranked is None else [take.index for take in ranked.takes[:count]]
    return [job.request.seed + index for index in indices]


def _write_audio_or_video(
    path: Path, request: GenerationRequest, waveform: Tensor, sample_rate: int, tags: Mapping[str, str]
) -> None:
    if path.suffix.lower() in CODECS:
        write_audio(path, waveform.numpy(), sample_rate, tags)
    elif request.image is not None:
        write_still_video(path, request.image, waveform.numpy(), sample_rate, tags)
    else:
        assert request.video is not None
        silence = torch.zeros(round(request.start * sample_rate))
        samples = torch.cat([silence, waveform]).numpy()
        mux_audio(request.video, samples, sample_rate, path, tags, request.streams)
