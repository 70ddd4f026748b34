"""Decoding and measuring of clips, one source video at a time.

S samples of a clip, T audio samples, M mel bands, F mel frames, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mmaudio.evaluation.clip_set import ClipSet, strength_label
from mmaudio.evaluation.clip_writer import ClipWriter
from mmaudio.evaluation.config import DEFAULT_REPORT_CLIPS
from mmaudio.evaluation.original_audio import read_original_audio
from mmaudio.evaluation.report_clips import choose_report_clips
from mmaudio.evaluation.results import ClipMeasurement, ClipMedia, ClipResult, Results
from mmaudio.evaluation.uncomputed_metrics import explain_uncomputed
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.generation.sampler import Sampler
from mmaudio.metrics.compute import compute_metrics
from mmaudio.metrics.metric_inputs import BASE, ORIGINAL, ClipAudio, MetricInputs, OriginalAudio
from mmaudio.metrics.pretrained_metrics import ClipScores
from mmaudio.metrics.pretrained_search import SelectedMetrics
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.set_comparison import compare_sets
from mmaudio.metrics.set_statistics import ModelOutputs
from mmaudio.model.spec import CodecSpec
from mmaudio.utils.core_threads import CoreThreads
from mmaudio.utils.progress import Progress, working

AUDIO_METRICS = SelectedMetrics(tuple(METRICS))
"""Every metric that needs no pretrained model."""


@dataclass
class DecodedClip:
    """Waveforms (S, T) and mel spectrograms (S, M, F) of one clip, by the name of the sound."""

    waveforms: dict[str, Tensor]
    mels: dict[str, Tensor]


@dataclass
class MeasuredClip:
    """A measured clip, and what the pretrained models say of it."""

    result: ClipResult
    scores: list[ClipScores]


def measure_clips(
    sampler: Sampler,
    clip_set: ClipSet,
    writer: ClipWriter | None,
    metrics: SelectedMetrics = AUDIO_METRICS,
    report_clips: int = DEFAULT_REPORT_CLIPS,
) -> Results:
    """Decode and measure every clip, several at once; `writer` writes the media of those that a report plays."""
    outputs = ModelOutputs()
    results: list[ClipResult] = []
    measurement = _Measurement(sampler, clip_set, writer, metrics)
    with (
        CoreThreads(sampler.device) as threads,
        Progress(len(clip_set.features), "decoding and measuring, by clip") as counter,
    ):
        for measured in counter.count(threads.run(measurement.jobs())):
            results.append(measured.result)
            for scores in measured.scores:
                outputs.add(scores.model_outputs)
    if writer is not None:
        write_videos(clip_set, results, choose_report_clips(results, report_clips), writer, sampler)
    with working("comparing the sets"):
        return compare_clips(results, outputs, metrics, clip_set.num_samples)


@dataclass
class _Measurement:
    """Decoding and measuring of the clips of a set, each of which may run in a thread of its own."""

    sampler: Sampler
    clip_set: ClipSet
    writer: ClipWriter | None
    metrics: SelectedMetrics

    def __post_init__(self) -> None:
        self.to_mel = build_mel(self.sampler.spec.codec.name).to(self.sampler.device)
        self.on_gpu: AbstractContextManager[Any] = nullcontext() if self.sampler.device.type == "cpu" else Lock()

    def jobs(self) -> Iterator[Callable[[], MeasuredClip]]:
        """A job per clip; the original audio is read video by video."""
        clips, codec = self.clip_set.features.clips, self.sampler.spec.codec
        length = self.clip_set.latents[BASE].shape[2] * codec.hop_length * 2
        for _, group in groupby(range(len(clips)), key=lambda row: clips[row].video):
            rows = list(group)
            video_clips = [clips[row] for row in rows]
            originals = read_original_audio(self.clip_set.video_root, video_clips, codec.sample_rate, length)
            yield from (partial(self.measure, row, original) for row, original in zip(rows, originals, strict=True))

    def measure(self, row: int, original: Tensor) -> MeasuredClip:
        """Decode and measure a clip, and write its sounds; a GPU decodes one clip after the other."""
        sampler, codec = self.sampler, self.sampler.spec.codec
        with self.on_gpu:
            decoded = decode_clip(sampler, self.to_mel, original.to(sampler.device), self.clip_set.latents_of(row))
        measured = measure_clip(self.clip_set, row, decoded, codec, self.metrics)
        if self.writer is not None:
            sounds = measured.result.measurements
            waveforms, mels = ({name: of[name][0] for name in sounds} for of in (decoded.waveforms, decoded.mels))
            measured.result.media = self.writer.write_audio(row, waveforms, mels, codec)
        return measured


def write_videos(
    clip_set: ClipSet, results: Sequence[ClipResult], chosen: Collection[int], writer: ClipWriter, sampler: Sampler
) -> None:
    """Write the videos of the `chosen` clips, several at once, and remove the media of the others."""
    for row in set(range(len(results))) - set(chosen):
        writer.remove_audio(row)
        results[row].media = ClipMedia()
    codec = sampler.spec.codec
    length = clip_set.latents[BASE].shape[2] * codec.hop_length * 2

    def write(rows: Sequence[int]) -> None:
        """Write the videos of the clips at `rows`, all of one source video."""
        clips = [results[row].clip for row in rows]
        originals = read_original_audio(clip_set.video_root, clips, codec.sample_rate, length)
        posters = writer.write_videos(clip_set.video_root, clips, rows, originals, codec)
        for row, poster in zip(rows, posters, strict=True):
            results[row].media.poster = poster

    by_video = [list(rows) for _, rows in groupby(sorted(chosen), key=lambda row: results[row].clip.video)]
    with (
        CoreThreads(torch.device("cpu")) as threads,
        Progress(len(by_video), "writing the report's clips, by video") as counter,
    ):
        for _ in counter.count(threads.run(partial(write, rows) for rows in by_video)):
            pass


def decode_clip(sampler: Sampler, to_mel: MelSpectrogram, original: Tensor, latents: dict[str, Tensor]) -> DecodedClip:
    """Decode the latents (S, N, C) of each sound and compute all spectrograms; `original` is (T,)."""
    sizes = [len(samples) for samples in latents.values()]
    decoded = torch.split(sampler.decode(torch.cat(list(latents.values()))), sizes)
    waveforms = {ORIGINAL: original[None], **dict(zip(latents, decoded, strict=True))}
    return DecodedClip(waveforms, {name: to_mel(waveform) for name, waveform in waveforms.items()})


def measure_clip(
    clip_set: ClipSet,
    row: int,
    decoded: DecodedClip,
    codec: CodecSpec,
    metrics: SelectedMetrics,
) -> MeasuredClip:
    """All measurements of one clip, and what metrics of the whole set need."""
    clip = clip_set.features.clips[row]
    measurements = measure_audio(decoded, codec, metrics.names)
    if "velocity_loss" in metrics.names:
        for name, loss in clip_set.losses_of(row).items():
            measurements[name].values["velocity_loss"] = loss
    sync_features = clip_set.features.sync_features[row]
    audio = ClipAudio(decoded.waveforms, codec.sample_rate, sync_features, clip.caption)
    scores = add_pretrained_scores(measurements, audio, metrics)
    strengths = {strength: measurements.pop(strength_label(strength)) for strength in clip_set.strengths_of(row)}
    return MeasuredClip(ClipResult(clip, measurements, strengths, trained=clip.id in clip_set.trained_ids), scores)


def measure_audio(decoded: DecodedClip, codec: CodecSpec, names: Collection[str]) -> dict[str, ClipMeasurement]:
    """Measurements of each sound against the original: onsets, and those metrics `names` that need audio alone."""
    original = OriginalAudio(decoded.waveforms[ORIGINAL][0], decoded.mels[ORIGINAL][0], codec)
    measurements = {}
    for name, waveforms in decoded.waveforms.items():
        inputs = MetricInputs(waveforms, decoded.mels[name], original)
        measurements[name] = ClipMeasurement(compute_metrics(inputs, names), inputs.onset_times[0].tolist())
    return measurements


def add_pretrained_scores(
    measurements: dict[str, ClipMeasurement], audio: ClipAudio, metrics: SelectedMetrics
) -> list[ClipScores]:
    """Add the scores of the pretrained models; they have what these give for metrics of the whole set."""
    all_scores = [metric.score(audio) for metric in metrics.pretrained]
    for scores in all_scores:
        for sound, values in scores.values.items():
            selected = {name: value for name, value in values.items() if name in metrics.names}
            measurements[sound].values.update(selected)
    return all_scores


def compare_clips(
    clips: list[ClipResult], outputs: ModelOutputs, metrics: SelectedMetrics, num_samples: int
) -> Results:
    """Results on the set: the clips, the metrics of the whole set, the metrics without a value."""
    results = Results(clips)
    results.set_comparisons, results.not_computed = compare_sets(outputs, results.videos, metrics.names)
    results.not_computed = explain_uncomputed(results, metrics, num_samples)
    return results
