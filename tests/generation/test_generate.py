"""Generation for one request: its checks, its clip range and its audio."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from random_model import MODEL
from video_files import truncate_mp4
from video_files import write_tone_video as tone_video

from mmaudio.api import LoRAConfig, load_pretrained_with_lora
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.generation.generate import GenerationRequest, encode_prompts, find_clip_range, generate, generate_samples
from mmaudio.generation.sampler import compute_mel
from mmaudio.model.spec import compute_lengths, model_spec


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 1.37, 5, 8, 30])
def test_any_duration_is_generated_in_one_pass(sampler, encoders, seconds):
    calls = []
    hook = sampler.network.fused_blocks[0].register_forward_hook(
        lambda _module, _inputs, out: calls.append(out.shape[1])
    )
    sounds = generate_samples(
        sampler, encoders, GenerationRequest(None, "rain", seconds=seconds, num_steps=1, one_pass=True)
    )
    hook.remove()
    size = compute_lengths(sampler.spec.codec, seconds)
    assert calls == [size.latent_tokens]
    assert sounds.shape == (1, size.audio_samples)
    assert sounds.isfinite().all() and sounds.std() > 0


@pytest.mark.slow
def test_every_sample_is_the_audio_of_its_seed(base, sampler, encoders):
    request = GenerationRequest(base / "a.mp4", "a dog", seed=5, seconds=1.5, num_steps=3)
    together = compute_mel(generate_samples(sampler, encoders, request, 3), sampler.spec)
    for number, mel in enumerate(together):
        sound = generate(
            sampler, encoders, GenerationRequest(base / "a.mp4", "a dog", seed=5 + number, seconds=1.5, num_steps=3)
        )
        alone = compute_mel(sound[None], sampler.spec)[0]  # in mels, for Griffin-Lim's phases magnify rounding
        assert (mel - alone).abs().mean() < 5e-3
        assert (together[number - 1] - alone).abs().mean() > 0.1


def test_non_finite_audio_is_an_error(sampler, encoders):
    with pytest.raises(WeightsError, match=r"tiny_16k with guidance 1e\+30: the audio is not finite"):
        generate(sampler, encoders, GenerationRequest(None, "rain", seconds=1, num_steps=3, guidance_scale=1e30))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(base, sampler, encoders):
    request = GenerationRequest(base / "a.mp4", "a dog", seed=1, seconds=1, num_steps=2)
    for dtype in (torch.float32, torch.bfloat16):
        sampler.dtype = dtype
        first, again = (generate(sampler, encoders, request) for _ in range(2))
        assert torch.equal(first, again)
    sampler.dtype = torch.float32


@pytest.mark.slow
def test_a_clip_is_encoded_once_however_many_samples_and_steps(base, sampler, encoders):
    calls = {"image": 0, "text": 0, "sync": 0}
    modules = {"image": encoders.clip.model.visual, "text": encoders.clip.model.transformer, "sync": encoders.sync}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, module in modules.items()
    ]
    request = GenerationRequest(base / "a.mp4", "a dog", seconds=1, num_steps=3)
    generate_samples(sampler, encoders, request, 4)
    assert calls == {"image": 1, "text": 1, "sync": 1}
    texts = encode_prompts(encoders, ["a dog", "", "a cat", "a dog"])
    assert list(texts) == ["a dog", "a cat"] and calls["text"] == 3
    generate_samples(sampler, encoders, request, text_features=texts)
    assert calls["text"] == 3
    for hook in hooks:
        hook.remove()


@pytest.mark.slow
def test_prompts_and_negative_prompts_change_the_audio(base, sampler, encoders):
    requests = [
        GenerationRequest(base / "a.mp4", *prompts, seconds=1, num_steps=2)
        for prompts in (("",), ("rain",), ("rain", "wind"), ("", "wind"), ("rain", "rain"))
    ]
    sounds = [generate(sampler, encoders, request) for request in requests]
    for index, sound in enumerate(sounds):
        assert all((sound - other).abs().max() > 1e-3 for other in sounds[index + 1 :])


@pytest.mark.slow
def test_midpoint_is_closer_to_the_limit_than_euler(sampler, encoders):
    euler, midpoint, fine = (
        generate(sampler, encoders, GenerationRequest(None, "rain", seconds=1, num_steps=steps, method=method))
        for steps, method in ((4, "euler"), (4, "midpoint"), (64, "midpoint"))
    )
    assert (midpoint - fine).square().mean() < (euler - fine).square().mean()


@pytest.mark.slow
def test_the_clip_range_is_the_whole_video_by_default_and_eight_seconds_of_a_prompt(tmp_path, base):
    long, short = tone_video(tmp_path / "long.mp4", 9, fps=10), base / "a.mp4"
    assert find_clip_range(GenerationRequest(long)).seconds == 9
    assert find_clip_range(GenerationRequest(long, start=2.5)).seconds == 6.48  # whole frames at 25 per second
    assert find_clip_range(GenerationRequest(long, seconds=30)).seconds == 9
    assert find_clip_range(GenerationRequest(short)).seconds == 3
    assert find_clip_range(GenerationRequest(short, seconds=1.3)).seconds == 1.3
    assert find_clip_range(GenerationRequest(None, "rain")).seconds == 8
    assert find_clip_range(GenerationRequest(None, "rain", seconds=30)).available is None


def test_an_unusable_video_is_an_error_with_its_reason(tmp_path, base):
    tone_video(tmp_path / "short.mp4", 0.8)
    with pytest.raises(DataError, match=r"short\.mp4: 0\.80 s of picture from 0 s on; generation takes at least 1 s"):
        find_clip_range(GenerationRequest(tmp_path / "short.mp4"))
    with pytest.raises(DataError, match=r"a\.mp4: 0\.50 s of picture from 2\.5 s on"):
        find_clip_range(GenerationRequest(base / "a.mp4", start=2.5))
    truncate_mp4(base / "a.mp4", tmp_path / "cut.mp4")
    with pytest.raises(DataError, match=r"cut\.mp4: cut off"):
        find_clip_range(GenerationRequest(tmp_path / "cut.mp4"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seconds": 0.9}, "seconds=0.9: audio lasts 1 to 3600 s"),
        ({"seconds": 30.1, "one_pass": True}, "seconds=30.1: audio lasts 1 to 30 s in one pass"),
        ({"seconds": 3601.0}, "seconds=3601"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"start": -1.0}, "start=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"num_steps": 0}, "steps=0"),
        ({"method": "rk4"}, "euler, midpoint, heun, dopri5"),
        ({"guidance_scale": -2.0}, "guidance_scale=-2"),
        ({"guidance_scale": 1.0, "negative_prompt": "wind"}, "guidance_scale=1 is no guidance"),
    ],
)
def test_invalid_requests_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        GenerationRequest(None, "rain", **settings)


@pytest.mark.slow
def test_a_duration_beyond_those_of_training_is_warned_of(sampler, encoders):
    with pytest.warns(UserWarning, match="9 s in one pass: models are trained on 8 s"):
        generate(sampler, encoders, GenerationRequest(None, "rain", seconds=9, num_steps=1, one_pass=True))


@pytest.mark.slow
def test_threads_share_a_model_with_different_durations(base):
    model = load_pretrained_with_lora(MODEL, lora_config=LoRAConfig(rank=4), weights=base, device="cpu")
    durations = [1.0, 1.5, 2.0, 2.5]

    def sound(seconds):
        return model.generate(None, "rain", seconds=seconds, num_steps=3)

    expected = [sound(seconds) for seconds in durations]
    with ThreadPoolExecutor(len(durations)) as threads:
        waveforms = list(threads.map(sound, durations))
    assert all(torch.equal(*pair) for pair in zip(waveforms, expected, strict=True))
    again = copy.deepcopy(model).generate(None, "rain", seconds=1.0, num_steps=3)
    # copied weights lie at other addresses, by which products in float32 may round otherwise, and phases then differ
    other = model.generate(None, "rain", seconds=1.0, num_steps=3, seed=1)
    expected_mel, *mels = (compute_mel(sound[None], model_spec(MODEL)) for sound in (expected[0], again, other))
    same, another = ((mel - expected_mel).abs().mean() for mel in mels)
    assert same < 0.1 * another, "a lock is in no copy's way"
