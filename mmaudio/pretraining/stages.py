"""The stages of pretraining in order, each resuming from the files in the working folder."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from mmaudio.errors import ConfigError
from mmaudio.features.clip import ClipEncoder
from mmaudio.features.synchformer import Synchformer
from mmaudio.features.vae import VAE
from mmaudio.model.networks import MMAudio
from mmaudio.pretraining import base_evaluation, clip_stage, export, network_stage, shards, sync_stage, vae_stage
from mmaudio.pretraining.feature_stage import CachedFeatures, compute_features
from mmaudio.pretraining.objective import CPU
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.stage_run import StageRun
from mmaudio.pretraining.training_loop import Log
from mmaudio.synthetic.demo import is_complete, plan_demo_videos, write_demo_videos
from mmaudio.utils.progress import progress

STAGES = ("data", "sync", "vae", "clip", "features", "network", "evaluate")
TRAINED_STAGES = ("sync", "vae", "clip", "network")
"""Those that take optimizer steps."""
ATTRIBUTES = {"data": "shards", "evaluate": "evaluation"}
"""Attributes of `Pretraining` that run the stages; for the other stages the stage's own name."""


@dataclass(frozen=True)
class PretrainingConfig:
    """Sizes and recipes of all stages; the defaults are those of the shipped weights."""

    seed: int = 5
    """Seed of the clips."""
    shards: int = 50
    """Shards of 50 clips to train on."""
    recipes: dict[str, Recipe] = field(
        default_factory=lambda: {
            "sync": sync_stage.RECIPE,
            "vae": vae_stage.RECIPE,
            "clip": clip_stage.RECIPE,
            "network": network_stage.RECIPE,
        }
    )
    held_out_clips: int = 40
    """Clips to evaluate on, none of which is trained on."""

    def with_steps(self, steps: dict[str, int], cuda_graph: bool = True) -> PretrainingConfig:
        """The configuration with other numbers of steps for some stages, and with or without CUDA graphs."""
        recipes = {
            stage: replace(recipe, steps=steps.get(stage, recipe.steps), cuda_graph=cuda_graph)
            for stage, recipe in self.recipes.items()
        }
        return replace(self, recipes=recipes)


def parse_steps(words: Sequence[str]) -> dict[str, int]:
    """`sync=20000` and the like -> steps by stage; ConfigError for another stage or no number of at least 1."""
    steps = {}
    for word in words:
        stage, _, number = word.partition("=")
        if stage not in TRAINED_STAGES:
            near = difflib.get_close_matches(stage, TRAINED_STAGES, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"steps {word!r}: {stage!r} is no stage with steps ({', '.join(TRAINED_STAGES)}){hint}")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise ConfigError(f"steps {word!r}: expected a number of at least 1 behind the sign, as in {stage}=20000")
        steps[stage] = int(number)
    return steps


class Pretraining:
    """One run; the result of a stage is computed when it is first read, or loaded from the folder."""

    def __init__(
        self,
        folder: Path,
        output: Path,
        log: Log,
        processes: int = 1,
        config: PretrainingConfig | None = None,
        device: torch.device = CPU,
    ) -> None:
        """`folder` keeps all that is needed to resume; `output` gets the weights and the clips that ship with them."""
        self.device = device
        self.folder, self.output, self.log, self.processes = folder, output, log, processes
        self.config = config or PretrainingConfig()

    def run(self, stages: tuple[str, ...] = STAGES) -> None:
        """Run the stages, and the earlier ones that they need."""
        for stage in stages:
            self.log(f"== {stage}")
            start_time = time.monotonic()
            getattr(self, ATTRIBUTES.get(stage, stage))
            self.log(f"== {stage}: {time.monotonic() - start_time:.1f} s")

    def _stage_run(self, stage: str, seed: int) -> StageRun:
        return StageRun(self.folder / f"{stage}.pt", seed, self.config.recipes[stage], self.log, self.device)

    @cached_property
    def shards(self) -> list[Shard]:
        """Stage `data`."""
        count, folder = self.config.shards, self.folder / "data"
        for _ in progress(shards.write_shards(folder, self.config.seed, count, self.processes), count, "shards"):
            pass
        return [shards.load_shard(folder, number) for number in range(count)]

    @cached_property
    def sync(self) -> Synchformer:
        """Stage `sync`."""
        clips = sum(len(shard.captions) for shard in self.shards)
        scenes = [shards.plan_clip(self.config.seed, index).scene for index in range(clips)]
        return sync_stage.train_sync(self.shards, scenes, self._stage_run("sync", seed=1))

    @cached_property
    def vae(self) -> VAE:
        """Stage `vae`."""
        return vae_stage.train_vae(self.shards, self._stage_run("vae", seed=2))

    @cached_property
    def clip(self) -> ClipEncoder:
        """Stage `clip`."""
        return clip_stage.train_clip(self.shards, self._stage_run("clip", seed=3))

    @cached_property
    def features(self) -> CachedFeatures:
        """Stage `features`."""
        return compute_features(self.shards, self.vae, self.sync, self.clip, self.folder / "features.pt", self.log)

    @cached_property
    def network(self) -> MMAudio:
        """Stage `network`."""
        return network_stage.train_network(self.features, self._stage_run("network", seed=4))

    @cached_property
    def evaluation(self) -> None:
        """Stage `evaluate`: writes the weights and the clips that ship to the output, and logs the metrics."""
        modules = {"network": self.network, "vae": self.vae, "synchformer": self.sync, "clip": self.clip.model}
        size = export.export_weights(modules, self.output)
        self.log(f"{self.output}: weights of {size} bytes")
        first, seed = self.config.shards * shards.SHARD_SIZE, self.config.seed
        general = self.output / "general"
        if not general.is_dir():
            export.write_general_clips(general, seed, first + 1000)
        held_out = export.write_held_out_clips(self.folder / "held_out", seed, first, self.config.held_out_clips)
        base_evaluation.evaluate(self.output, held_out, [0.0], self.log, "base", self.device)
        base_evaluation.evaluate_text(self.output, self.log, self.device)
        videos = plan_demo_videos(self.folder / "demo", 8, 32.0, 0)
        list(write_demo_videos([video for video in videos if not is_complete(video)], self.processes))
        paths, starts = [video.path for video in videos], [0.0, 12.0, 24.0]
        base_evaluation.evaluate(self.output, paths, starts, self.log, "demo", self.device)
