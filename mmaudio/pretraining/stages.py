"""The stages in order, each going on from what lies in the working folder."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from mmaudio.errors import ConfigError
from mmaudio.features.clip import ClipEncoder
from mmaudio.features.synchformer import Synchformer
from mmaudio.features.vae import VAE
from mmaudio.model.networks import MMAudio
from mmaudio.pretraining import clip_stage as clip
from mmaudio.pretraining import export
from mmaudio.pretraining import feature_stage as features
from mmaudio.pretraining import network_stage as network
from mmaudio.pretraining import shards as data
from mmaudio.pretraining import sync_stage as sync
from mmaudio.pretraining import vae_stage as codec
from mmaudio.pretraining.gpu_steps import CPU
from mmaudio.pretraining.training_loop import Log, Recipe
from mmaudio.synthetic.demo import demo_videos, is_made, make_demo_videos
from mmaudio.utils.progress import progress

STAGES = ("data", "sync", "vae", "clip", "features", "network", "evaluate")
TRAINED = ("sync", "vae", "clip", "network")
"""Those that take steps."""


@dataclass(frozen=True)
class Plan:
    """How much of everything; the defaults are what the shipped weights were made with."""

    seed: int = 5
    """Of the clips."""
    shards: int = 50
    """Shards of 50 clips to train on."""
    recipes: dict[str, Recipe] = field(
        default_factory=lambda: {
            "sync": sync.RECIPE,
            "vae": codec.RECIPE,
            "clip": clip.RECIPE,
            "network": network.RECIPE,
        }
    )
    held_out: int = 40
    """Clips to evaluate on, none of which is trained on."""

    def with_steps(self, steps: dict[str, int], record: bool = True) -> Plan:
        """The plan with other numbers of steps for the stages named, and with or without recorded steps."""
        return replace(
            self,
            recipes={
                stage: replace(recipe, steps=steps.get(stage, recipe.steps), record=record)
                for stage, recipe in self.recipes.items()
            },
        )


def steps_from(words: Sequence[str]) -> dict[str, int]:
    """`sync=20000` and the like -> steps by stage; ConfigError for another stage or no number of at least 1."""
    steps = {}
    for word in words:
        stage, _, number = word.partition("=")
        if stage not in TRAINED:
            near = difflib.get_close_matches(stage, TRAINED, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"steps {word!r}: {stage!r} is no stage with steps ({', '.join(TRAINED)}){hint}")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise ConfigError(f"steps {word!r}: expected a number of at least 1 behind the sign, as in {stage}=20000")
        steps[stage] = int(number)
    return steps


class Pretraining:
    """One run: what each stage makes is made when it is first asked for, or read from the folder."""

    def __init__(
        self,
        folder: Path,
        output: Path,
        log: Log,
        processes: int = 1,
        plan: Plan | None = None,
        device: torch.device = CPU,
    ) -> None:
        """`folder` keeps all that is needed to go on; `output` gets the weights and the clips that ship with them."""
        self.device = device
        self.folder, self.output, self.log, self.processes = folder, output, log, processes
        self.plan = plan or Plan()

    def run(self, stages: tuple[str, ...] = STAGES) -> None:
        """The given stages, with whatever earlier ones they need."""
        parts = {"data": "shards", "features": "cached", "evaluate": "report"}
        for stage in stages:
            self.log(f"== {stage}")
            began = time.monotonic()
            getattr(self, parts.get(stage, stage))
            self.log(f"== {stage}: {time.monotonic() - began:.1f} s")

    @cached_property
    def shards(self) -> list[data.Shard]:
        """Stage `data`."""
        count, folder = self.plan.shards, self.folder / "data"
        for _ in progress(data.make_shards(folder, self.plan.seed, count, self.processes), count, "shards"):
            pass
        return [data.load_shard(folder, number) for number in range(count)]

    @cached_property
    def sync(self) -> Synchformer:
        """Stage `sync`."""
        clips = sum(len(shard.captions) for shard in self.shards)
        scenes = [data.clip_scene(self.plan.seed, index)[0] for index in range(clips)]
        path, recipe = self.folder / "sync.pt", self.plan.recipes["sync"]
        return sync.train_sync(self.shards, scenes, path, 1, self.log, recipe, self.device)

    @cached_property
    def vae(self) -> VAE:
        """Stage `vae`."""
        path, recipe = self.folder / "vae.pt", self.plan.recipes["vae"]
        return codec.train_vae(self.shards, path, 2, self.log, recipe, self.device)

    @cached_property
    def clip(self) -> ClipEncoder:
        """Stage `clip`."""
        path, recipe = self.folder / "clip.pt", self.plan.recipes["clip"]
        return clip.train_clip(self.shards, path, 3, self.log, recipe, self.device)

    @cached_property
    def cached(self) -> features.Features:
        """Stage `features`."""
        path = self.folder / "features.pt"
        return features.compute_features(self.shards, self.vae, self.sync, self.clip, path, self.log)

    @cached_property
    def network(self) -> MMAudio:
        """Stage `network`."""
        path, recipe = self.folder / "network.pt", self.plan.recipes["network"]
        return network.train_network(self.cached, path, 4, self.log, recipe, self.device)

    @cached_property
    def report(self) -> None:
        """Stage `evaluate`: the weights and clips are written to the output, and the log says what was reached."""
        parts: dict[str, nn.Module] = {"network": self.network, "vae": self.vae, "synchformer": self.sync}
        size = export.export({**parts, "clip": self.clip.model}, self.output)
        self.log(f"{self.output}: weights of {size} bytes")
        first = self.plan.shards * data.SHARD
        general = self.output / "general"
        if not general.is_dir():
            export.write_general(general, self.plan.seed, first + 1000)
        held_out = export.write_held_out(self.folder / "held_out", self.plan.seed, first, self.plan.held_out)
        export.evaluate(self.output, held_out, [0.0], self.log, "base", self.device)
        videos = demo_videos(self.folder / "demo", 8, 32.0, 0)
        list(make_demo_videos([video for video in videos if not is_made(video)], self.processes))
        export.evaluate(self.output, [video.path for video in videos], [0.0, 12.0, 24.0], self.log, "demo", self.device)
