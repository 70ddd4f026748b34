"""Forgetting without videos: how far an adapter moves the base's sounds of generic prompts, from text alone.

The prompts are those that no training sees (`data.generic_captions`). The base makes two sounds of each, from different
noise, the adapted model one from the first noise: what the adapter changes is held against what another seed changes.

P prompts, S samples of a prompt, N latent tokens, C latent channels, L text tokens, D text width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.data.generic_captions import build_text_set, held_back_captions
from mmaudio.evaluation.config import EvaluationConfig, SamplingConfig
from mmaudio.evaluation.inference import sample_latents
from mmaudio.evaluation.output_files import read_outputs, write_outputs
from mmaudio.evaluation.prompt_results import PromptResults
from mmaudio.evaluation.strength_sweep import MAX_CLIPS
from mmaudio.features.encoders import ENCODER_COMPONENTS, load_encoders
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.generation.sampler import Sampler
from mmaudio.metrics.clap import ClapMetric
from mmaudio.metrics.diversity import sample_distances
from mmaudio.metrics.loudness import loudness
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.movement import Movement, compare_distances
from mmaudio.metrics.pretrained_metrics import PretrainedMetric
from mmaudio.metrics.registry import HIGHER
from mmaudio.metrics.statistics import compare
from mmaudio.model.spec import ModelSpec
from mmaudio.utils.core_threads import CoreThreads
from mmaudio.utils.progress import Progress
from mmaudio.weights import store as weights

CLIP = ENCODER_COMPONENTS["clip"]
SAMPLES_PER_PROMPT = 12
"""Samples of clips for which an evaluation takes one more prompt: a tenth of its time."""
MIN_PROMPTS = 4
"""Of 3, a quarter of the simulated sets have no interval of the share; of 4, one in forty."""
STEPS_DIVISOR = 3
"""Prompts take a third of the solver's steps: with 8 in place of 25 the demo's adapter moved its sounds 81 % as far as
another seed, in place of 83 %."""


@dataclass
class PromptSounds:
    """Prompts and the latents of both models, with the time that they took."""

    captions: Sequence[str]
    seconds: float
    """Duration of a sound: the clips'."""
    latents: dict[str, Tensor] = field(default_factory=dict)
    """By model (P, S, N, C), on the codec's scale; two samples of the base, one of the adapted model."""
    elapsed: float = 0.0
    """Seconds of sampling and measuring."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time."""
        start = time.monotonic()
        yield
        self.elapsed += time.monotonic() - start


@dataclass(frozen=True)
class PromptMeasurement:
    """Measurements of one prompt's sounds: base, base from other noise, adapted."""

    distance: float
    """Mel distance of the adapted sound from the base's, in powers of ten."""
    seed_distance: float
    """The same of the base's other sound."""
    levels: Sequence[float]
    """Loudness of the three sounds in LUFS."""
    similarities: Sequence[float]
    """CLAP's similarity to the prompt; NaN without its weights."""


