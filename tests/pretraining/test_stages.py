"""The recipe of the embedded base, in miniature: every stage runs, and a run that is killed goes on to the same end."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from torch import nn

from mmaudio.errors import TrainingError
from mmaudio.features.synchformer import build_synchformer
from mmaudio.model.networks import build_network
from mmaudio.pretraining import shards, vae_stage
from mmaudio.pretraining.muon import MuonAdamW
from mmaudio.pretraining.objective import step_generator
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.shards import load_shard, plan_clip, render_plan
from mmaudio.pretraining.stages import Pretraining, PretrainingConfig
from mmaudio.pretraining.sync_stage import SyncBatches, init_encoder
from mmaudio.pretraining.sync_targets import MEL_FRAME_SECONDS
from mmaudio.pretraining.training_loop import train

QUICK = Recipe(steps=2, learning_rate=1e-3, warmup_steps=1, ema_decay=0.9, save_every=1, log_every=1, bf16=False)


def quiet(message):
    del message


class Killed(Exception):
    """Stands for a process that ends."""


def small_problem(calls=10_000):
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    remaining_calls = [calls]

    def loss(generator):
        remaining_calls[0] -= 1
        if remaining_calls[0] < 0:
            raise Killed
        return module(torch.randn(5, 6, generator=generator)).square().mean()

    return module, loss


def test_a_killed_stage_resumes_to_the_same_weights(tmp_path):
    recipe = Recipe(
        steps=12, learning_rate=1e-2, warmup_steps=3, ema_decay=0.8, save_every=5, micro_batches=2, bf16=False
    )
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


def test_muon_trains_the_block_matrices_and_resumes(tmp_path):
    def problem(calls=10_000):
        torch.manual_seed(0)
        module = nn.ModuleDict({"blocks": nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(5, 5)), "head": nn.Linear(5, 2)})
        remaining_calls = [calls]

        def loss(generator):
            remaining_calls[0] -= 1
            if remaining_calls[0] < 0:
                raise Killed
            x = module["blocks"](torch.randn(2, 4, 7, generator=generator))
            return (module["head"](x) - 1).square().mean()

        return module, loss

    recipe = Recipe(
        steps=10, learning_rate=1e-2, muon_learning_rate=1e-2, warmup_steps=2, save_every=4, micro_batches=1, bf16=False
    )
    module, loss = problem()
    optimizer = MuonAdamW(module, recipe)
    assert [tuple(matrix.shape) for matrix in optimizer.matrices] == [(6, 12), (5, 5)]
    assert len(optimizer.optimizers[0].param_groups[0]["params"]) == 4  # the biases and the head
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


def test_a_non_finite_loss_stops_the_stage(tmp_path):
    module, _ = small_problem()
    with pytest.raises(TrainingError, match="step 0"):
        train(module, lambda generator: module.weight.sum() * torch.nan, QUICK, tmp_path / "a.pt", 1, quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_shard_holds_the_rendered_clips(shard_folder):
    shard = load_shard(shard_folder, 0)
    assert shard.frames.shape == (3, 200, 64, 64, 3)
    assert shard.stills.shape == (3, 64, 64, 64, 3)
    assert shard.audio.shape == (3, 128_000)
    assert shard.audio.float().abs().amax(1).tolist() == pytest.approx([0.95] * 3, abs=1e-3)
    for index, (caption, events) in enumerate(zip(shard.captions, shard.event_times, strict=True)):
        plan = plan_clip(5, index)
        assert caption == plan.scene.caption
        assert events == [event.time for event in plan.scene.events]
        if plan.fps == 25 and plan.image_size == 64:
            rendered = render_plan(plan)
            error = (shard.frames[index].float() - torch.from_numpy(rendered.frames[:200]).float()).abs()
            assert error.mean() < 4  # levels of 255, H.264's own error


@pytest.mark.slow
def test_sync_targets_lie_where_the_events_are(shard_folder):
    scenes = [plan_clip(5, index).scene for index in range(3)]
    batches = SyncBatches([load_shard(shard_folder, 0)], scenes)
    for row, scene in zip(batches.events, scenes, strict=True):
        for event in scene.events:
            if event.time < 8:
                assert row[int(event.time / MEL_FRAME_SECONDS)] == 1
    pictures, mel, events, motion, true_colours = batches.build_batch(*batches.draw(8, step_generator(1, 1)))
    assert (pictures.shape, mel.shape) == ((8, 16, 3, 64, 64), (8, 8, 100))
    assert (events.shape, motion.shape, true_colours.tolist()) == ((8, 8, 5), (8, 8, 15), [True] * 6 + [False] * 2)
    encoder = build_synchformer("tiny_16k")
    init_encoder(encoder, torch.Generator().manual_seed(0))
    weight = encoder.vfeat_extractor.patch_embed_3d.proj.weight
    assert torch.equal(weight[24:, :, 0], -weight[24:, :, 1])  # a picture at rest gives these filters nothing


@pytest.mark.slow
def test_every_stage_runs_and_leaves_its_result(shard_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 3)
    monkeypatch.setattr(vae_stage, "RANDOM_CLIPS", 3)
    (tmp_path / "data").symlink_to(shard_folder)
    config = PretrainingConfig(shards=1, recipes=dict.fromkeys(("sync", "vae", "clip", "network"), QUICK))
    first = Pretraining(tmp_path, tmp_path / "out", quiet, config=config)
    first.run(("sync", "vae", "clip", "features", "network"))
    assert {path.name for path in tmp_path.glob("*.pt")} == {
        "sync.pt",
        "vae.pt",
        "clip.pt",
        "features.pt",
        "network.pt",
    }
    again = Pretraining(tmp_path, tmp_path / "out", quiet, config=config)
    for one, other in zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    latents = first.network.normalize(first.features.mean + first.features.std * torch.randn(first.features.mean.shape))
    assert latents.std().item() == pytest.approx(1, abs=0.1)
    fresh = build_network("tiny_16k")
    fresh.load_released(first.network.state_dict())
    assert torch.equal(fresh.empty_string_feat, first.features.text[0])


@pytest.mark.slow
def test_a_machine_without_free_threads_is_one_line(tmp_path):
    command = [sys.executable, ROOT / "training/pretrain_tiny.py", "--threads", "0"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (process.returncode, process.stdout) == (2, "") and not list(tmp_path.iterdir())
    assert process.stderr == "error: --threads 0: at least 1\n"
