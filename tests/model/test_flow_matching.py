"""Flow matching against the golden numbers and against closed forms."""

import math

import pytest
import torch
from helpers import assert_close, filled, golden, mini, mini_conditions, mini_inputs
from scipy import stats

from mmaudio.errors import ConfigError
from mmaudio.model.flow_matching import (
    condition_dropout_masks,
    integrate,
    interpolate,
    logit_normal_quantiles,
    logit_normal_times,
    sample_posterior,
    training_times,
    velocity_loss,
)
from mmaudio.model.guidance import guided_velocity


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("steps", [1, 4])
def test_guided_euler_matches_the_golden_numbers(version, steps):
    network, expected = mini(version == "v2"), golden(f"network_mini_{version}")
    with torch.no_grad():
        velocity = guided_velocity(network, mini_conditions(network), network.empty_conditions(2), 4.5)
        latent = integrate(velocity, mini_inputs()["latent"], steps)
    assert_close(latent, expected[f"euler{steps}.cfg4.5"])
    if steps == 4:
        assert_close(network.unnormalize(latent), expected["euler4.cfg4.5.unnormalized"])


@pytest.mark.slow
def test_guided_euler_under_bf16_autocast():
    network = mini()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        velocity = guided_velocity(network, mini_conditions(network), network.empty_conditions(2), 4.5)
        latent = integrate(velocity, mini_inputs()["latent"], 4)
    assert latent.dtype == torch.float32
    assert_close(latent, golden("network_mini_v1")["euler4.cfg4.5"], tolerance=5e-2)


def test_guidance_of_one_or_less_is_the_conditional_velocity():
    network, inputs = mini(), mini_inputs()
    with torch.no_grad():
        conditions, empty = mini_conditions(network), network.empty_conditions(2)
        plain = network.predict_velocity(inputs["latent"], torch.tensor(0.3), conditions)
        for strength in (0.0, 1.0):
            assert torch.equal(
                guided_velocity(network, conditions, empty, strength)(inputs["latent"], torch.tensor(0.3)), plain
            )
        near_one = guided_velocity(network, conditions, empty, 1.0 + 1e-6)(inputs["latent"], torch.tensor(0.3))
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


def test_a_share_of_the_training_times_lies_near_the_noise():
    times = {early: training_times(40_000, early, torch.Generator().manual_seed(0)) for early in (0.0, 0.3, 1.0)}
    assert torch.equal(times[0.0], logit_normal_times(40_000, torch.Generator().manual_seed(0)))
    assert torch.equal(times[0.3], training_times(40_000, 0.3, torch.Generator().manual_seed(0)))
    assert all(each.min() >= 0 and each.max() < 1 and each.dtype == torch.float32 for each in times.values())
    for limit in (0.01, 0.1, 0.5, 0.9):  # P(u^3 < x) is the cube root of x
        cubes, logit_normal = limit ** (1 / 3), float(stats.norm.cdf(math.log(limit / (1 - limit))))
        for early, each in times.items():
            expected = early * cubes + (1 - early) * logit_normal
            assert float((each < limit).float().mean()) == pytest.approx(expected, abs=0.01), (early, limit)


def test_quantiles_stand_for_the_logit_normal_distribution():
    quantiles = logit_normal_quantiles(64)
    random_times = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).sigmoid()
    assert torch.allclose(quantiles + quantiles.flip(0), torch.ones(64), atol=1e-6)
    for function in (torch.square, torch.sqrt):
        assert abs(float(function(quantiles).mean() - function(random_times).mean())) < 3e-3


@pytest.mark.parametrize("n", [8, 16])
def test_quantiles_are_those_of_scipy_rounded_to_float32(n):
    expected = [1 / (1 + math.exp(-stats.norm.ppf((i + 0.5) / n))) for i in range(n)]
    assert torch.equal(logit_normal_quantiles(n), torch.tensor(expected, dtype=torch.float32))


def test_video_and_text_are_dropped_independently():
    no_video, no_text = condition_dropout_masks(4000, 0.3, 0.5, torch.Generator().manual_seed(1))
    assert no_video.shape == no_text.shape == (4000,) and no_video.dtype == no_text.dtype == torch.bool
    assert no_video.float().mean() == pytest.approx(0.3, abs=0.03)
    assert no_text.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (no_video & no_text).float().mean() == pytest.approx(0.15, abs=0.03)


def test_conditions_are_dropped_never_and_always():
    no_video, no_text = condition_dropout_masks(100, 0.0, 1.0, torch.Generator())
    assert not no_video.any() and no_text.all()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_converge_with_their_order(method, order):
    """dx/dt = x t has the solution x0 exp(t^2 / 2)."""
    x0 = torch.ones(1, 1, 1, dtype=torch.float64)
    exact = torch.tensor(0.5, dtype=torch.float64).exp()
    errors = [abs(integrate(lambda x, t: x * t.double(), x0, steps, method) - exact).item() for steps in (16, 32)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_steps_pass_through_progress_in_order():
    shown_steps = []
    integrate(
        lambda x, t: x, torch.zeros(1, 1, 1), 3, progress=lambda steps: (shown_steps.append(s) or s for s in steps)
    )
    assert shown_steps == [0, 1, 2]


def test_guidance_does_not_magnify_the_rounding_of_bf16():
    """The two branches come in bf16; combining them in bf16 would add an error of its own."""
    network, latent, t = mini(), mini_inputs()["latent"], torch.tensor(0.3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conditions, empty = mini_conditions(network), network.empty_conditions(2)
        got = guided_velocity(network, conditions, empty, 4.5)(latent, t)
        v_cond, v_uncond = network.predict_velocity(torch.cat([latent, latent]), t, conditions.cat(empty)).chunk(2)
    assert got.dtype == torch.float32
    assert_close(got, 4.5 * v_cond.double() - 3.5 * v_uncond.double(), tolerance=1e-6)


def test_invalid_solver_settings_are_errors():
    with pytest.raises(ConfigError, match="steps=0"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), 0)
    with pytest.raises(ConfigError, match="midpoint"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), 1, "rk4")