def choose_prompts(model: str, num_samples: int) -> list[str]:
    """The prompts of an evaluation that samples clips `num_samples` times, evenly over the captions."""
    captions = held_back_captions(model)
    count = min(len(captions), max(MIN_PROMPTS, num_samples // SAMPLES_PER_PROMPT))
    return [captions[number * len(captions) // count] for number in range(count)]


def plan_prompts(
    config: EvaluationConfig, spec: ModelSpec, clip_counts: Sequence[int], seconds: float
) -> tuple[PromptSounds | None, str]:
    """The prompts of an evaluation of sets of so many clips; else None and the reason."""
    if missing := weights.missing_files(spec.name, config.weights, (CLIP,)):
        return None, f"{' or '.join(missing[0].names)}, which encodes the prompts, is not at hand"
    sweep = sum(min(MAX_CLIPS, count) for count in clip_counts) * len(config.strengths or ())
    num_samples = config.sampling.samples * (2 * sum(clip_counts) + sweep)
    return PromptSounds(choose_prompts(spec.name, num_samples), seconds), ""


def prompts_key(config: EvaluationConfig, spec: ModelSpec, prompts: PromptSounds | None) -> object:
    """What the results on the prompts depend on, besides the models and the settings of sampling."""
    return prompts and [prompts.captions, STEPS_DIVISOR, weights.component_sha256(spec.name, CLIP, config.weights)]


def sample_prompts(sampler: Sampler, model: str, prompts: PromptSounds, config: EvaluationConfig, folder: Path) -> None:
    """Fill in the latents of one model, read from `folder` where an earlier run left them."""
    with prompts.timed():
        outputs = read_outputs(folder / f"{model}-prompts.safetensors")
        if outputs is None:
            sampler.network.set_duration(prompts.seconds)
            text_features = _read_text_features(prompts, config, sampler, folder)
            latents = torch.zeros(len(prompts.captions), sampler.network.lengths.latent_tokens, 1)
            arguments = (text_features, latents, prompts.captions, prompts.seconds, sampler.spec.name)
            features = build_text_set(sampler.network, *arguments)
            sampling = _prompt_sampling(config.sampling, sampler.spec, model)
            latents = sample_latents(sampler, features, sampling, f"{model} model, generic prompts")
            outputs = {"latents": latents, "text_features": text_features}
            write_outputs(folder / f"{model}-prompts.safetensors", outputs)
        prompts.latents[model] = outputs["latents"]


def _read_text_features(prompts: PromptSounds, config: EvaluationConfig, sampler: Sampler, folder: Path) -> Tensor:
    """Text features of the prompts (P, L, D): those that the base's sounds were made with, once there are any."""
    outputs = read_outputs(folder / f"{BASE}-prompts.safetensors")
    if outputs is not None:
        return outputs["text_features"]
    encoders = load_encoders(sampler.spec.name, config.weights, sampler.device, ("clip",))
    return encoders.encode_texts(prompts.captions)


def _prompt_sampling(sampling: SamplingConfig, spec: ModelSpec, model: str) -> SamplingConfig:
    steps = max(1, (sampling.num_steps or spec.num_steps) // STEPS_DIVISOR)
    return replace(sampling, num_steps=steps, samples=2 if model == BASE else 1)


def measure_prompts(
    sampler: Sampler, prompts: PromptSounds, pretrained: Sequence[PretrainedMetric] = ()
) -> PromptResults | None:
    """Decode and measure the sounds; None where no prompt has a value."""
    clap = next((metric for metric in pretrained if isinstance(metric, ClapMetric)), None)
    to_mel = build_mel(sampler.spec.codec.name).to(sampler.device)
    jobs = (partial(measure_prompt, sampler, prompts, row, to_mel, clap) for row in range(len(prompts.captions)))
    label = "measuring generic prompts"
    with prompts.timed(), CoreThreads(sampler.device) as threads, Progress(len(prompts.captions), label) as counter:
        values = list(counter.count(threads.run(jobs)))
    mel = compare_distances([each.distance for each in values], [each.seed_distance for each in values])
    if mel is None:
        return None
    similarities = [each.similarities for each in values]
    base, adapted = ([sounds[index] for sounds in similarities] for index in (0, 2))
    similarity = compare(base, adapted, prompts.captions, HIGHER)
    return PromptResults(
        mel, _compare_sounds([each.levels for each in values]), similarity, _compare_sounds(similarities)
    )


def measure_prompt(
    sampler: Sampler, prompts: PromptSounds, row: int, to_mel: MelSpectrogram, clap: ClapMetric | None
) -> PromptMeasurement:
    """Decode and measure the sounds of one prompt."""
    sample_rate, log_base = sampler.spec.codec.sample_rate, sampler.spec.codec.log_base
    waveforms = sampler.decode(torch.cat([prompts.latents[model][row] for model in (BASE, ADAPTED)]))
    seed_distance, distance, _ = sample_distances(to_mel(waveforms), log_base)
    similarities = [math.nan] * len(waveforms)
    if clap is not None:
        similarities = clap.similarity(waveforms, sample_rate, prompts.captions[row]).tolist()
    return PromptMeasurement(distance, seed_distance, loudness(waveforms, sample_rate).tolist(), similarities)


def _compare_sounds(values: Sequence[Sequence[float]]) -> Movement | None:
    """How far one value of the sounds moved, from those of base, base from other noise and adapted model by prompt."""
    distances, seed_distances = ([abs(row[index] - row[0]) for row in values] for index in (2, 1))
    return compare_distances(distances, seed_distances)
