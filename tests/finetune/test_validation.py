"""Validation: fixed times and noise, so that two evaluations differ by the weights alone."""

import small_world
import torch
from test_networks import mini

from mmaudio.finetune.dataset import material
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.state import new_state
from mmaudio.finetune.validation import held_out, time_grid, validate
from mmaudio.lora.adapter import LoRAConfig

CPU = torch.device("cpu")


def test_the_grid_stands_for_the_logit_normal_distribution():
    grid = time_grid(64)
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).sigmoid()
    assert torch.allclose(grid + grid.flip(0), torch.ones(64), atol=1e-6)
    for function in (torch.square, torch.sqrt):
        assert abs(float(function(grid).mean() - function(drawn).mean())) < 3e-3


def test_a_clip_is_measured_alike_in_any_company(tmp_path):
    config, network = small_world.config(tmp_path, batch_size=5), mini()
    state, clips = new_state(network, config, 5), small_world.clips(3, "val")
    everyone = held_out(material(network, clips, CPU), clips.ids, 8)
    alone = clips.subset([2])
    before = state.generator.get_state()
    losses = validate(state, everyone, config, Team())
    again = validate(state, everyone, config, Team())
    own = validate(state, held_out(material(network, alone, CPU), alone.ids, 8), config, Team())
    assert losses.shape == (3, 8) and torch.equal(losses, again) and torch.allclose(losses[2], own[0], rtol=1e-5)
    assert torch.equal(before, state.generator.get_state()), "evaluating must not change what training draws"
    assert len({float(loss) for loss in losses.flatten()}) == 24


def test_it_sees_the_weights(tmp_path):
    config, network = small_world.config(tmp_path), mini()
    state, clips = new_state(network, config, 5), small_world.clips(2, "val")
    held = held_out(material(network, clips, CPU), clips.ids, 8)
    before = validate(state, held, config, Team())
    for name, weight in state.trained().items():
        if "lora_B" in name:
            weight.data.add_(0.01)
    assert not torch.equal(before, validate(state, held, config, Team()))


def test_nothing_is_dropped_in_it(tmp_path):
    found = []
    for dropout in (0.5, 0.0):
        config, network = small_world.config(tmp_path, lora=LoRAConfig(rank=4, alpha=8.0, dropout=dropout)), mini()
        state, clips = new_state(network, config, 5), small_world.clips(2, "val")
        for name, weight in state.trained().items():
            if "lora_B" in name:
                weight.data.add_(0.01)
        state.model.train()  # as a step leaves it
        found.append(validate(state, held_out(material(network, clips, CPU), clips.ids, 8), config, Team()))
    assert torch.equal(*found)
