"""The sampler on a network with random weights, and the sound files that it ends in."""

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmaudio.errors import ConfigError
from mmaudio.features.vae import build_vae
from mmaudio.generation.sampler import load_sampler
from mmaudio.generation.sound import write_sound
from mmaudio.model.networks import build_network
from mmaudio.model.spec import model_spec

MODEL = "tiny_16k"


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(0)
    network, vae = build_network(MODEL), build_vae(model_spec(MODEL).codec.name)
    for parameter in network.parameters():  # a fresh network's velocity is zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    network.latent_mean += 0.5
    vae.data_mean.fill_(-3.0)
    save_file(network.state_dict(), folder / "network.safetensors")
    save_file(vae.state_dict(), folder / "vae.safetensors")
    loaded = load_sampler(MODEL, folder)
    loaded.network.set_duration(1.0)
    return loaded


@pytest.fixture(scope="module")
def features(sampler):
    spec, size = sampler.network.spec, sampler.network.lengths
    shapes = ((size.clip, spec.clip_dim), (size.sync, spec.sync_dim), (spec.text_tokens, spec.text_dim))
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *shape, generator=generator) for shape in shapes]


def test_noise_depends_on_its_own_seed_alone(sampler):
    together = sampler.noise([5, 6, 7])
    torch.testing.assert_close(sampler.noise([6]), together[1:2], rtol=0, atol=0)
    assert abs(together.mean()) < 0.1 and abs(together.std() - 1) < 0.1


def test_a_batch_is_its_clips_one_by_one(sampler, features):
    noise = sampler.noise([1, 2, 3])
    together = sampler.latents(*features, noise, steps=3)
    alone = sampler.latents(*(part[1:2] for part in features), noise[1:2], steps=3)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_one_step_is_noise_plus_guided_velocity(sampler, features):
    network, noise = sampler.network, sampler.noise([1, 2, 3])
    t = torch.zeros(3)
    with torch.inference_mode():
        given = network(noise, *features, t)
        free = network(noise, network.empty_clip(3), network.empty_sync(3), network.empty_text(3), t)
    expected = network.unnormalize(noise + 2.5 * given - 1.5 * free)
    torch.testing.assert_close(sampler.latents(*features, noise, 1, 2.5), expected, rtol=1e-4, atol=1e-4)
    plain = network.unnormalize(noise + given)
    torch.testing.assert_close(sampler.latents(*features, noise, 1, 1.0), plain, rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_takes_the_place_of_no_text(sampler, features):
    noise = sampler.noise([1, 2, 3])
    free = sampler.latents(*features, noise, 2)
    same = sampler.latents(*features, noise, 2, negative_text=sampler.network.empty_text(1))
    other = sampler.latents(*features, noise, 2, negative_text=features[2][:1])
    torch.testing.assert_close(free, same, rtol=1e-4, atol=1e-4)
    assert (free - other).abs().max() > 1e-3


def test_bfloat16_stays_near_float32(sampler, features):
    noise = sampler.noise([1, 2, 3])
    full = sampler.latents(*features, noise, 4)
    sampler.dtype = torch.bfloat16
    half = sampler.latents(*features, noise, 4)
    sampler.dtype = torch.float32
    assert half.dtype == torch.float32
    assert 0 < (half - full).square().mean().sqrt() / full.std() < 0.05


def test_latents_become_sound_of_the_right_length(sampler):
    waveforms = sampler.decode(sampler.noise([0, 1]))
    assert waveforms.shape == (2, sampler.network.lengths.samples)
    assert waveforms.isfinite().all() and waveforms.abs().max() <= 1


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_a_sound_file_holds_the_samples(tmp_path, suffix):
    samples = np.random.default_rng(0).uniform(-1, 1, 16_001).astype(np.float32)
    samples[0] = 1.7
    path = tmp_path / f"sound{suffix}"
    write_sound(path, samples, 16_000)
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.sample_rate == 16_000
        read = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert read.shape == samples.shape
    assert np.abs(read / 32_767 - samples.clip(-1, 1)).max() < 2e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\.flac or \.wav"):
        write_sound(tmp_path / "sound.mp3", np.zeros(4), 16_000)
