"""The stages in order, each going on from what lies in the working folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from mmaudio.features.clip import ClipEncoder
from mmaudio.features.synchformer import Synchformer
from mmaudio.features.vae import VAE
from mmaudio.model.networks import MMAudio
from mmaudio.pretraining import clip, codec, data, export, features, network, sync
from mmaudio.pretraining.loop import Log, Recipe
from mmaudio.progress import progress
from mmaudio.synthetic.demo import demo_videos, is_made, make_demo_videos

STAGES = ("data", "sync", "vae", "clip", "features", "network", "evaluate")


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


class Pretraining:
    """One run: what each stage makes is made when it is first asked for, or read from the folder."""

    def __init__(self, folder: Path, output: Path, log: Log, processes: int = 1, plan: Plan | None = None) -> None:
        """`folder` keeps all that is needed to go on; `output` gets the weights and the clips that ship with them."""
        self.folder, self.output, self.log, self.processes = folder, output, log, processes
        self.plan = plan or Plan()

    def run(self, stages: tuple[str, ...] = STAGES) -> None:
        """The given stages, with whatever earlier ones they need."""
        parts = {"data": "shards", "features": "cached", "evaluate": "report"}
        for stage in stages:
            self.log(f"== {stage}")
            getattr(self, parts.get(stage, stage))

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
        return sync.train_sync(self.shards, scenes, path, 1, self.log, recipe)

    @cached_property
    def vae(self) -> VAE:
        """Stage `vae`."""
        path, recipe = self.folder / "vae.pt", self.plan.recipes["vae"]
        return codec.train_vae(self.shards, path, 2, self.log, recipe)

    @cached_property
    def clip(self) -> ClipEncoder:
        """Stage `clip`."""
        path, recipe = self.folder / "clip.pt", self.plan.recipes["clip"]
        return clip.train_clip(self.shards, path, 3, self.log, recipe)

    @cached_property
    def cached(self) -> features.Features:
        """Stage `features`."""
        path = self.folder / "features.pt"
        return features.compute_features(self.shards, self.vae, self.sync, self.clip, path, self.log)

    @cached_property
    def network(self) -> MMAudio:
        """Stage `network`."""
        path, recipe = self.folder / "network.pt", self.plan.recipes["network"]
        return network.train_network(self.cached, path, 4, self.log, recipe)

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
        export.evaluate(self.output, held_out, [0.0], self.log, "base")
        videos = demo_videos(self.folder / "demo", 8, 32.0, 0)
        list(make_demo_videos([video for video in videos if not is_made(video)], self.processes))
        export.evaluate(self.output, [video.path for video in videos], [0.0, 12.0, 24.0], self.log, "demo")
