"""From latents to sounds that are measured and, for the report, written: one source video after the other.

M mel bands, T mel frames, N latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.data.feature_store import FeatureSet
from mmaudio.evaluation.inference import Sound, averaged, between_takes, sound_values
from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.evaluation.uncomputed_metrics import not_computed
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.generation.sampler import Sampler
from mmaudio.metrics.pretrained_metrics import Played, Wanted
from mmaudio.metrics.registry import ADAPTED, BASE, CODEC, ORIGINAL
from mmaudio.metrics.set_comparison import Collected, compare_sets
from mmaudio.model.spec import ModelSpec
from mmaudio.report import clip_media as media
from mmaudio.report.charts import mel_picture
from mmaudio.utils.progress import progress

MODELS = (BASE, ADAPTED)
ALL = Wanted()
"""Every metric that needs no judge."""
MEDIA = "media"
"""The folder of a report's videos and sounds, beside it."""


@dataclass
class Material:
    """One set of clips and what both models made of it."""

    root: Path
    """The folder that the clips' videos are relative to."""
    features: FeatureSet
    losses: dict[str, list[float]] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    """(clips, samples, N, C) by model, on the codec's scale."""
    strengths: dict[float, Tried] = field(default_factory=dict)
    """What the adapter makes at other strengths than 1."""
    trained: frozenset[str] = frozenset()
    """Ids of the clips whose source videos were trained on."""


@dataclass
class Tried:
    """What the adapter makes at one strength of some of the clips, by the number of each."""

    latents: dict[int, Tensor]
    """(samples, N, C) each."""
    losses: dict[int, float]


@dataclass
class Heard:
    """One clip in sound, by the names in `results`: waveforms (takes, samples) and mels (takes, M, T)."""

    waveforms: dict[str, Tensor]
    mels: dict[str, Tensor]


def decode(sampler: Sampler, material: Material, report: Path | None, wanted: Wanted = ALL) -> Results:
    """Decode and measure every clip; where `report` is a folder, also write there what the report plays."""
    clips, spec = material.features.clips, sampler.spec
    to_mel = build_mel(spec.codec.name).to(sampler.device)
    samples = material.latents[BASE].shape[2] * spec.codec.hop * 2
    groups = [list(rows) for _, rows in groupby(range(len(clips)), key=lambda row: clips[row].video)]
    results: list[ClipResult] = []
    collected = Collected()
    for rows in progress(groups, len(groups), "decoding and measuring, by video"):
        chosen = [clips[row] for row in rows]
        originals = media.original_sounds(material.root, chosen, spec.codec.rate, samples)
        for row, original in zip(rows, originals, strict=True):
            latents = {CODEC: material.features.mean[row][None], **{m: material.latents[m][row] for m in MODELS}}
            tried = {strength: part for strength, part in material.strengths.items() if row in part.latents}
            latents |= {f"{ADAPTED} x {strength:g}": part.latents[row] for strength, part in tried.items()}
            heard = hear(sampler, to_mel, original.to(sampler.device), latents)
            sounds = measure(heard, spec, wanted.names)
            result = ClipResult(clips[row], sounds, trained=clips[row].id in material.trained)
            losses = {model: material.losses[model][row] for model in MODELS}
            losses |= {f"{ADAPTED} x {strength:g}": part.losses[row] for strength, part in tried.items()}
            for name, loss in losses.items() if "velocity_loss" in wanted.names else ():
                sounds[name].values["velocity_loss"] = loss
            seen = material.features.sync_features[row]
            judge(sounds, Played(heard.waveforms, spec.codec.rate, seen, clips[row].caption), wanted, collected)
            result.strengths = {strength: sounds.pop(f"{ADAPTED} x {strength:g}") for strength in tried}
            if report is not None:
                show(result, heard, spec, report, media_name(row))
            results.append(result)
        if report is not None:
            paths = [report / MEDIA / f"{media_name(row)}.mp4" for row in rows]
            posters = media.write_pictures(material.root, chosen, originals, spec.codec.rate, paths)
            for result, poster in zip(results[-len(rows) :], posters, strict=True):
                result.poster = poster
    made = Results(results)
    made.sets, made.not_computed = compare_sets(collected, material.features.videos, wanted.names)
    made.not_computed = not_computed(made, wanted, takes=material.latents[BASE].shape[1])
    return made


def media_name(row: int) -> str:
    """The stem of a clip's files in a report."""
    return f"{row + 1:03d}"


def hear(sampler: Sampler, to_mel: MelSpectrogram, original: Tensor, latents: dict[str, Tensor]) -> Heard:
    """Decode the latents (takes, N, C) of each sound and compute all spectrograms."""
    sizes = [len(part) for part in latents.values()]
    decoded = torch.split(sampler.decode(torch.cat(list(latents.values()))), sizes)
    waveforms = {ORIGINAL: original[None], **dict(zip(latents, decoded, strict=True))}
    return Heard(waveforms, {name: to_mel(waveform) for name, waveform in waveforms.items()})


def measure(heard: Heard, spec: ModelSpec, names: Collection[str]) -> dict[str, Sound]:
    """What was measured of each sound against the original, the metrics `names`; values are means over takes."""
    wave, mel = heard.waveforms[ORIGINAL][0], heard.mels[ORIGINAL][0]
    found = {}
    for name, mels in heard.mels.items():
        sound = averaged(sound_values(heard.waveforms[name], mels, wave, mel, spec.codec, names))
        takes = {key: value for key, value in between_takes(mels, spec.codec).items() if key in names}
        found[name] = replace(sound, values=sound.values | takes)
    return found


def judge(sounds: dict[str, Sound], played: Played, wanted: Wanted, collected: Collected) -> None:
    """Add what each judge says of the clip's sounds, and keep what set metrics take."""
    opinions = [one.hear(played) for one in wanted.judges]
    for opinion in opinions:
        for name, values in opinion.values.items():
            sounds[name].values.update({key: value for key, value in values.items() if key in wanted.names})
        collected.add(opinion.rows)


def show(result: ClipResult, heard: Heard, spec: ModelSpec, report: Path, stem: str) -> None:
    """Write the first take's sounds and draw its spectrograms, on one scale of colours for all."""
    decades = math.log(spec.codec.log_base) / math.log(10)
    top = float(heard.mels[ORIGINAL].max()) * decades
    first = {name: heard.waveforms[name][0] for name in result.sounds}
    names = media.write_sounds(report / MEDIA, stem, first, spec)
    result.media = {name: f"{MEDIA}/{file}" for name, file in {**names, "video": f"{stem}.mp4"}.items()}
    result.mels = {name: mel_picture(heard.mels[name][0], spec.codec.log_base, top) for name in result.sounds}
