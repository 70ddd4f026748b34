"""The recipe of the embedded base in miniature on a GPU, against the CPU's; skipped where torch sees no GPU."""

import dataclasses
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from mmaudio.errors import TrainingError
from mmaudio.features.encoders import load_encoders
from mmaudio.generation.sampler import load_sampler
from mmaudio.pretraining import export, shards, vae_stage
from mmaudio.pretraining.objective import Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.stages import TRAINED_STAGES, Pretraining, PretrainingConfig
from mmaudio.pretraining.training_loop import train

pytestmark = pytest.mark.gpu
STEPS = 8
"""Three are plain calls, the others replays."""


def recipes(**changes):
    quick = Recipe(
        steps=STEPS,
        learning_rate=1e-3,
        warmup_steps=4,
        ema_decay=0.9,
        save_every=4,
        log_every=1,
        bf16=False,
        micro_batches=1,
        **changes,
    )
    with_muon = dataclasses.replace(quick, muon_learning_rate=1e-3)
    return {"sync": with_muon, "vae": quick, "clip": quick, "network": with_muon}


def pretraining(folder, source, device, **changes):
    folder.mkdir()
    (folder / "data").symlink_to(source)
    lines = []
    config = PretrainingConfig(shards=1, recipes=recipes(**changes))
    run = Pretraining(folder, folder / "out", lines.append, config=config, device=torch.device(device))
    return run, lines


def losses(lines):
    """Losses by stage, from the log."""
    by_stage = {stage: [] for stage in TRAINED_STAGES}
    for line in lines:
        match = re.match(r"(\w+): step \d+/\d+, loss (\S+),", line)
        if match:
            by_stage[match.group(1)].append(float(match.group(2)))
    return by_stage


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 3)
    monkeypatch.setattr(vae_stage, "RANDOM_CLIPS", 3)


def test_every_stage_trains_as_on_the_cpu(shard_folder, tmp_path, small):
    stages = ("sync", "vae", "clip", "features", "network")
    cpu, cpu_lines = pretraining(tmp_path / "cpu", shard_folder, "cpu")
    cpu.run(stages)
    gpu, gpu_lines = pretraining(tmp_path / "gpu", shard_folder, "cuda")
    gpu.run(stages)
    expected, gpu_losses = losses(cpu_lines), losses(gpu_lines)
    for stage in TRAINED_STAGES:
        assert len(gpu_losses[stage]) == STEPS
        assert all(map(math.isfinite, gpu_losses[stage]))
        # the first loss is the same sum in another order; later ones go apart with what rounding makes of the weights
        assert gpu_losses[stage][0] == pytest.approx(expected[stage][0], rel=2e-2)
        assert gpu_losses[stage] == pytest.approx(expected[stage], rel=1e-1)
        assert any(re.match(rf"{stage}: {STEPS} steps in .* steps/s", line) for line in gpu_lines)
    assert all(value.device.type == "cpu" for value in torch.load(tmp_path / "gpu/sync.pt", weights_only=True).values())
    modules = {"network": gpu.network, "vae": gpu.vae, "synchformer": gpu.sync, "clip": gpu.clip.model}
    export.export_weights(modules, tmp_path / "out")
    assert all(value.device.type == "cpu" for value in load_file(tmp_path / "out/network.safetensors").values())
    load_encoders("tiny_16k", tmp_path / "out", "cpu")
    sampler = load_sampler("tiny_16k", tmp_path / "out", "cpu")
    weights = gpu.network.final_layer.conv.weight.detach().cpu().half().float()
    torch.testing.assert_close(sampler.network.final_layer.conv.weight.float(), weights)


def test_replayed_steps_equal_eager_ones(shard_folder, tmp_path, small):
    ends = []
    for cuda_graph in (True, False):
        run, lines = pretraining(tmp_path / str(cuda_graph), shard_folder, "cuda", cuda_graph=cuda_graph)
        run.run(("sync", "vae", "clip"))
        ends.append(losses(lines))
    for stage in ("sync", "vae", "clip"):
        assert ends[0][stage] == pytest.approx(ends[1][stage], rel=1e-2)
        assert len(set(ends[0][stage])) > 1  # every replay has its own draws


def test_a_killed_stage_continues_from_its_last_checkpoint(tmp_path):
    class Killed(Exception):
        pass

    def problem(calls):
        torch.manual_seed(0)
        module = torch.nn.ModuleDict({"blocks": torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 8))})
        module.to("cuda")
        remaining_calls = [calls]

        def draw(generator):
            remaining_calls[0] -= 1
            if remaining_calls[0] < 0:
                raise Killed
            return (torch.randn(4, 16, generator=generator),)

        return module, Objective(draw, lambda x: (module["blocks"](x) - 1).square().mean())

    recipe = Recipe(
        steps=12,
        learning_rate=1e-2,
        muon_learning_rate=1e-2,
        warmup_steps=3,
        ema_decay=0.8,
        save_every=5,
        micro_batches=1,
        bf16=False,
    )
    module, objective = problem(100)
    whole = train(module, objective, recipe, tmp_path / "whole.pt", 7, lambda line: None)
    module, objective = problem(8)
    with pytest.raises(Killed):
        train(module, objective, recipe, tmp_path / "killed.pt", 7, lambda line: None)
    module, objective = problem(100)
    resumed = train(module, objective, recipe, tmp_path / "killed.pt", 7, lambda line: None)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-2)
    # and a checkpoint of the GPU serves the CPU
    module, objective = problem(8)
    with pytest.raises(Killed):
        train(module, objective, recipe, tmp_path / "moved.pt", 7, lambda line: None)
    module, objective = problem(100)
    moved = train(module.to("cpu"), objective, recipe, tmp_path / "moved.pt", 7, lambda line: None)
    for name, value in whole.items():
        torch.testing.assert_close(moved[name], value.cpu(), atol=1e-3, rtol=1e-2)


def test_a_non_finite_loss_is_never_saved(tmp_path):
    module = torch.nn.Linear(3, 2).to("cuda")
    objective = Objective(lambda generator: (torch.full((1,), torch.nan),), lambda x: (module.weight * x).sum())
    with pytest.raises(TrainingError, match="not finite"):
        train(module, objective, recipes()["vae"], tmp_path / "a.pt", 1, lambda line: None)
    assert not list(tmp_path.iterdir())
