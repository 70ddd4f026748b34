"""Generation jobs: the output files of each video or prompt, and their writing.

    job = plan_job(GenerationRequest(Path("dog.mp4")), Path("sound"), count=2)
    write_outputs(job, waveforms, sample_rate, settings)

Audio is written to .flac and, with the copied video stream, to a video file; or to the one file of --output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
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
from mmaudio.media.audio_file import CODECS, write_audio
from mmaudio.media.containers import CONTAINERS, can_hold_video, choose_suffix
from mmaudio.media.mux import mux_audio

LEFT_OUT_TABLE = "generation.left_out.tsv"
"""File in the output folder that names what the last run for a folder left out, with the reasons."""
SUFFIXES = (*CODECS, *CONTAINERS)
"""Suffixes of the files that can be written."""


@dataclass(frozen=True)
class OutputFiles:
    """The files that a job writes."""

    by_sample: list[list[Path]]
    """Files of each sample, in the order of the seeds."""

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for paths in self.by_sample for path in paths]

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
    num_complete: int = 0
    """Videos whose output files all exist already."""


def plan_folder(folder: Path, defaults: GenerationRequest, output: Path, count: int, overwrite: bool) -> Plan:
    """Plan the jobs of every video in `folder`; `defaults` has the prompt for videos without a caption file.

    Videos whose output files all exist are skipped, unless `overwrite`. Raises DataError for a missing or empty folder,
    ConfigError for an output that is a file or the folder itself.
    """
    if is_output_file(output) or output.resolve() == folder.resolve():
        raise ConfigError(f"--output {output}: with --folder it is a folder, and not that of the videos")
    videos = find_videos(folder)
    if not videos:
        raise DataError(f"{folder}: no file in it; a folder of videos is expected")
    stems = unique_stems(videos)
    jobs, left_out, num_complete = [], [], 0
    for video in videos:
        try:
            job = plan_job(_request_for(video, defaults), output, count, stems[video])
        except DataError as error:
            left_out.append(LeftOut(video.name, str(error).removeprefix(f"{video.name}: ")))
            continue
        existing = job.outputs.existing
        if overwrite or not existing:
            jobs.append(job)
        elif len(existing) == len(job.outputs.paths):
            num_complete += 1
        else:
            reason = f"{existing[0]} is there already, others are not; take --overwrite"
            left_out.append(LeftOut(video.name, reason))
    return Plan(jobs, left_out, len(videos), num_complete)


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


def plan_job(request: GenerationRequest, output: Path, count: int, stem: str | None = None) -> Job:
    """Plan the job of a request: `count` samples in the folder `output`, or in that file if it has one of SUFFIXES.

    `stem`: of the files' names, by default the video's, or "sound". Raises DataError for an unusable video, ConfigError
    for an unsuitable output.
    """
    clip_range = find_clip_range(request)
    video = request.video
    folder, stem, suffixes = output, stem or (video.stem if video is not None else "sound"), [".flac"]
    if is_output_file(output):
        folder, stem, suffixes = output.parent, output.stem, [output.suffix]
        _check_output_file(output, video, request.video_track)
    elif video is not None:
        suffixes.append(choose_suffix(video, request.video_track))
    seeds = range(request.seed, request.seed + count)
    stems = [stem] if count == 1 else [f"{stem}_seed{seed}" for seed in seeds]
    outputs = OutputFiles([[folder / f"{name}{suffix}" for suffix in suffixes] for name in stems])
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


def _check_output_file(output: Path, video: Path | None, video_track: int | None) -> None:
    suffix = output.suffix.lower()
    if suffix in CODECS:
        return
    if video is None:
        raise ConfigError(f"--output {output}: there is no --video to take the picture from; choose .flac or .wav")
    if not can_hold_video(video, suffix, video_track):
        raise ConfigError(f"--output {output}: that kind of file does not take the picture of {video.name}; .mkv does")


def _request_for(video: Path, defaults: GenerationRequest) -> GenerationRequest:
    if video.suffix.lower() not in VIDEO_SUFFIXES:
        raise DataError(f"{video.name}: no video file ({video.suffix or 'no suffix'})")
    return replace(defaults, video=video, prompt=find_caption(video, defaults.prompt))


def unique_stems(videos: Sequence[Path]) -> dict[Path, str]:
    """Choose the stem of each video's output files: the video's stem, or its whole name where two would collide."""
    counts = Counter(name.lower() for video in videos for name in (video.stem, video.name))
    return {video: video.stem if counts[video.stem.lower()] == 1 else video.name for video in videos}


def write_outputs(job: Job, waveforms: Tensor, sample_rate: int, settings: Mapping[str, Any]) -> None:
    """Write the waveforms (count, samples) as audio files, and into copies of the video from the request's start on.

    The request and the `settings` are stored in each file's comment tag, as JSON. Raises DataError and MMAudioError as
    `mux_audio`.
    """
    request = job.request
    for i, (paths, waveform) in enumerate(zip(job.outputs.by_sample, waveforms, strict=True)):
        provenance = {
            **settings,
            "prompt": request.prompt,
            "prompts": [(prompt.start, prompt.last_time, prompt.text) for prompt in request.prompts],
            "one_pass": request.one_pass,
            "negative_prompt": request.negative_prompt,
            "start": request.start,
            "seconds": job.clip_range.seconds,
            "seed": request.seed + i,
            "method": request.method,
            "video_track": request.video_track,
        }
        tags = {"comment": json.dumps(provenance, ensure_ascii=False, sort_keys=True)}
        for path in paths:
            if path.suffix.lower() in CODECS:
                write_audio(path, waveform.numpy(), sample_rate, tags)
                continue
            assert request.video is not None
            silence = torch.zeros(round(request.start * sample_rate))
            samples = torch.cat([silence, waveform]).numpy()
            mux_audio(request.video, samples, sample_rate, path, tags, request.streams)
