"""Which training clips have a sound that does not fit the picture in time: what a model cannot learn from.

DeSync says it where the model's Synchformer has its classifier; otherwise the lag between onsets and sudden motion does
(`motion`). Neither can say it of a steady sound, or of a picture in which nothing happens: those clips are counted.
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
from torchvision.transforms.v2 import functional as vision

from mmaudio.data.clips import Clip, read_clips
from mmaudio.data.feature_store import left_out, read_shard, shard_path
from mmaudio.data.scan import fingerprint
from mmaudio.errors import DataError
from mmaudio.evaluation.config import Request
from mmaudio.features.desync import DeSync, load_desync
from mmaudio.features.mel import build_mel
from mmaudio.media.audio_windows import read_sounds
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.video import probe
from mmaudio.metrics.av_offset import SIDE, Envelopes, at_frames, motion_envelope, shifts
from mmaudio.metrics.desync_score import find_synchrony
from mmaudio.metrics.onsets import onset_envelope
from mmaudio.metrics.pretrained_metrics import Candidate
from mmaudio.metrics.search import Search
from mmaudio.model.spec import SYNC_FPS as FPS
from mmaudio.model.spec import CodecSpec, model_spec
from mmaudio.utils.progress import progress

DESYNC = "DeSync, as Synchformer hears and sees it"
MOTION = "the lag between onsets in the sound and sudden motion in the picture"
NOTICED = 0.6
"""Seconds of DeSync from which a clip is listed; released systems have 0.44 to 0.48 on average (arXiv 2412.15322)."""
AGREE = 0.4
"""Seconds within which DeSync's two offsets of a clip have to agree: a sound without a right time has two at random."""
SHOWN = 20
"""Clips that a terminal lists."""


@dataclass(frozen=True)
class Misfit:
    """A training clip whose sound does not fit its picture."""

    video: str
    start: float
    end: float
    seconds: float
    """How far the sound is from the picture."""
    what: str
    """In words."""


