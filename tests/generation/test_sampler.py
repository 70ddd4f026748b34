"""The sampler on a network with random weights, and the sound files that it ends in."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from helpers import relative_error
from random_model import MODEL, write_random_weights

from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora.adapter import LoRAConfig, adapted_network, add_lora
from mmaudio.media.audio_file import write_audio
from mmaudio.model.flow_matching import integrate
from mmaudio.model.guidance import guided_velocity
from mmaudio.model.networks import build_network
from mmaudio.model.weight_dtype import weights_cast_to

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_random_weights(folder, encoders=False)
    loaded = load_sampler(MODEL, folder)
    loaded.network.set_duration(1.0)
    return loaded


@pytest.fixture(scope="module")
def features(sampler):
    spec, size = sampler.network.spec, sampler.network.lengths
    shapes = ((size.clip_tokens, spec.clip_dim), (size.sync_tokens, spec.sync_dim), (spec.text_tokens, spec.text_dim))
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *shape, generator=generator) for shape in shapes]


def test_noise_depends_only_on_its_seed(sampler):
    together = sampler.draw_noise([5, 6, 7])
    torch.testing.assert_close(sampler.draw_noise([6]), together[1:2], rtol=0, atol=0)
    assert abs(together.mean()) < 0.1 and abs(together.std() - 1) < 0.1


@pytest.mark.slow
def test_a_batch_equals_its_clips_one_by_one(sampler, features):
    noise = sampler.draw_noise([1, 2, 3])
    together = sampler.sample_latents(*features, noise, num_steps=3)
    alone = sampler.sample_latents(*(feature[1:2] for feature in features), noise[1:2], num_steps=3)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_batch_of_noise_equals_its_samples_one_by_one(sampler, features, dtype, tolerance):
    one_clip = [feature[:1] for feature in features]
    sampler.dtype = dtype
    try:
        together = sampler.sample_latents(*one_clip, sampler.draw_noise([1, 2, 3]), num_steps=3)
        alone = torch.cat(
            [sampler.sample_latents(*one_clip, sampler.draw_noise([seed]), num_steps=3) for seed in (1, 2, 3)]
        )
    finally:
        sampler.dtype = torch.float32
    assert relative_error(together, alone) < tolerance
    assert relative_error(together[1:], together[:-1]) > 0.1


def counted(network):
    """The batch size of every call of every module, by name, as the network runs; and what removes the hooks."""
    calls = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, inputs, _out, name=name: calls.setdefault(name, []).append(len(inputs[0]))
        )
        for name, module in network.named_modules()
    ]
    return calls, lambda: [hook.remove() for hook in hooks]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "velocities"), [("euler", 5), ("midpoint", 10)])
def test_conditions_are_computed_once_per_clip_and_both_branches_in_one_batch(sampler, features, method, velocities):
    calls, remove = counted(sampler.network)
    sampler.sample_latents(
        *(feature[:1] for feature in features), sampler.draw_noise([1, 2, 3]), num_steps=5, method=method
    )
    remove()
    once = ("clip_input_proj", "sync_input_proj", "text_input_proj", "clip_cond_proj", "text_cond_proj")
    for name in once:
        assert calls[name] == [1, 1], name  # the clip, and no clip
    assert calls["audio_input_proj"] == [3] * velocities  # the latents alone, the same for both branches
    for name in ("joint_blocks.0.latent_block.linear1", "fused_blocks.0", "final_layer"):
        assert calls[name] == [6] * velocities, name


def test_without_guidance_there_is_no_second_branch(sampler, features):
    calls, remove = counted(sampler.network)
    sampler.sample_latents(*features, sampler.draw_noise([1, 2, 3]), num_steps=2, guidance_scale=1.0)
    remove()
    assert calls["clip_input_proj"] == [3] and calls["fused_blocks.0"] == [3, 3]


@pytest.mark.slow
def test_weights_are_cast_once_and_restored(sampler, features):
    network, noise = sampler.network, sampler.draw_noise([1, 2, 3])
    before = {key: (value, value.clone()) for key, value in network.state_dict().items()}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        conditions = network.preprocess_conditions(*features)
        velocity = guided_velocity(network, conditions, network.empty_conditions(3), 4.5)
        expected = network.unnormalize(integrate(velocity, noise, 2))
    with weights_cast_to(network, torch.bfloat16):
        types = {key: value.dtype for key, value in network.state_dict().items()}
        assert types["fused_blocks.0.attn.qkv.weight"] == types["final_layer.conv.bias"] == torch.bfloat16
        assert types["fused_blocks.0.attn.q_norm.weight"] == types["latent_std"] == torch.float32
        assert {key: value.shape for key, value in network.state_dict().items()} == {
            key: value.shape for key, (value, _) in before.items()
        }
    sampler.dtype = torch.bfloat16
    got = sampler.sample_latents(*features, noise, 2, 4.5)
    sampler.dtype = torch.float32
    assert relative_error(got, expected) < 2e-2  # of products that are summed in another order
    after = network.state_dict()
    assert all(
        after[key].data_ptr() == was.data_ptr() and torch.equal(was, copy) for key, (was, copy) in before.items()
    )


@pytest.mark.slow
def test_an_adapters_weights_are_cast_too(sampler, features):
    adapted = add_lora(build_network(MODEL), LoRAConfig(rank=2), torch.Generator().manual_seed(0))
    for parameter in adapted.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    network = adapted_network(adapted).eval()
    network.set_duration(1.0)
    noise = sampler.draw_noise([1, 2, 3])
    full, half = (replace(sampler, network=network, dtype=d).sample_latents(*features, noise, 2) for d in DTYPES)
    assert 0 < relative_error(half, full) < 5e-2
    with weights_cast_to(network, torch.bfloat16):
        kinds = {type(module) for name, module in network.named_modules() if "lora_A.default" in name}
        assert {module.weight.dtype for module in network.modules() if type(module) in kinds} == {torch.bfloat16}


def test_a_network_that_sampled_in_bfloat16_trains_on(sampler, features):
    sampler.dtype = torch.bfloat16
    sampler.sample_latents(*features, sampler.draw_noise([1, 2, 3]), 1)
    sampler.dtype = torch.float32
    sampler.network.requires_grad_(True)
    sampler.network(sampler.draw_noise([1, 2, 3]), *features, torch.zeros(3)).square().mean().backward()
    gradient = sampler.network.fused_blocks[0].ffn.w1.weight.grad
    sampler.network.zero_grad()
    sampler.network.requires_grad_(False)
    assert gradient.dtype == torch.float32 and gradient.abs().max() > 0


def test_steps_pass_through_progress(sampler, features):
    steps_passed = []

    def watch(steps):
        for step in steps:
            steps_passed.append(step)
            yield step

    sampler.sample_latents(*features, sampler.draw_noise([1, 2, 3]), 3, progress=watch)
    assert steps_passed == [0, 1, 2]


def test_one_step_is_noise_plus_guided_velocity(sampler, features):
    network, noise = sampler.network, sampler.draw_noise([1, 2, 3])
    t = torch.zeros(3)
    with torch.inference_mode():
        v_cond = network(noise, *features, t)
        v_uncond = network(noise, network.empty_clip(3), network.empty_sync(3), network.empty_text(3), t)
    expected = network.unnormalize(noise + 2.5 * v_cond - 1.5 * v_uncond)
    torch.testing.assert_close(sampler.sample_latents(*features, noise, 1, 2.5), expected, rtol=1e-4, atol=1e-4)
    plain = network.unnormalize(noise + v_cond)
    torch.testing.assert_close(sampler.sample_latents(*features, noise, 1, 1.0), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_negative_prompt_replaces_the_empty_text(sampler, features):
    noise = sampler.draw_noise([1, 2, 3])
    free = sampler.sample_latents(*features, noise, 2)
    same = sampler.sample_latents(*features, noise, 2, negative_text_f=sampler.network.empty_text(1))
    other = sampler.sample_latents(*features, noise, 2, negative_text_f=features[2][:1])
    torch.testing.assert_close(free, same, rtol=1e-4, atol=1e-4)
    assert (free - other).abs().max() > 1e-3


@pytest.mark.slow
def test_bfloat16_stays_near_float32(sampler, features):
    noise = sampler.draw_noise([1, 2, 3])
    full = sampler.sample_latents(*features, noise, 4)
    sampler.dtype = torch.bfloat16
    half = sampler.sample_latents(*features, noise, 4)
    sampler.dtype = torch.float32
    assert half.dtype == torch.float32
    assert 0 < (half - full).square().mean().sqrt() / full.std() < 0.05


def test_latents_decode_to_the_right_length(sampler):
    waveforms = sampler.decode(sampler.draw_noise([0, 1]))
    assert waveforms.shape == (2, sampler.network.lengths.audio_samples)
    assert waveforms.isfinite().all() and waveforms.abs().max() <= 1


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_a_sound_file_holds_the_samples(tmp_path, suffix):
    samples = np.random.default_rng(0).uniform(-1, 1, 16_001).astype(np.float32)
    samples[0] = 1.7
    path = tmp_path / f"sound{suffix}"
    write_audio(path, samples, 16_000)
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.sample_rate == 16_000
        read = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert read.shape == samples.shape
    assert np.abs(read / 32_767 - samples.clip(-1, 1)).max() < 2e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\.flac or \.wav"):
        write_audio(tmp_path / "sound.mp3", np.zeros(4), 16_000)


def test_tags_are_written_and_a_failed_write_is_an_error(tmp_path):
    for suffix in (".flac", ".wav"):
        write_audio(tmp_path / f"a{suffix}", np.zeros(100), 16_000, {"comment": "seed 3"})
        with av.open(str(tmp_path / f"a{suffix}")) as container:
            assert container.metadata["comment"] == "seed 3"
    with pytest.raises(MMAudioError, match=r"a\.flac/b\.flac: cannot be written"):
        write_audio(tmp_path / "a.flac" / "b.flac", np.zeros(100), 16_000)
