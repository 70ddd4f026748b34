"""The codec's VAE: the golden numbers, and what holds for its weights and distributions."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import GOLDEN, assert_close, fill, filled, golden, manifest

from mmaudio.errors import WeightsError
from mmaudio.features.vae import Posterior, build_vae, mp_silu, mp_sum

MODES = ("16k", "44k")


@pytest.mark.parametrize("mode", MODES)
def test_keys_are_those_of_the_released_file(mode: str):
    with torch.device("meta"):
        vae = build_vae(mode)
        generator_only = build_vae(mode, drop_encoder=True)
    expected = {key: shape for key, (_, shape) in manifest(f"vae_{mode}").items()}
    assert {key: list(value.shape) for key, value in vae.state_dict().items()} == expected
    assert set(generator_only.state_dict()) == {key for key in expected if not key.startswith("encoder.")}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_outputs_match_the_golden_numbers(mode: str):
    statistics = json.loads((GOLDEN / "vae_data_stats.json").read_text())[mode]
    state = {
        key: torch.as_tensor(statistics[key[5:]])[None, :, None]
        if key.startswith("data_")
        else torch.as_tensor(fill.fill_values(key, tuple(shape)), dtype=torch.float32)
        for key, (_, shape) in manifest(f"vae_{mode}").items()
    }
    with torch.device("meta"):
        vae = build_vae(mode)
    vae.load_released(state)
    expected = golden(f"codec_{mode}")
    with torch.no_grad():
        posterior = vae.encode(expected["mel"])
        decoded = vae.decode(filled(f"input/z{mode}", *posterior.mean.shape))
    assert_close(posterior.mean, expected["posterior.mean"])
    assert_close(posterior.std, expected["posterior.std"])
    assert_close(decoded, expected["decoded_mel"])


def test_weights_are_normalised():
    vae = build_vae("tiny_16k")
    mel = torch.randn(2, 80, 32)
    with torch.no_grad():
        before = vae.encode(mel).mean
        for name, value in vae.named_parameters():
            if name.endswith("weight"):
                value.mul_(1 + torch.rand(len(value), 1, 1))
        assert_close(vae.encode(mel).mean, before, 1e-3)


def test_magnitudes_are_preserved():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 100_000, generator=generator)
    assert float(mp_silu(a).square().mean()) == pytest.approx(1, abs=0.02)
    assert float(mp_sum(a, b).square().mean()) == pytest.approx(1, abs=0.02)
    vae = build_vae("tiny_16k")
    with torch.no_grad():
        assert 0.3 < float(vae.decode(torch.randn(2, 20, 64, generator=generator)).std()) < 2


def test_normalisation_is_inverted():
    vae = build_vae("tiny_16k")
    latent = torch.randn(1, 20, 16)
    with torch.no_grad():
        plain, moments = vae.decode(latent), vae.encode(torch.ones(1, 80, 32)).mean
        vae.data_mean.fill_(-2.0)
        vae.data_std.fill_(0.5)
        assert_close(vae.decode(latent), plain * 0.5 - 2.0, 1e-6)
        assert_close(vae.encode(torch.full((1, 80, 32), -1.5)).mean, moments, 1e-6)


def test_the_posterior_has_mean_and_std():
    mean, std = torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.1
    posterior = Posterior(mean, std)
    normal, standard = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    assert_close(posterior.kl(), torch.distributions.kl_divergence(normal, standard), 1e-5)
    assert torch.equal(posterior.sample(torch.zeros(2, 3, 4)), mean)
    assert_close(posterior.sample(torch.ones(2, 3, 4)) - mean, std, 1e-5)


def test_training_under_bfloat16_reaches_every_weight():
    vae = build_vae("tiny_16k")
    mel = torch.randn(2, 80, 32)
    with torch.no_grad():
        expected = vae.encode(mel).mean
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(mel)
        decoded = vae.decode(posterior.sample(torch.randn_like(posterior.mean)))
    assert (posterior.std.dtype, decoded.dtype) == (torch.float32, torch.float32)
    assert_close(posterior.mean.detach(), expected, 5e-2)
    ((decoded - mel).square().mean() + posterior.kl().mean()).backward()
    assert all(value.grad is not None and value.grad.any() for value in vae.parameters())


def test_a_decoder_loads_the_whole_file():
    whole, generator_only = build_vae("tiny_16k"), build_vae("tiny_16k", drop_encoder=True)
    generator_only.load_released(whole.state_dict())
    latent = torch.randn(1, 20, 8)
    with torch.no_grad():
        assert torch.equal(generator_only.decode(latent), whole.decode(latent))
    with pytest.raises(WeightsError, match="drop_encoder"):
        generator_only.encode(torch.zeros(1, 80, 16))
    with pytest.raises(WeightsError, match=r"missing \(.*encoder\.learnable_gain"):
        whole.load_released(generator_only.state_dict())
