"""Check of the training clips for audio that is out of sync with the video, which a model cannot learn from.

DeSync decides where the model's Synchformer has its classifier, otherwise the lag between onsets and sudden motion
(`metrics.av_offset`). Neither can decide on a steady sound or a video without motion: those clips are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaudio.data.clip_table import read_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import find_damage, read_left_out_videos, read_shard, shard_path
from mmaudio.data.fingerprint import fingerprint
from mmaudio.errors import DataError
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.sync_report import OutOfSyncClip, SyncReport
from mmaudio.features.desync import DeSync, load_desync
from mmaudio.features.mel import build_mel
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.video import probe
from mmaudio.metrics.av_offset import ClipEnvelopes, envelope_at_frames, estimate_offsets, motion_envelope
from mmaudio.metrics.desync_score import find_desync
from mmaudio.metrics.motion_agreement import read_grey_frames
from mmaudio.metrics.onsets import onset_envelope
from mmaudio.metrics.pretrained_metrics import ModelSearch, PretrainedSource
from mmaudio.model.spec import CodecSpec, model_spec
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines

DESYNC = "DeSync, as Synchformer hears and sees it"
MOTION = "the lag between onsets in the sound and sudden motion in the picture"
MIN_OFFSET = 0.6
"""Seconds of DeSync from which a clip is listed; released systems have 0.44 to 0.48 on average (arXiv 2412.15322)."""
MAX_DISAGREEMENT = 0.4
"""Seconds by which DeSync's two offsets of a clip may differ: of a steady sound they are random."""
TOLERANCE = 1e-6
"""Rounding of offsets, which are multiples of 0.2 s."""


@dataclass(frozen=True)
class SyncCheck:
    """A planned check of the training clips."""

    config: EvaluationConfig
    search: ModelSearch
    clips: Sequence[Clip]
    """By video and time."""
    synchformer: PretrainedSource | str
    """The Synchformer with its classifier, or why there is none."""

    @property
    def identity(self) -> dict[str, Any]:
        """What its outcome depends on."""
        synchformer = self.synchformer if isinstance(self.synchformer, str) else self.synchformer.identity
        videos = [fingerprint(self.config.video_root / video) for video in dict.fromkeys(c.video for c in self.clips)]
        return {"clips": [asdict(clip) for clip in self.clips], "videos": videos, "judge": synchformer}

    def run(self) -> SyncReport:
        """Check the clips and print the outcome."""
        config, search = self.config, self.search
        desync = None
        if not isinstance(self.synchformer, str):
            desync = load_desync(search.model, search.weights, search.device)
        codec = model_spec(search.model).codec
        report = check_sync(self.clips, config.video_root, config.features_dir, codec, desync, search.device)
        print_lines(*report.terminal_lines(), flush=True)
        return report


def plan_sync_check(config: EvaluationConfig, search: ModelSearch) -> SyncCheck | None:
    """The check, where the config asks for one; DataError where there is nothing to check."""
    if not config.check_data:
        return None
    unusable = {row.video for row in read_left_out_videos(config.clips_tsv, config.features_dir)}
    clips = [clip for clip in read_clips(config.clips_tsv) if clip.split == "train" and clip.video not in unusable]
    if not clips:
        raise DataError(f"{config.clips_tsv}: no clip to train on in it, so no data to check (--check-data)")
    videos = dict.fromkeys(clip.video for clip in clips)
    absent = [video for video in videos if not (config.video_root / video).is_file()]
    if absent:
        raise DataError(
            f"{config.video_root}: {len(absent)} training videos are not there ({', '.join(absent[:3])}); --check-data "
            "needs them"
        )
    ordered = sorted(clips, key=lambda clip: (clip.video, clip.start))
    return SyncCheck(config, search, ordered, find_desync(search, ("desync",)))


def check_sync(
    clips: Sequence[Clip],
    video_root: Path,
    features_dir: Path,
    codec: CodecSpec,
    desync: DeSync | None,
    device: torch.device,
) -> SyncReport:
    """Check clips, ordered by video and time: with `desync` on the stored features, otherwise by motion."""
    if desync is None:
        out_of_sync, undecided = _check_by_motion(clips, video_root, codec, device)
    else:
        out_of_sync, undecided = _check_by_desync(clips, video_root, features_dir, codec, desync)
    worst_first = sorted(out_of_sync, key=lambda clip: (-clip.seconds, clip.video, clip.start))
    return SyncReport(MOTION if desync is None else DESYNC, len(clips), worst_first, undecided)


