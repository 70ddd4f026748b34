"""Decoding and measuring of clips, one source video at a time.

S samples of a clip, T audio samples, M mel bands, F mel frames, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mmaudio.evaluation.clip_set import ClipSet, strength_label
from mmaudio.evaluation.clip_writer import ClipWriter
from mmaudio.evaluation.original_audio import read_original_audio
from mmaudio.evaluation.results import ClipMeasurement, ClipResult, Results
from mmaudio.evaluation.uncomputed_metrics import explain_uncomputed
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.generation.sampler import Sampler
from mmaudio.metrics.compute import compute_metrics
from mmaudio.metrics.metric_inputs import BASE, ORIGINAL, ClipAudio, MetricInputs
from mmaudio.metrics.pretrained_search import SelectedMetrics
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.set_comparison import compare_sets
from mmaudio.metrics.set_statistics import ModelOutputs
from mmaudio.model.spec import CodecSpec
from mmaudio.utils.progress import Progress, working

AUDIO_METRICS = SelectedMetrics(tuple(METRICS))
"""Every metric that needs no pretrained model."""


@dataclass
class DecodedClip:
    """Waveforms (S, T) and mel spectrograms (S, M, F) of one clip, by the name of the sound."""

    waveforms: dict[str, Tensor]
    mels: dict[str, Tensor]


def measure_clips(
    sampler: Sampler, clip_set: ClipSet, writer: ClipWriter | None, metrics: SelectedMetrics = AUDIO_METRICS
) -> Results:
    """Decode and measure every clip, and have `writer` write its media."""
    clips, codec = clip_set.features.clips, sampler.spec.codec
    to_mel = build_mel(codec.name).to(sampler.device)
    length = clip_set.latents[BASE].shape[2] * codec.hop_length * 2
    by_video = [list(rows) for _, rows in groupby(range(len(clips)), key=lambda row: clips[row].video)]
    results: list[ClipResult] = []
    outputs = ModelOutputs()
    with Progress(len(clips), "decoding and measuring, by clip") as counter:
        for rows in by_video:
            video_clips = [clips[row] for row in rows]
            originals = read_original_audio(clip_set.video_root, video_clips, codec.sample_rate, length)
            for row, original in counter.count(zip(rows, originals, strict=True)):
                decoded = decode_clip(sampler, to_mel, original.to(sampler.device), clip_set.latents_of(row))
                result = measure_clip(clip_set, row, decoded, codec, metrics, outputs)
                if writer is not None:
                    waveforms = {name: decoded.waveforms[name][0] for name in result.measurements}
                    mels = {name: decoded.mels[name][0] for name in result.measurements}
                    result.media = writer.write_audio(row, waveforms, mels, codec)
                results.append(result)
            if writer is not None:
                posters = writer.write_videos(clip_set.video_root, video_clips, rows, originals, codec)
                for row, poster in zip(rows, posters, strict=True):
                    results[row].media.poster = poster
    with working("comparing the sets"):
        return compare_clips(results, outputs, metrics, clip_set.num_samples)


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
    outputs: ModelOutputs,
) -> ClipResult:
    """All measurements of one clip; what metrics of the whole set need is added to `outputs`."""
    clip = clip_set.features.clips[row]
    measurements = measure_audio(decoded, codec, metrics.names)
    if "velocity_loss" in metrics.names:
        for name, loss in clip_set.losses_of(row).items():
            measurements[name].values["velocity_loss"] = loss
    sync_features = clip_set.features.sync_features[row]
    audio = ClipAudio(decoded.waveforms, codec.sample_rate, sync_features, clip.caption)
    add_pretrained_scores(measurements, audio, metrics, outputs)
    strengths = {strength: measurements.pop(strength_label(strength)) for strength in clip_set.strengths_of(row)}
    return ClipResult(clip, measurements, strengths, trained=clip.id in clip_set.trained_ids)


def measure_audio(decoded: DecodedClip, codec: CodecSpec, names: Collection[str]) -> dict[str, ClipMeasurement]:
    """Measurements of each sound against the original: onsets, and those metrics `names` that need audio alone."""
    reference, reference_mel = decoded.waveforms[ORIGINAL][0], decoded.mels[ORIGINAL][0]
    measurements = {}
    for name, waveforms in decoded.waveforms.items():
        inputs = MetricInputs(waveforms, decoded.mels[name], reference, reference_mel, codec)
        measurements[name] = ClipMeasurement(compute_metrics(inputs, names), inputs.onset_times[0].tolist())
    return measurements


def add_pretrained_scores(
    measurements: dict[str, ClipMeasurement], audio: ClipAudio, metrics: SelectedMetrics, outputs: ModelOutputs
) -> None:
    """Add the scores of the pretrained models, and what they give for metrics of the whole set."""
    for scores in [metric.score(audio) for metric in metrics.pretrained]:
        for sound, values in scores.values.items():
            selected = {name: value for name, value in values.items() if name in metrics.names}
            measurements[sound].values.update(selected)
        outputs.add(scores.model_outputs)


def compare_clips(
    clips: list[ClipResult], outputs: ModelOutputs, metrics: SelectedMetrics, num_samples: int
) -> Results:
    """Results on the set: the clips, the metrics of the whole set, the metrics without a value."""
    results = Results(clips)
    results.set_comparisons, results.not_computed = compare_sets(outputs, results.videos, metrics.names)
    results.not_computed = explain_uncomputed(results, metrics, num_samples)
    return results
