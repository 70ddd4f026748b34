"""From the table of clips to feature shards, one source video after the other.

A shard is redone only where what it was made from changed: the source file, the windows, the encoders' weights; where
only captions changed, the text features alone. A kill loses at most the video in work.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.data.audio import audio_window, read_audio, resample_audio
from mmaudio.data.clips import Clip, LeftOut, read_clips
from mmaudio.data.features import VERSION, Features, Header, read_header, read_shard, shard_path, write_shard
from mmaudio.data.prefetch import prefetched
from mmaudio.data.scanning import fingerprint
from mmaudio.data.video import probe
from mmaudio.data.windows import Window, read_windows
from mmaudio.errors import DataError
from mmaudio.features.encoders import Encoders, encoder_identities, load_encoders
from mmaudio.model.spec import lengths

SOUNDS = 8
"""Clips whose sound is encoded at once."""
EARLY = 64
"""At most so many captions are encoded before all else, so that the text tower need not stay; more would be lost in a
kill."""
AHEAD = 2
"""Windows that are decoded while one is being encoded."""
ABANDONED = 3600.0
"""Seconds after which a temporary file is no other process's any more."""


@dataclass(frozen=True)
class Job:
    """One video of the table."""

    path: Path
    clips: list[Clip]
    shard: Path
    wanted: Header
    """What its shard's header has to say to be valid."""
    valid: str
    """`all`, `picture` (captions changed) or empty."""


@dataclass
class ExtractionReport:
    """What extraction did, in videos."""

    valid: int = 0
    """Shards that needed nothing."""
    texts: int = 0
    """Shards whose captions alone were encoded again."""
    made: int = 0
    clips: int = 0
    """Clips with features, those of valid shards included."""
    left_out: list[LeftOut] = field(default_factory=list)


def extract(
    clips_tsv: Path,
    root: Path,
    out_dir: Path,
    model: str,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
    progress: Callable[[list[Job]], Iterable[Job]] = iter,
) -> ExtractionReport:
    """Make the feature shards of the table's videos (below `root`) in `out_dir` for `model`.

    `share` is (rank, processes): several processes divide the videos, longest first. A video that cannot be used is
    left out with the reason. Raises DataError for an unusable table and where no clip gets features.
    """
    jobs = plan(read_clips(clips_tsv), root, out_dir, model, weights)[share[0] :: share[1]]
    _sweep(out_dir)
    report = ExtractionReport(valid=sum(job.valid == "all" for job in jobs))
    todo = [job for job in jobs if job.valid != "all"]
    encoders = load_encoders(model, weights, device) if todo else None
    captions = dict.fromkeys(clip.caption for job in todo for clip in job.clips)
    if encoders is not None and len(captions) <= EARLY:
        encoders.only_texts(captions)
    for job in progress(todo):
        assert encoders is not None
        _run(job, encoders)
        report.texts += job.valid == "picture"
        report.made += job.valid != "picture"
    for job in jobs:
        header = read_header(job.shard)
        assert header is not None
        if header.left_out:
            report.left_out.append(LeftOut(header.video, header.left_out))
        else:
            report.clips += len(header.clip_ids)
    if jobs and not report.clips:
        raise DataError(f"{clips_tsv}: no clip could be used; {report.left_out[0].video}: {report.left_out[0].reason}")
    return report


def plan(clips: Sequence[Clip], root: Path, out_dir: Path, model: str, weights: Path | None) -> list[Job]:
    """One job per video, the longest first, each saying what of its shard is valid; nothing is computed.

    Raises DataError for a table without clips or with clips of several durations, and for a wrong `root`.
    """
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.video, []).append(clip)
    durations = {clip.seconds for clip in clips}
    if len(durations) != 1:
        raise DataError(f"the table of clips has durations {sorted(durations)}; all of a table have one")
    if not any((root / video).is_file() for video in by_video):
        raise DataError(f"{root}: none of the table's {len(by_video)} videos is there; is it the right folder?")
    identities = encoder_identities(model, weights)
    jobs = [
        _job(root / video, sorted(chosen, key=lambda clip: clip.start), shard_path(out_dir, video), model, identities)
        for video, chosen in by_video.items()
    ]
    return sorted(jobs, key=lambda job: (-len(job.clips), job.wanted.video))


