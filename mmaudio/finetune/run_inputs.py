"""The inputs of a training run (settings, base weights, clips): which of them a resumed run may change."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import AnyFeatureSet
from mmaudio.finetune.base_samples import hash_samples
from mmaudio.finetune.initial_adapter import InitialAdapter
from mmaudio.utils.nested_names import flatten

LOCATION_KEYS = ("output_dir", "clips_tsv", "features_dir", "weights", "offline", "video_root", "device", "resume")
"""Settings that say where, not what; adapter files leave them out."""
CHANGEABLE_KEYS = (
    *LOCATION_KEYS,
    "exp_id",
    "init_from",
    "max_steps",
    "lora.max_steps",
    "eval_every",
    "save_every",
    "batch_size",
    "gradient_accumulation_steps",
    "amp",
    "base_bf16",
    "gradient_checkpointing",
    "compile",
    "cuda_graph",
    "merge_batches",
    "features_in_memory",
    "logging.",
    "early_stopping.",
)
"""Settings (and groups of them) that may change when a run continues."""

BASE_SAMPLES = "base samples"
VALUES_BEFORE = {"early_times": 0.0}
"""What training did before a setting existed, where that is not the setting's default."""


@dataclass(frozen=True)
class RunInputs:
    """Settings, base weights and clips of one run."""

    config: TrainConfig
    base_sha256: str
    train: AnyFeatureSet
    held_out: AnyFeatureSet | None
    initial: InitialAdapter | None = None
    """The adapter from which training starts; None: a new one."""

    def fixed_values(self) -> dict[str, Any]:
        """Everything that a resumed run must have in common with the saved one, by name, as plain values."""
        settings = flatten(self.config.to_dict())
        return {name: value for name, value in settings.items() if not name.startswith(CHANGEABLE_KEYS)} | {
            "clips per step": self.config.effective_batch_size,
            "base weights": self.base_sha256,
            **self._base_samples(),
            "training clips": hash_clips(self.train),
            "validation clips": "none" if self.held_out is None else hash_clips(self.held_out),
            **({} if self.initial is None else {"initial adapter": self.initial.sha256[:12]}),
        }

    def _base_samples(self) -> dict[str, str]:
        config = self.config
        return (
            {BASE_SAMPLES: f"{hash_samples(config, self.base_sha256, self.train.seconds)} with videos"}
            if config.preserve_base
            else {}
        )

    def data_summary(self) -> dict[str, Any]:
        """The `data` entry of an adapter file: clip length, ids and source videos, lineage."""
        summary: dict[str, Any] = {"seconds": self.train.seconds}
        for name, clips in (("train", self.train), ("validation", self.held_out)):
            ids, videos = ([], []) if clips is None else (clips.ids, sorted(set(clips.videos)))
            summary[name] = {"clips": len(ids), "videos": videos, "ids": ids}
        return summary if self.initial is None else summary | {"lineage": self.initial.lineage}


def describe_differences(saved: dict[str, Any], current: dict[str, Any]) -> str:
    """The differences between two runs' `fixed_values` in words, empty where there are none.

    A setting that is not in `saved`, of an older version, had its default value, or that of VALUES_BEFORE.
    """
    defaults = {name: value for name, value in flatten(TrainConfig().to_dict()).items() if name in current}
    saved = defaults | VALUES_BEFORE | saved
    names = [name for name in {**saved, **current} if saved.get(name) != current.get(name)]
    if "preserve_base" in names and BASE_SAMPLES in names:
        names.remove(BASE_SAMPLES)  # one of the two has none
    text = "; ".join(
        f"{name}: others now, by captions, base model, length or the videos beside them"
        if name == BASE_SAMPLES
        else f"{name}: {saved.get(name)}, now {current.get(name)}"
        for name in names
    )
    if any(name.endswith(" clips") for name in names):
        text += "; videos, captions or how they are cut have changed"
    return text


def hash_clips(clips: AnyFeatureSet) -> str:
    """The number of clips and a hash of their ids, captions and latents."""
    digest, latents = hashlib.sha256(repr((clips.ids, clips.captions)).encode()), clips.to_lazy().lazy_tensor("mean")
    for row in range(len(clips)):
        digest.update(latents[torch.tensor([row])].cpu().numpy().tobytes())
    return f"{len(clips)} ({digest.hexdigest()[:12]})"
