"""bfloat16 autocast: how far losses and gradients may be from float32's, derived from its precision."""

import math

import mini_training
import pytest
import torch
from helpers import filled, mini
from torch import nn

from benchmarks.bf16_error import compare, main
from mmaudio.errors import ConfigError
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.precision import autocast
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import sample_latents
from mmaudio.finetune.validation import build_validation_set
from mmaudio.model.flow_matching import interpolate

CPU = torch.device("cpu")
UNIT = 2.0**-9
"""Of bfloat16's eight significant bits: rounding to the nearest is off by at most this share of a value."""


@pytest.fixture
def world(tmp_path):
    """A state whose adapter does something, clips, and 24 samples of them."""
    network = mini()
    state = new_state(network, mini_training.build_config(tmp_path), 5)
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape)
    features = mini_training.mini_clips(3)
    clips = build_dataset(network, features, CPU)
    return state, clips, build_validation_set(clips, features.ids, 8).draws


def velocities(state, clips, draws, dtype, training=False):
    """Predicted velocities (S, N, C) and their targets; how many products were rounded on the way.

    Where gradients are wanted, as in `training`, layers may round in another order.
    """
    products = []
    hooks = [
        module.register_forward_hook(lambda *_: products.append(1))
        for module in state.network.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d))
    ]
    state.model.eval()
    with torch.set_grad_enabled(training), autocast(CPU, dtype):
        data = sample_latents(state.network, clips, draws)
        conditions = clips.conditions(state.network, draws.index, draws.no_video, draws.no_text)
        point = interpolate(draws.noise, data, draws.t)
        predicted = state.network.predict_velocity(point, draws.t, conditions)
    for hook in hooks:
        hook.remove()
    return predicted.detach(), data - draws.noise, len(products)


def rms(values):
    return float(values.double().square().mean().sqrt())


@pytest.mark.slow
def test_losses_differ_as_little_as_rounding_allows(world):
    """Errors of n products that add up like independent ones are sqrt(n) roundings of the velocity: E. The loss is
    mean((v - u)^2), so by Cauchy and Schwarz it moves by at most 2 sqrt(loss) E + E^2."""
    state, clips, draws = world
    full, target, products = velocities(state, clips, draws, torch.float32)
    rounded, _, _ = velocities(state, clips, draws, torch.bfloat16, training=True)
    assert rounded.dtype == torch.bfloat16 and products > 50
    allowed = math.sqrt(products) * UNIT * rms(full)
    assert UNIT / 10 * rms(full) < rms(rounded.float() - full) < allowed, "it computes in bfloat16, and no worse"
    error = compare(state, clips, draws)
    expected = (rounded.float() - target).square().mean((1, 2))
    # the loss itself is in float32
    torch.testing.assert_close(error.bfloat16_losses, expected, rtol=1e-5, atol=0)
    mean = float(error.float32_losses.mean())
    change = abs(float(error.bfloat16_losses.mean()) - mean)
    assert 0 < change <= 2 * math.sqrt(mean) * allowed + allowed**2
    assert change == pytest.approx(abs(error.mean_loss_error) * mean, rel=1e-3)
    assert abs(error.mean_loss_error) <= error.max_loss_error


@pytest.mark.slow
def test_gradients_differ_by_as_many_roundings_there_and_back(world):
    """A gradient goes through every product once forward and, for its two factors, twice backward."""
    state, clips, draws = world
    _, _, products = velocities(state, clips, draws, torch.float32)
    error = compare(state, clips, draws)
    assert UNIT / 10 < error.gradient_error < math.sqrt(3 * products) * UNIT


@pytest.mark.slow
def test_the_command_prints_the_errors(capsys):
    assert main(["--model", "tiny_16k", "--clips", "1", "--rank", "8"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny_16k, LoRA rank 8, 8 samples; ") and "of the mean, at most " in printed
    with pytest.raises(ConfigError, match="--clips 0: at least 1"):
        main(["--clips", "0"])
    with pytest.raises(ConfigError, match="--rank 9999999999: at most"):
        main(["--rank", "9999999999"])
