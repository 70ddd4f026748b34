"""Inputs of an evaluation, loaded and checked, and the hash that says whether old results are still valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmaudio.data.feature_set import FeatureSet
from mmaudio.data.feature_store import read_header, shard_path
from mmaudio.data.fingerprint import fingerprint
from mmaudio.errors import WeightsError
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.general_domain import GeneralDomain, load_general_domain
from mmaudio.evaluation.generic_prompts import PromptSounds, plan_prompts, prompts_key
from mmaudio.evaluation.held_out_clips import load_held_out
from mmaudio.evaluation.strength_sweep import default_strengths
from mmaudio.evaluation.sync_check import SyncCheck, plan_sync_check
from mmaudio.lora.checkpoint import adapter_files
from mmaudio.lora.peft_compat import describe_shapes
from mmaudio.lora.stack import AdapterStack, read_stack
from mmaudio.lora.strength import AS_TRAINED
from mmaudio.metrics.pretrained_metrics import ModelSearch
from mmaudio.metrics.pretrained_search import PretrainedSources, find_pretrained_metrics
from mmaudio.metrics.registry import select_metrics
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.weights import store as weights
from mmaudio.weights.registry import COMPONENTS

VERSION = 13
"""Raised whenever the same inputs give other results."""
BASE_COMPONENTS = ("network", "vae", "vocoder")
"""The components of the base model that generate audio from features."""


@dataclass(frozen=True)
class EvaluationInputs:
    """What an evaluation compares, on which clips, with which metrics."""

    config: EvaluationConfig
    stack: AdapterStack
    """The adapter, or several."""
    spec: ModelSpec
    base_sha256: str
    """Hash of the base model's network."""
    held_out: FeatureSet
    trained_ids: frozenset[str]
    """Ids of the held-out clips whose source videos were trained on."""
    general: GeneralDomain | None
    no_general_reason: str
    """Why forgetting cannot be measured on videos, where it cannot."""
    prompts: PromptSounds | None
    """Generic prompts, on which it is measured without videos."""
    no_prompts_reason: str
    """Why it cannot be measured on prompts, where it cannot."""
    metric_names: Sequence[str]
    metric_sources: PretrainedSources
    """The pretrained models of these metrics, not loaded yet."""
    sync_check: SyncCheck | None
    key: str
    """Hash of everything that the results depend on."""


def load_inputs(config: EvaluationConfig) -> EvaluationInputs:
    """Load and check everything but the weights.

    Raises DataError for clips that are missing or were trained on, WeightsError for an adapter that does not fit.
    """
    metric_names = select_metrics(config.metrics)
    stack = read_stack(config.adapters, config.offline)
    spec = model_spec(base_model_name(config, stack))
    base_sha256 = find_base(config, stack, spec)
    search = ModelSearch(spec.name, config.weights, config.offline, config.metrics or (), config.device)
    sources = find_pretrained_metrics(search, metric_names)
    held_out, trained_ids = load_held_out(config, spec.name, stack)
    if config.strengths is None:
        config = replace(config, strengths=default_strengths(len(set(held_out.videos))))
    sync_check = plan_sync_check(config, search)
    general, reason = load_general_domain(
        spec, config.general_videos, config.general_dir, config.weights, config.device
    )
    counts = [len(held_out), *([] if general is None else [len(general.features)])]
    prompts, no_prompts_reason = plan_prompts(config, spec, counts, held_out.seconds)
    metric_inputs = {
        "prompts": prompts_key(config, spec, prompts),
        "metrics": metric_names,
        "judges": sources.identities,
        "check": None if sync_check is None else sync_check.identity,
    }
    key = inputs_key(config, spec, held_out, general, metric_inputs)
    return EvaluationInputs(
        config=config,
        stack=stack,
        spec=spec,
        base_sha256=base_sha256,
        held_out=held_out,
        trained_ids=trained_ids,
        general=general,
        no_general_reason=reason,
        prompts=prompts,
        no_prompts_reason=no_prompts_reason,
        metric_names=metric_names,
        metric_sources=sources,
        sync_check=sync_check,
        key=key,
    )


def base_model_name(config: EvaluationConfig, stack: AdapterStack) -> str:
    """The base model's name; WeightsError where neither an adapter nor the config has it."""
    name = config.model or stack.base_model
    if not name:
        shapes = describe_shapes(stack.possible_models)
        raise WeightsError(f"{config.checkpoint}: it names no base model, and {shapes}: say which (--model)")
    return name


def find_base(config: EvaluationConfig, stack: AdapterStack, spec: ModelSpec) -> str:
    """The hash of the base model's network, fetched where it may be; WeightsError where an adapter does not fit it."""
    stack.check(spec.name)
    components = COMPONENTS if config.general_videos is not None else BASE_COMPONENTS
    weights.fetch_files(spec.name, components, config.weights, config.offline)
    base_sha256 = weights.component_sha256(spec.name, "network", config.weights)
    stack.check(spec.name, base_sha256)
    return base_sha256


def is_valid(path: Path, key: str) -> bool:
    """Whether the results at `path` are those of the same inputs."""
    try:
        return bool(json.loads(path.read_text())["inputs"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def inputs_key(
    config: EvaluationConfig,
    spec: ModelSpec,
    held_out: FeatureSet,
    general: GeneralDomain | None,
    metric_inputs: Mapping[str, object],
) -> str:
    """A hash of everything that the results depend on; `metric_inputs`: what the metrics and the sync check do."""
    dependencies: dict[str, object] = {
        **metric_inputs,
        "version": VERSION,
        "adapter": _adapter_keys(config),
        "base": {
            name: weights.component_sha256(spec.name, name, config.weights) for name in ("network", "vae", "vocoder")
        },
        "draws": config.sampling.to_json(),
        "strengths": config.strengths,
        "report_clips": config.report_clips,
        "device": [config.device.type, str(config.dtype)],
        "clips": [asdict(clip) for clip in held_out.clips],
        "features": _video_keys(config.features_dir, config.video_root, held_out.videos),
        "general": (
            None if general is None else _video_keys(general.features_dir, general.video_root, general.features.videos)
        ),
    }
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()


def _adapter_keys(config: EvaluationConfig) -> list[str]:
    """Hashes of the adapter's files; of several, or with a strength, in an order that does not depend on theirs."""
    keys = [
        [*map(weights.file_sha256, adapter_files(path)), *([] if strength == AS_TRAINED else [str(strength.plain())])]
        for path, strength in config.adapters
    ]
    return [text for key in sorted(keys) for text in key]


def _video_keys(features_dir: Path, video_root: Path, videos: Sequence[str]) -> list[str]:
    """Keys of the features and of the videos themselves, whose original audio models are compared with."""
    headers = [(video, read_header(shard_path(features_dir, video))) for video in dict.fromkeys(videos)]
    keys = [(video, header.picture_key, header.text_key) for video, header in headers if header is not None]
    return [f"{picture} {text} {fingerprint(video_root / video)}" for video, picture, text in keys]