@dataclass(frozen=True)
class DataCheck:
    """What the check of the training clips came to."""

    way: str
    """How sound and picture were compared."""
    clips: int
    misfits: Sequence[Misfit]
    """Worst first."""
    unclear: int
    """Clips of which nothing can be told."""

    def plain(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return asdict(self)

    def summary(self) -> str:
        """The outcome in a sentence."""
        verb = "has" if len(self.misfits) == 1 else "have"
        few = f"{len(self.misfits)} of {self.clips} training clips {verb} a sound that does not fit the picture"
        unclear = f" Of {self.unclear} nothing can be told: steady sounds, or little that moves."
        return f"{few}, by {self.way}.{unclear if self.unclear else ''}"

    def terminal(self) -> list[str]:
        """The same with the worst clips, as lines."""
        lines = [f"  {one.video}, {one.start:g} to {one.end:g} s: {one.what}" for one in self.misfits[:SHOWN]]
        more = [f"  and {len(self.misfits) - SHOWN} more, in the report"] if len(self.misfits) > SHOWN else []
        return [f"data: {self.summary()}", *lines, *more]


@dataclass(frozen=True)
class Check:
    """A check of the training clips that was asked for."""

    request: Request
    search: Search
    clips: Sequence[Clip]
    """By video and time."""
    judge: Candidate | str
    """DeSync's, or why there is none."""

    @property
    def identity(self) -> dict[str, Any]:
        """What its outcome depends on."""
        judge = self.judge if isinstance(self.judge, str) else self.judge.identity
        videos = [fingerprint(self.request.videos / video) for video in dict.fromkeys(c.video for c in self.clips)]
        return {"clips": [asdict(clip) for clip in self.clips], "videos": videos, "judge": judge}

    def run(self) -> DataCheck:
        """Check them, and print the outcome."""
        request, search = self.request, self.search
        judge = None
        if not isinstance(self.judge, str):
            judge = load_desync(search.model, search.weights, search.device)
        codec = model_spec(search.model).codec
        found = check_data(self.clips, request.videos, request.features, codec, judge, search.device)
        print("\n".join(found.terminal()), flush=True)
        return found


def asked_check(request: Request, search: Search) -> Check | None:
    """The check that the request asks for, if it does; DataError where there is nothing to check."""
    if not request.check_data:
        return None
    unusable = {row.video for row in left_out(request.clips, request.features)}
    clips = [clip for clip in read_clips(request.clips) if clip.split == "train" and clip.video not in unusable]
    if not clips:
        raise DataError(f"{request.clips}: no clip to train on in it, so no data to check (--check-data)")
    absent = [name for name in dict.fromkeys(clip.video for clip in clips) if not (request.videos / name).is_file()]
    if absent:
        named = ", ".join(absent[:3])
        raise DataError(
            f"{request.videos}: {len(absent)} training videos are not there ({named}); --check-data needs them"
        )
    ordered = sorted(clips, key=lambda clip: (clip.video, clip.start))
    return Check(request, search, ordered, find_synchrony(search))


def check_data(
    clips: Sequence[Clip], videos: Path, features: Path, codec: CodecSpec, judge: DeSync | None, device: torch.device
) -> DataCheck:
    """Check clips, given by video and time; with `judge` by DeSync on the pictures' features, else by their motion."""
    if judge is None:
        misfits, unclear = _by_motion(clips, videos, codec, device)
    else:
        misfits, unclear = _by_desync(clips, videos, features, codec, judge)
    worst = sorted(misfits, key=lambda one: (-one.seconds, one.video, one.start))
    return DataCheck(MOTION if judge is None else DESYNC, len(clips), worst, unclear)


def _by_desync(
    clips: Sequence[Clip], root: Path, features: Path, codec: CodecSpec, judge: DeSync
) -> tuple[list[Misfit], int]:
    """Clips whose two offsets are far from zero and agree; of those where they do not agree nothing can be told."""
    device, misfits, unclear = judge.vproj.weight.device, [], 0
    for video, own in _videos(clips):
        header, rows = read_shard(shard_path(features, video))
        if rows is None:
            raise DataError(f"{shard_path(features, video)}: no features in it; extract again")
        for clip, sound in zip(own, _sounds(root / video, own, codec), strict=True):
            seen = rows.sync_features[header.clip_ids.index(clip.id)].to(device)
            first, last = judge.offsets(seen, sound[None].to(device), codec.rate)[0].tolist()
            clear = abs(first - last) <= AGREE + 1e-6
            unclear += not clear
            size = abs(first + last) / 2
            if clear and size >= NOTICED - 1e-6:
                what = f"sound and picture are about {size:.1f} s apart"
                misfits.append(Misfit(video, clip.start, clip.end, size, what))
    return misfits, unclear


def envelopes(clips: Sequence[Clip], root: Path, codec: CodecSpec, device: torch.device) -> Iterator[Envelopes]:
    """Motion and onsets of each of the clips, given by video and time."""
    to_mel = build_mel(codec.name).to(device)
    for video, own in _videos(clips):
        for frames, sound in zip(_frames(root / video, own), _sounds(root / video, own, codec), strict=True):
            onsets = onset_envelope(to_mel(sound[None].to(device)), codec)[0]
            at = at_frames(onsets, codec.hop / codec.rate, len(frames))
            yield Envelopes(video, motion_envelope(frames), at)


def _by_motion(clips: Sequence[Clip], root: Path, codec: CodecSpec, device: torch.device) -> tuple[list[Misfit], int]:
    """Clips whose sound is clearly shifted, from the clip or from its video as a whole."""
    found = shifts(list(envelopes(clips, root, codec, device)))
    misfits = []
    for clip, shift in zip(clips, found, strict=True):
        if shift.seconds is not None:
            side = "late" if shift.seconds > 0 else "early"
            what = f"the sound is about {abs(shift.seconds):.1f} s {side}"
            what += ", as the video's clips tell together" if shift.by_video else ""
            misfits.append(Misfit(clip.video, clip.start, clip.end, abs(shift.seconds), what))
    return misfits, sum(shift.seconds is None and not shift.together for shift in found)


def _videos(clips: Sequence[Clip]) -> Iterator[tuple[str, list[Clip]]]:
    groups = [(video, list(own)) for video, own in groupby(clips, key=lambda clip: clip.video)]
    return progress(iter(groups), len(groups), "checking the data, by video")


def _sounds(path: Path, clips: Sequence[Clip], codec: CodecSpec) -> Iterator[Tensor]:
    """The sound (samples,) of clips of one video, in order of time, as training hears it."""
    samples = max(math.ceil(clip.seconds * codec.rate) for clip in clips)
    return read_sounds(probe(path, clips[0].track), [clip.start for clip in clips], codec.rate, samples)


def _frames(path: Path, clips: Sequence[Clip]) -> Iterator[Tensor]:
    """The small grey pictures (T, SIDE, SIDE) of clips of one video, in order of time."""
    grid = Grid(FPS, round(min(clip.seconds for clip in clips) * FPS), _small)
    for window in read_windows(probe(path), [clip.start for clip in clips], [grid]):
        yield torch.stack(window.frames[0])


def _small(frames: Tensor) -> Tensor:
    """RGB uint8 (1, 3, H, W) -> grey (1, SIDE, SIDE), 0 to 255."""
    grey = frames.float().mean(1)
    small: Tensor = vision.resize(grey, [SIDE, SIDE], antialias=True)
    return small
