"""The recipe of the embedded base, in miniature: every stage runs, and a run that is killed goes on to the same end."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mmaudio.errors import TrainingError
from mmaudio.features.synchformer import build_synchformer
from mmaudio.model.networks import build_network
from mmaudio.pretraining import shards as data
from mmaudio.pretraining import sync_stage as sync
from mmaudio.pretraining import vae_stage as codec
from mmaudio.pretraining.shards import load_shard
from mmaudio.pretraining.stages import Plan, Pretraining
from mmaudio.pretraining.training_loop import Optimizers, Recipe, step_generator, train

QUICK = Recipe(steps=2, learning_rate=1e-3, warmup=1, ema=0.9, save_every=1, log_every=1, bf16=False)


def quiet(message):
    del message


class Killed(Exception):
    """Stands for a process that ends."""


def small_problem(calls=10_000):
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    left = [calls]

    def loss(generator):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return module(torch.randn(5, 6, generator=generator)).square().mean()

    return module, loss


def test_a_killed_stage_goes_on_to_the_same_weights(tmp_path):
    recipe = Recipe(steps=12, learning_rate=1e-2, warmup=3, ema=0.8, save_every=5, parts=2, bf16=False)
    module, loss = small_problem()
    whole = train(module, loss, recipe, tmp_path / "whole.pt", 7, quiet)
    module, loss = small_problem(calls=16)
    with pytest.raises(Killed):
        train(module, loss, recipe, tmp_path / "killed.pt", 7, quiet)
    assert not (tmp_path / "killed.pt").exists()
    module, loss = small_problem()
    resumed = train(module, loss, recipe, tmp_path / "killed.pt", 7, quiet)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    module, loss = small_problem()
    assert not torch.equal(train(module, loss, recipe, tmp_path / "other.pt", 8, quiet)["weight"], whole["weight"])


def test_muon_takes_the_matrices_of_blocks_and_a_killed_stage_goes_on_with_it(tmp_path):
    def problem(calls=10_000):
        torch.manual_seed(0)
        module = nn.ModuleDict({"blocks": nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(5, 5)), "head": nn.Linear(5, 2)})
        left = [calls]

        def loss(generator):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            x = module["blocks"](torch.randn(2, 4, 7, generator=generator))
            return (module["head"](x) - 1).square().mean()

        return module, loss

    recipe = Recipe(steps=10, learning_rate=1e-2, muon=1e-2, warmup=2, save_every=4, parts=1, bf16=False)
    module, loss = problem()
    optimizer = Optimizers(module, recipe)
    assert [tuple(matrix.shape) for matrix in optimizer.matrices] == [(6, 12), (5, 5)]
    assert len(optimizer.parts[0].param_groups[0]["params"]) == 4  # the biases and the head
    module, loss = problem()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    whole = train(module, loss, recipe, tmp_path / "whole.pt", 7, quiet)
    assert all(not torch.equal(whole[key], before[key]) for key in before)
    module, loss = problem(calls=6)
    with pytest.raises(Killed):
        train(module, loss, recipe, tmp_path / "killed.pt", 7, quiet)
    module, loss = problem()
    resumed = train(module, loss, recipe, tmp_path / "killed.pt", 7, quiet)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    module, _ = small_problem()
    with pytest.raises(TrainingError, match="step 0"):
        train(module, lambda generator: module.weight.sum() * torch.nan, QUICK, tmp_path / "a.pt", 1, quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_shard_holds_what_was_drawn(shards):
    shard = load_shard(shards, 0)
    assert shard.frames.shape == (3, 200, 64, 64, 3)
    assert shard.stills.shape == (3, 64, 64, 64, 3)
    assert shard.audio.shape == (3, 128_000)
    assert shard.audio.float().abs().amax(1).tolist() == pytest.approx([0.95] * 3, abs=1e-3)
    for index, (caption, events) in enumerate(zip(shard.captions, shard.events, strict=True)):
        scene, (fps, _, size), _ = data.clip_scene(5, index)
        assert caption == scene.caption
        assert events == [event.time for event in scene.events]
        if fps == 25 and size == 64:
            drawn, _, _ = data.render_clip(5, index)
            away = (shard.frames[index].float() - torch.from_numpy(drawn.frames[:200]).float()).abs()
            assert away.mean() < 4  # levels of 255, H.264's own error


def test_sync_targets_lie_where_the_events_are(shards):
    scenes = [data.clip_scene(5, index)[0] for index in range(3)]
    batches = sync.SyncData([load_shard(shards, 0)], scenes)
    for row, scene in zip(batches.struck, scenes, strict=True):
        for event in scene.events:
            if event.time < 8:
                assert row[int(event.time / sync.FRAME_SECONDS)] == 1
    pictures, mel, struck, motion, true = batches.batch(8, step_generator(1, 1))
    assert (pictures.shape, mel.shape) == ((8, 16, 3, 64, 64), (8, 8, 100))
    assert (struck.shape, motion.shape, true.tolist()) == ((8, 8, 5), (8, 8, 15), [True] * 6 + [False] * 2)
    encoder = build_synchformer("tiny_16k")
    sync.initialise(encoder, torch.Generator().manual_seed(0))
    weight = encoder.vfeat_extractor.patch_embed_3d.proj.weight
    assert torch.equal(weight[24:, :, 0], -weight[24:, :, 1])  # a picture at rest gives these filters nothing


@pytest.mark.slow
def test_every_stage_runs_and_leaves_its_result(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 3)
    monkeypatch.setattr(codec, "BROAD", 3)
    (tmp_path / "data").symlink_to(shards)
    plan = Plan(shards=1, recipes=dict.fromkeys(("sync", "vae", "clip", "network"), QUICK))
    first = Pretraining(tmp_path, tmp_path / "out", quiet, plan=plan)
    first.run(("sync", "vae", "clip", "features", "network"))
    assert {path.name for path in tmp_path.glob("*.pt")} == {
        "sync.pt",
        "vae.pt",
        "clip.pt",
        "features.pt",
        "network.pt",
    }
    again = Pretraining(tmp_path, tmp_path / "out", quiet, plan=plan)
    for one, other in zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    latents = first.network.normalize(first.cached.mean + first.cached.std * torch.randn(first.cached.mean.shape))
    assert latents.std().item() == pytest.approx(1, abs=0.1)
    fresh = build_network("tiny_16k")
    fresh.load_released(first.network.state_dict())
    assert torch.equal(fresh.empty_string_feat, first.cached.text[0])


@pytest.mark.slow
def test_no_thread_is_one_line(tmp_path):
    command = [sys.executable, "training/pretrain_tiny.py", "--threads", "0", "--work_dir", str(tmp_path / "work")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: --threads 0: at least 1\n")
