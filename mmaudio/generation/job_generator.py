"""The loaded models that the jobs of a run share, and the work on one job: generate, rank, mix, write."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from mmaudio import cli
from mmaudio.features.encoders import CONDITION_ENCODERS, ENCODER_COMPONENTS, Encoders, load_encoders
from mmaudio.generation.condition_cache import ConditionCache
from mmaudio.generation.generate import all_prompts, encode_prompts, generate_samples, plain, plan_grid
from mmaudio.generation.generation_flags import build_mix
from mmaudio.generation.generation_table import GenerationTable
from mmaudio.generation.jobs import Job, sample_seeds, write_outputs
from mmaudio.generation.part_store import PartStore, hash_settings
from mmaudio.generation.run_settings import choose_base, describe_settings, has_effect, open_table
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.generation.solver import ADAPTIVE
from mmaudio.generation.take_ranking import RankedTakes, Ranking, TakeScorer, plan_ranking, rank_takes
from mmaudio.lora.adapter import merge
from mmaudio.lora.stack import AdapterStack
from mmaudio.metrics.pretrained_metrics import ModelSearch
from mmaudio.model.spec import CLIP_SECONDS
from mmaudio.model.weight_dtype import cast_weights
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import component_sha256, fetch_files


@dataclasses.dataclass(frozen=True)
class JobGenerator:
    """The loaded models that jobs share."""

    sampler: Sampler
    encoders: Encoders
    text_features: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    """Stored in the files."""
    scorer: TakeScorer | None
    cache: ConditionCache
    table: GenerationTable
    """Of a folder."""

    def run(self, job: Job, args: argparse.Namespace) -> None:
        """Generate, rank and write one job's audio."""
        store = open_store(job, self.settings, args)
        with cli.explain_out_of_memory("take fewer --samples" if args.samples > 1 else ""):
            waveforms = self._generate(job, args, store)
            ranked = None if self.scorer is None else self._rank(job, waveforms, self.scorer)
        request, sample_rate = job.request, self.sampler.spec.codec.sample_rate
        streams = request.streams
        waveforms, notes = build_mix(args).apply(waveforms, sample_rate, request.video, request.start, streams)
        for note in notes:
            print_line(f"note: {job.outputs.paths[0].name}: {note}", sys.stderr)
        write_outputs(job, waveforms, sample_rate, self.settings, ranked)
        if args.folder is not None:
            self.table.record(job, sample_seeds(job, ranked))
        store.clear()

    def _generate(self, job: Job, args: argparse.Namespace, store: PartStore) -> Tensor:
        conditions = self.cache.open(job.request.video)
        bar = label_progress if args.folder is None else plain
        waveforms = generate_samples(
            self.sampler, self.encoders, job.request, args.samples, self.text_features, bar, store, conditions
        )
        self.cache.limit_size()
        if job.request.method == ADAPTIVE:
            counts = self.sampler.solver_counts
            print_line(f"note: {ADAPTIVE}: {counts.steps} steps, {counts.evaluations} evaluations", sys.stderr)
        return waveforms

    def _rank(self, job: Job, waveforms: Tensor, scorer: TakeScorer) -> RankedTakes:
        request = job.request
        ranked = rank_takes(scorer.score(request, job.clip_range.seconds, waveforms), scorer.ranking)
        for line in ranked.lines(request.video.name if request.video else "text", request.seed):
            print_line(line)
        return ranked


def find_ranking(args: argparse.Namespace) -> Ranking | None:
    """What the samples are ranked by; WeightsError where its weights are absent."""
    if args.rank_by is None:
        return None
    offline, device = cli.is_offline(args.offline), cli.pick_device(args.device)
    return plan_ranking(args.rank_by, ModelSearch(choose_base(args)[1], args.weights, offline, (args.rank_by,), device))


def load_generator(jobs: Sequence[Job], args: argparse.Namespace, ranking: Ranking | None) -> JobGenerator:
    """Load what the jobs need; no encoder of videos where all features of the videos are kept."""
    device = cli.pick_device(args.device)
    names = CONDITION_ENCODERS if any(job.request.video for job in jobs) else ("clip",)
    stack, model = choose_base(args)
    components = [ENCODER_COMPONENTS[name] for name in names]
    sampler, settings = load_adapted_sampler(args, stack, model, device, components)
    cache = ConditionCache.of_model(model, args.weights, device, args.conditions)
    grids = [plan_grid(cache.codec, job.request, job.clip_range.seconds) for job in jobs]
    is_complete = all(cache.is_complete(job.request.visual, grid) for job, grid in zip(jobs, grids, strict=True))
    if is_complete and ranking is None:
        names = ("clip",)
    encoders = load_encoders(model, args.weights, device, names)
    text_features = encode_prompts(encoders, [prompt for job in jobs for prompt in all_prompts(job.request)])
    encoders.drop_text_tower()
    scorer = None if ranking is None else TakeScorer(ranking, sampler.spec, encoders)
    return JobGenerator(sampler, encoders, text_features, settings, scorer, cache, open_table(args))


def label_progress(items: Sequence[Any], label: str) -> Iterator[Any]:
    """Yield `items` with a progress bar."""
    return progress(items, len(items), label)


def open_store(job: Job, settings: Mapping[str, Any], args: argparse.Namespace) -> PartStore:
    """The store of a job's finished parts, beside its output: on disk for more than a window, else in memory."""
    if args.one_pass or job.clip_range.seconds <= CLIP_SECONDS:
        return PartStore()
    first = job.outputs.paths[0]
    paths = [path for path in (job.request.video, job.request.image, *args.adapter) if path is not None]
    base = {name: component_sha256(settings["model"], name, args.weights) for name in ("network", "vae", "vocoder")}
    key = hash_settings({**settings, **dataclasses.asdict(job.request), "samples": args.samples, "base": base}, paths)
    return PartStore(first.with_name(f".{first.stem}.generation"), key)


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line above any progress bar, on standard output where no `file` is named."""
    with tqdm.external_write_mode(file=file or sys.stdout):
        print_lines(line, file=file, flush=True)


def load_adapted_sampler(
    args: argparse.Namespace,
    stack: AdapterStack | None,
    model: str,
    device: torch.device,
    encoder_components: Sequence[str] = (),
) -> tuple[Sampler, dict[str, Any]]:
    """Load the model's sampler with the adapters merged in, and the settings that are stored in the audio files.

    Missing files are fetched, those of `encoder_components` too. Raises WeightsError where files are missing or an
    adapter was trained on another file of the model.
    """
    components = ("network", "vae", "vocoder", *encoder_components)
    fetch_files(model, components, args.weights, cli.is_offline(args.offline))
    sampler = load_sampler(model, args.weights, device, dtype=fast_dtype(device))
    if stack is not None and has_effect(stack):
        adapted = stack.attach(sampler.network, model, component_sha256(model, "network", args.weights))
        sampler.network = merge(adapted).eval().requires_grad_(False)
    cast_weights(sampler.network, sampler.dtype)
    return sampler, describe_settings(args, stack, model)
