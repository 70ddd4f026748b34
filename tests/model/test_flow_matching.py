"""Flow matching against the golden numbers and against closed forms."""

import pytest
import torch
from conftest import assert_close, filled, golden
from test_networks import mini, mini_inputs

from mmaudio.errors import ConfigError
from mmaudio.model.flow_matching import (
    drop_conditions,
    guided,
    integrate,
    interpolate,
    logit_normal_times,
    sample_posterior,
    velocity_loss,
)


def mini_conditions(network):
    inputs = mini_inputs()
    return network.preprocess_conditions(inputs["clip_f"], inputs["sync_f"], inputs["text_f"])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("steps", [1, 4])
def test_guided_euler_matches_the_golden_numbers(version, steps):
    network, expected = mini(version == "v2"), golden(f"network_mini_{version}")
    with torch.no_grad():
        velocity = guided(network, mini_conditions(network), network.empty_conditions(2), 4.5)
        latent = integrate(velocity, mini_inputs()["latent"], steps)
    assert_close(latent, expected[f"euler{steps}.cfg4.5"])
    if steps == 4:
        assert_close(network.unnormalize(latent), expected["euler4.cfg4.5.unnormalized"])


def test_guided_euler_under_bf16_autocast():
    network = mini()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        velocity = guided(network, mini_conditions(network), network.empty_conditions(2), 4.5)
        latent = integrate(velocity, mini_inputs()["latent"], 4)
    assert latent.dtype == torch.float32
    assert_close(latent, golden("network_mini_v1")["euler4.cfg4.5"], tolerance=5e-2)


def test_guidance_of_one_or_less_is_the_conditional_velocity():
    network, inputs = mini(), mini_inputs()
    with torch.no_grad():
        conditions, empty = mini_conditions(network), network.empty_conditions(2)
        plain = network.predict_velocity(inputs["latent"], torch.tensor(0.3), conditions)
        for strength in (0.0, 1.0):
            assert torch.equal(guided(network, conditions, empty, strength)(inputs["latent"], torch.tensor(0.3)), plain)
        near_one = guided(network, conditions, empty, 1.0 + 1e-6)(inputs["latent"], torch.tensor(0.3))
    assert_close(near_one, plain)


def test_training_targets_match_the_golden_numbers():
    """`lora_mini_v1` holds the loss of the adapted network; its x1 and xt do not depend on the adapter."""
    expected, network = golden("lora_mini_v1"), mini()
    mean, std, eps, noise = (filled(f"train/{name}", 2, 30, 8) for name in ("mean", "std", "eps", "x0"))
    data = network.normalize(sample_posterior(mean, 0.1 * std.abs(), eps))
    assert_close(data, expected["train.x1"])
    assert_close(interpolate(noise, data, filled("train/t", 2).sigmoid()), expected["train.xt"])


def test_the_path_runs_from_noise_to_data():
    noise, data = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    assert torch.equal(interpolate(noise, data, torch.zeros(2)), noise)
    assert_close(interpolate(noise, data, torch.ones(2)), data, tolerance=1e-6)


def test_the_loss_is_a_value_per_sample():
    network, inputs = mini(), mini_inputs()
    noise, t = filled("train/x0", 2, 30, 8), torch.tensor([0.2, 0.8])
    with torch.no_grad():
        conditions = mini_conditions(network)
        losses = velocity_loss(network, inputs["latent"], conditions, t, noise)
        x = (1 - t)[:, None, None] * noise + t[:, None, None] * inputs["latent"]
        error = network.predict_velocity(x, t, conditions) - (inputs["latent"] - noise)
    assert losses.shape == (2,)
    assert_close(losses, (error**2).flatten(1).mean(1))


def test_times_are_logit_normal_and_follow_the_generator():
    times = logit_normal_times(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(times, logit_normal_times(20_000, torch.Generator().manual_seed(0)))
    assert times.min() > 0 and times.max() < 1
    logits = times.logit()
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03


def test_video_is_dropped_together_and_text_independently():
    network, inputs = mini(), mini_inputs()
    clip, sync, text = (inputs[name][:1].expand(400, -1, -1) for name in ("clip_f", "sync_f", "text_f"))
    with torch.no_grad():
        dropped = drop_conditions(network, clip, sync, text, torch.Generator().manual_seed(1), p=0.3)
    empty = (network.empty_clip(1), network.empty_sync(1), network.empty_text(1))
    is_empty = [(got == row).flatten(1).all(1) for got, row in zip(dropped, empty, strict=True)]
    is_kept = [(got == was).flatten(1).all(1) for got, was in zip(dropped, (clip, sync, text), strict=True)]
    assert all(torch.equal(a, ~b) for a, b in zip(is_empty, is_kept, strict=True))
    assert torch.equal(is_empty[0], is_empty[1])
    assert 0.2 < is_empty[0].float().mean() < 0.4 and 0.2 < is_empty[2].float().mean() < 0.4
    assert 0.04 < (is_empty[0] & is_empty[2]).float().mean() < 0.15  # independent: 0.09


def test_dropping_never_and_always():
    network, inputs = mini(), mini_inputs()
    features = (inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
    kept = drop_conditions(network, *features, torch.Generator(), p=0.0)
    assert all(torch.equal(a, b) for a, b in zip(kept, features, strict=True))
    clip, _, text = drop_conditions(network, *features, torch.Generator(), p=0.0, p_text=1.0)
    assert torch.equal(clip, features[0]) and torch.equal(text, network.empty_text(2))
    clip, _, _ = drop_conditions(network, *features, torch.Generator(), p=1.0)
    clip.sum().backward()
    assert torch.equal(network.empty_clip_feat.grad, torch.full_like(network.empty_clip_feat, 2 * 16))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2)])
def test_solvers_converge_with_their_order(method, order):
    """dx/dt = x t has the solution x0 exp(t^2 / 2)."""
    x0 = torch.ones(1, 1, 1, dtype=torch.float64)
    exact = torch.tensor(0.5, dtype=torch.float64).exp()
    errors = [abs(integrate(lambda x, t: x * t.double(), x0, steps, method) - exact).item() for steps in (16, 32)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_steps_pass_through_progress_in_order():
    seen = []
    integrate(lambda x, t: x, torch.zeros(1, 1, 1), 3, progress=lambda steps: (seen.append(s) or s for s in steps))
    assert seen == [0, 1, 2]


def test_guidance_does_not_magnify_the_rounding_of_bf16():
    """The two branches come in bf16; combining them in bf16 would add an error of its own."""
    network, latent, t = mini(), mini_inputs()["latent"], torch.tensor(0.3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conditions, empty = mini_conditions(network), network.empty_conditions(2)
        got = guided(network, conditions, empty, 4.5)(latent, t)
        given, free = network.predict_velocity(torch.cat([latent, latent]), t, conditions.cat(empty)).chunk(2)
    assert got.dtype == torch.float32
    assert_close(got, 4.5 * given.double() - 3.5 * free.double(), tolerance=1e-6)


def test_senseless_solver_settings_are_errors():
    with pytest.raises(ConfigError, match="steps=0"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), 0)
    with pytest.raises(ConfigError, match="midpoint"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), 1, "heun")