def _job(path: Path, clips: list[Clip], shard: Path, model: str, identities: dict[str, str]) -> Job:
    present = read_header(shard)
    there = path.is_file()
    kept = "" if present is None else present.source  # features outlive their videos
    source = fingerprint(path) if there else kept
    windows = [[clip.start, clip.end] for clip in clips]
    captions = [clip.caption for clip in clips]
    wanted = Header(
        video=clips[0].video,
        clip_ids=[clip.id for clip in clips],
        captions=captions,
        model=model,
        seconds=clips[0].seconds,
        encoders=identities,
        source=source,
        picture_key=_hash([VERSION, source, windows, identities]),
        text_key=_hash([VERSION, captions, identities["clip"]]),
    )
    if (
        present is None
        or present.picture_key != wanted.picture_key
        or present.clip_ids != wanted.clip_ids
        or (present.left_out and not there)
    ):
        return Job(path, clips, shard, wanted, "")
    return Job(path, clips, shard, wanted, "all" if present.text_key == wanted.text_key else "picture")


def _run(job: Job, encoders: Encoders) -> None:
    """Write the shard of one video, or why it is left out."""
    present = read_shard(job.shard)[1] if job.valid == "picture" else None
    try:
        if present is not None:
            features = replace(present, text_features=encode_captions(job.clips, encoders))
        elif job.path.is_file():
            features = encode_clips(job.path, job.clips, encoders)
        else:
            raise DataError(f"{job.path.name}: not there any more")
        write_shard(job.shard, job.wanted, features)
    except DataError as error:
        reason = str(error).removeprefix(f"{job.path.name}: ")
        write_shard(job.shard, replace(job.wanted, left_out=reason), None)


def encode_clips(path: Path, clips: Sequence[Clip], encoders: Encoders) -> Features:
    """The features of one video's `clips` (ascending starts, one duration), in one decoding pass.

    Raises DataError where the video cannot give them.
    """
    info = probe(path)
    seconds = clips[0].seconds
    waveform, own_rate = read_audio(path, info)
    rate, samples = encoders.spec.codec.rate, lengths(encoders.spec.codec, seconds).samples
    waveform = resample_audio(waveform, own_rate, rate)
    sounds = torch.stack([audio_window(waveform, rate, clip.start, samples) for clip in clips])
    posteriors = [encoders.sound(sounds[first : first + SOUNDS]) for first in range(0, len(sounds), SOUNDS)]
    windows = read_windows(info, [clip.start for clip in clips], encoders.grids(seconds))
    stills, motion = [], []
    known: dict[float, Tensor] = {}
    for window in prefetched(windows, AHEAD):
        stills.append(_still_rows(window, encoders, known))
        motion.append(encoders.motion(torch.stack(window.frames[1])))
    features = Features(
        mean=torch.cat([posterior.mean for posterior in posteriors]),
        std=torch.cat([posterior.std for posterior in posteriors]),
        clip_features=torch.stack(stills),
        sync_features=torch.stack(motion),
        text_features=encode_captions(clips, encoders),
    )
    for name, tensor in features.tensors().items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"{path.name}: its {name} come out as values that are not finite")
    return features


def encode_captions(clips: Sequence[Clip], encoders: Encoders) -> Tensor:
    """Text features of every clip (K, L, text width); equal captions are encoded once."""
    unique = list(dict.fromkeys(clip.caption for clip in clips))
    rows = torch.cat([encoders.texts([text]) for text in unique])
    return rows[[unique.index(clip.caption) for clip in clips]]


def _still_rows(window: Window, encoders: Encoders, known: dict[float, Tensor]) -> Tensor:
    """CLIP features of a window's frames (V, image width); those of frames that earlier windows shared are `known`."""
    times, frames = window.times[0], window.frames[0]
    new = {moment: frame for moment, frame in zip(times, frames, strict=True) if moment not in known}
    for past in [moment for moment in known if moment < window.start]:
        del known[past]
    if new:
        known.update(zip(new, encoders.frames(torch.stack(list(new.values()))), strict=True))
    return torch.stack([known[moment] for moment in times])


def _sweep(folder: Path) -> None:
    """Remove temporary files that a kill left."""
    for part in folder.glob(".*.part"):
        if time.time() - part.stat().st_mtime > ABANDONED:
            part.unlink(missing_ok=True)


def _hash(stated: object) -> str:
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
