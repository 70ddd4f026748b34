"""Results of an evaluation for reports: real small videos and audio, numbers from a generator."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mmaudio.data.clips import Clip, LeftOut
from mmaudio.evaluation.results import ClipMeasurement, ClipMedia, ClipResult, Results
from mmaudio.evaluation.sync_check import MOTION
from mmaudio.evaluation.sync_report import OutOfSyncClip, SyncReport
from mmaudio.features.mel import build_mel
from mmaudio.media.mux import write_video
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import Comparison
from mmaudio.model.spec import model_spec
from mmaudio.report.clip_media import ClipMediaWriter
from mmaudio.report.images import mel_image
from mmaudio.report.provenance import Provenance

MODEL = "tiny_16k"
SECONDS = 4.0
PITCHES = {"original": 440, "base": 220, "adapted": 880, "codec": 450}
SPEC = model_spec(MODEL)


def tone(pitch: float, seed: int) -> torch.Tensor:
    """Short tones over a little noise: SECONDS at the codec's rate."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(SECONDS * SPEC.codec.sample_rate)) / SPEC.codec.sample_rate
    sound = 0.003 * torch.randn(len(time), generator=generator)
    for start in (0.3, 1.1, 1.9, 2.7, 3.5):
        after = (time - start).clamp(min=0)
        sound += 0.5 * torch.sin(2 * math.pi * pitch * after) * torch.exp(-6 * after) * (after > 0)
    return sound


def frames(seed: int) -> list[np.ndarray]:
    """A ball that falls: SECONDS at 25 per second, 96 x 64."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    pictures = []
    for index in range(round(SECONDS * 25)):
        picture = np.full((64, 96, 3), (30 + 20 * seed, 40, 70), np.uint8)
        height = 12 + 40 * abs(math.sin(index / 9))
        picture[(x - 20 - 9 * seed) ** 2 + (y - height) ** 2 < 80] = (240, 200, 90)
        pictures.append(picture)
    return pictures


def make_clip(number: int, video: str, rng: np.random.Generator, sounds: tuple[str, ...]) -> ClipResult:
    """A clip without media whose base values are 1 to 2, and whose adapted ones are mostly smaller."""
    values: dict[str, dict[str, float]] = {name: {} for name in sounds}
    for name, metric in METRICS.items():
        if metric.of_set:
            continue
        base, change = rng.uniform(1, 2), rng.normal(-0.3, 0.3)
        value_by_sound = {"base": base, "adapted": base + change, "codec": 0.1, "original": 0.0}
        for sound in sounds:
            values[sound][name] = value_by_sound[sound]
    if number == 1:
        values["base"]["onset_f1"] = values["adapted"]["onset_f1"] = math.nan  # a clip without onsets
    marks = [0.3, 1.1, 1.9, 2.7, 3.5]
    clip = Clip(f"{number:03d}", video, 4.0 * number, 4.0 * number + SECONDS, "a <b>ball</b>", "test", -1.0, -20.0, 0.0)
    return ClipResult(
        clip, {name: ClipMeasurement(values[name], [m + 0.02 * i for m in marks]) for i, name in enumerate(sounds)}
    )


def make_results(folder: Path, clips: int = 6, videos: int = 3, codec: bool = True) -> Results:
    """Results with media in `folder`/media: clip n is of video n % `videos`."""
    rng, to_mel = np.random.default_rng(5), build_mel(SPEC.codec.name)
    sounds = tuple(PITCHES) if codec else tuple(PITCHES)[:3]
    (folder / "media").mkdir(parents=True)
    writer = ClipMediaWriter(folder / "index.html")
    results = []
    for number in range(clips):
        result = make_clip(number, f"folder/video {number % videos}.mp4", rng, sounds)
        waves = {name: tone(PITCHES[name], number) for name in sounds}
        source = folder / f"source{number}.mp4"
        write_video(source, frames(number % 5), 25, waves["original"].numpy(), SPEC.codec.sample_rate)
        whole = replace(result.clip, video=source.name, start=0.0, end=SECONDS)
        mels = {name: to_mel(wave[None])[0] for name, wave in waves.items()}
        result.media = writer.write_audio(number, waves, mels, SPEC.codec)
        (result.media.poster,) = writer.write_videos(folder, [whole], [number], [waves["original"]], SPEC.codec)
        source.unlink()
        results.append(result)
    return Results(results)


def with_strengths(results: Results) -> Results:
    """The same with a curve over three strengths, a recommendation, and a metric that was not computed."""
    metrics = results.comparisons()
    results.strengths = {
        strength: {
            name: replace(m, adapted=m.base + strength * (1.6 - strength) * m.difference) for name, m in metrics.items()
        }
        for strength in (0.0, 0.5, 1.0)
    }
    results.recommended = 0.5
    results.recommendation = "Half of the adapter is closest to the originals."
    results.not_computed = {"clap": "needs clap.safetensors", "fd": "6 clips are fewer than 513"}
    videos = results.num_videos
    results.set_comparisons["kad"] = Comparison(
        2.0, 1.1, -0.9, (-1.4, -0.4), "lower", "better", len(results.clips), videos, None
    )
    return results


def make_provenance(results: Results) -> Provenance:
    """The provenance that a report shows."""
    trained = [replace(result.clip, id=f"t{n}", split="train") for n, result in enumerate(results.clips)]
    held = [result.clip for result in results.clips]
    val = [replace(held[0], id="v", split="val")]
    history = [
        {"step": 0, "validation/loss": 1.5},
        *({"step": step, "train/loss": 1.4 - 0.004 * step} for step in range(1, 100)),
        {"step": 50, "validation/loss": 1.3},
        {"step": 100, "train/loss": 1.0, "validation/loss": 1.1},
    ]
    return Provenance(
        MODEL,
        "MIT",
        history,
        100,
        [*trained, *val, *held],
        [LeftOut("notes.txt", "no video file (.txt)")],
        [("This evaluation", {"seed": 0, "samples per clip": 1}), ("Versions", {"python": "3"})],
        [("Make this report again", "python evaluate_lora.py --seed 0")],
        "no videos are at hand",
        "",
        SyncReport(
            MOTION, len(trained), [OutOfSyncClip("late.mp4", 4.0, 8.0, 1.04, "the sound is about 1.0 s late")], 2
        ),
    )


def many(folder: Path, clips: int) -> Results:
    """`clips` clips that share the media of one, with spectrograms of noise, which compress worst."""
    one = make_results(folder, 1, 1).clips[0]
    rng = np.random.default_rng(0)
    results = []
    for number in range(clips):
        result = make_clip(number, f"{number // 20}.mp4", rng, tuple(PITCHES))
        mels = {name: torch.from_numpy(rng.normal(-2, 0.5, (80, 500))) for name in PITCHES}
        images = {name: mel_image(mel, 10, 0.0) for name, mel in mels.items()}
        result.media = ClipMedia(one.media.files, images, one.media.poster)
        results.append(result)
    return Results(results)