def _check_by_desync(
    clips: Sequence[Clip], video_root: Path, features_dir: Path, codec: CodecSpec, desync: DeSync
) -> tuple[list[OutOfSyncClip], int]:
    """Clips whose two offsets are far from zero and agree, and the number of clips whose offsets disagree."""
    device, out_of_sync, undecided = desync.vproj.weight.device, [], 0
    for video, video_clips in _by_video(clips):
        header, features = read_shard(shard_path(features_dir, video))
        if features is None:
            raise DataError(f"{shard_path(features_dir, video)}: no features in it; extract again")
        if damage := find_damage(shard_path(features_dir, video), header, {clip.id for clip in video_clips}):
            raise DataError(f"{shard_path(features_dir, video)}: {damage}; delete it and extract again")
        for clip, waveform in zip(video_clips, _read_audio(video_root / video, video_clips, codec), strict=True):
            sync_features = features.sync_features[header.clip_ids.index(clip.id)].to(device)
            offsets = desync.predict_offsets(sync_features, waveform[None].to(device), codec.sample_rate)
            first, last = offsets[0].tolist()
            agree = abs(first - last) <= MAX_DISAGREEMENT + TOLERANCE
            undecided += not agree
            offset = abs(first + last) / 2
            if agree and offset >= MIN_OFFSET - TOLERANCE:
                description = f"sound and picture are about {offset:.1f} s apart"
                out_of_sync.append(OutOfSyncClip(video, clip.start, clip.end, offset, description))
    return out_of_sync, undecided


def envelopes(
    clips: Sequence[Clip], video_root: Path, codec: CodecSpec, device: torch.device
) -> Iterator[ClipEnvelopes]:
    """Motion and onset envelopes of the clips, which are ordered by video and time."""
    to_mel = build_mel(codec.name).to(device)
    for video, video_clips in _by_video(clips):
        frames_by_clip = _read_frames(video_root / video, video_clips)
        audio_by_clip = _read_audio(video_root / video, video_clips, codec)
        for frames, waveform in zip(frames_by_clip, audio_by_clip, strict=True):
            onsets = onset_envelope(to_mel(waveform[None].to(device)), codec)[0]
            onsets_at_frames = envelope_at_frames(onsets, codec.hop_length / codec.sample_rate, len(frames))
            yield ClipEnvelopes(video, motion_envelope(frames), onsets_at_frames)


def _check_by_motion(
    clips: Sequence[Clip], video_root: Path, codec: CodecSpec, device: torch.device
) -> tuple[list[OutOfSyncClip], int]:
    """Clips whose audio is clearly shifted, alone or with their whole video, and the number of undecided clips."""
    offsets = estimate_offsets(list(envelopes(clips, video_root, codec, device)))
    out_of_sync = []
    for clip, offset in zip(clips, offsets, strict=True):
        if offset.seconds is not None:
            side = "late" if offset.seconds > 0 else "early"
            description = f"the sound is about {abs(offset.seconds):.1f} s {side}"
            description += ", as the video's clips tell together" if offset.by_video else ""
            out_of_sync.append(OutOfSyncClip(clip.video, clip.start, clip.end, abs(offset.seconds), description))
    return out_of_sync, sum(offset.seconds is None and not offset.in_sync for offset in offsets)


def _by_video(clips: Sequence[Clip]) -> Iterator[tuple[str, list[Clip]]]:
    groups = [(video, list(video_clips)) for video, video_clips in groupby(clips, key=lambda clip: clip.video)]
    return progress(iter(groups), len(groups), "checking the data, by video")


def _read_audio(path: Path, clips: Sequence[Clip], codec: CodecSpec) -> Iterator[Tensor]:
    """The audio (T,) of clips of one video, in order of time, as training reads it."""
    length = max(math.ceil(clip.seconds * codec.sample_rate) for clip in clips)
    starts, gains_db = [clip.start for clip in clips], [clip.gain_db for clip in clips]
    return read_audio_windows(probe(path, clips[0].streams), starts, codec.sample_rate, length, gains_db=gains_db)


def _read_frames(path: Path, clips: Sequence[Clip]) -> Iterator[Tensor]:
    """Small grey frames (F, FRAME_SIZE, FRAME_SIZE) of clips of one video, in order of time."""
    seconds = min(clip.seconds for clip in clips)
    return read_grey_frames(path, [clip.start for clip in clips], seconds, clips[0].streams)
