"""One wish: what it may ask for, which part of a video it means, and the sounds that come of it."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from media import cut_off, random_encoders
from media import make_video as tone_video
from random_base import MODEL, make_base

from mmaudio.api import LoRAConfig, load_pretrained_with_lora
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import SEEING, load_encoders
from mmaudio.generation.generate import Wish, encode_prompts, generate, generate_samples, span
from mmaudio.generation.sampler import load_sampler, mel_of
from mmaudio.model.spec import lengths


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    random_encoders(folder)
    make_base(folder, encoders=False)
    tone_video(folder / "a.mp4", 3)
    return folder


@pytest.fixture(scope="module")
def sampler(base):
    return load_sampler(MODEL, base)


@pytest.fixture(scope="module")
def encoders(base):
    return load_encoders(MODEL, base, parts=SEEING)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 1.37, 5, 8, 30])
def test_any_duration_is_one_pass_of_its_own_length(sampler, encoders, seconds):
    calls = []
    hook = sampler.network.fused_blocks[0].register_forward_hook(
        lambda _module, _inputs, out: calls.append(out.shape[1])
    )
    sounds = generate_samples(sampler, encoders, Wish(None, "rain", seconds=seconds, steps=1))
    hook.remove()
    size = lengths(sampler.spec.codec, seconds)
    assert calls == [size.latent]
    assert sounds.shape == (1, size.samples)
    assert sounds.isfinite().all() and sounds.std() > 0


def test_samples_are_the_sounds_of_their_seeds(base, sampler, encoders):
    wish = Wish(base / "a.mp4", "a dog", seed=5, seconds=1.5, steps=3)
    together = mel_of(generate_samples(sampler, encoders, wish, 3), sampler.spec)
    for number, mel in enumerate(together):
        sound = generate(sampler, encoders, Wish(base / "a.mp4", "a dog", seed=5 + number, seconds=1.5, steps=3))
        alone = mel_of(sound[None], sampler.spec)[0]  # in mels, for Griffin-Lim's phases magnify rounding
        assert (mel - alone).abs().mean() < 5e-3
        assert (together[number - 1] - alone).abs().mean() > 0.1


def test_what_is_not_finite_is_an_error(sampler, encoders):
    with pytest.raises(WeightsError, match=r"tiny_16k with guidance 1e\+30: the sound is not finite"):
        generate(sampler, encoders, Wish(None, "rain", seconds=1, steps=3, guidance=1e30))


def test_the_same_seed_is_the_same_sound_to_the_bit(base, sampler, encoders):
    wish = Wish(base / "a.mp4", "a dog", seed=1, seconds=1, steps=2)
    for dtype in (torch.float32, torch.bfloat16):
        sampler.dtype = dtype
        first, again = (generate(sampler, encoders, wish) for _ in range(2))
        assert torch.equal(first, again)
    sampler.dtype = torch.float32


def test_a_clip_is_encoded_once_however_many_samples_and_steps(base, sampler, encoders):
    calls = {"image": 0, "text": 0, "sync": 0}
    parts = {"image": encoders.clip.model.visual, "text": encoders.clip.model.transformer, "sync": encoders.sync}
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, part in parts.items()
    ]
    wish = Wish(base / "a.mp4", "a dog", seconds=1, steps=3)
    generate_samples(sampler, encoders, wish, 4)
    assert calls == {"image": 1, "text": 1, "sync": 1}
    texts = encode_prompts(encoders, ["a dog", "", "a cat", "a dog"])
    assert list(texts) == ["a dog", "a cat"] and calls["text"] == 3
    generate_samples(sampler, encoders, wish, texts=texts)
    assert calls["text"] == 3
    for hook in hooks:
        hook.remove()


def test_prompts_and_their_opposites_are_heard(base, sampler, encoders):
    wishes = [
        Wish(base / "a.mp4", *prompts, seconds=1, steps=2)
        for prompts in (("",), ("rain",), ("rain", "wind"), ("", "wind"), ("rain", "rain"))
    ]
    sounds = [generate(sampler, encoders, wish) for wish in wishes]
    for index, sound in enumerate(sounds):
        assert all((sound - other).abs().max() > 1e-3 for other in sounds[index + 1 :])


@pytest.mark.slow
def test_the_solver_is_part_of_the_wish(sampler, encoders):
    euler, midpoint, fine = (
        generate(sampler, encoders, Wish(None, "rain", seconds=1, steps=steps, method=method))
        for steps, method in ((4, "euler"), (4, "midpoint"), (64, "midpoint"))
    )
    assert (midpoint - fine).square().mean() < (euler - fine).square().mean()


def test_the_span_ends_with_the_video_and_is_eight_seconds_where_nothing_is_said(tmp_path, base):
    long, short = tone_video(tmp_path / "long.mp4", 9, fps=10), base / "a.mp4"
    assert span(Wish(long)).seconds == 8
    assert span(Wish(long, start=2.5)).seconds == 6.48  # whole frames at 25 per second
    assert span(Wish(long, seconds=30)).seconds == 9
    assert span(Wish(short)).seconds == 3
    assert span(Wish(short, seconds=1.3)).seconds == 1.3
    assert span(Wish(None, "rain")).seconds == 8
    assert span(Wish(None, "rain", seconds=30)).left is None


def test_a_video_that_cannot_be_used_says_why(tmp_path, base):
    tone_video(tmp_path / "short.mp4", 0.8)
    with pytest.raises(DataError, match=r"short\.mp4: 0\.80 s of picture from 0 s on; a sound takes at least 1 s"):
        span(Wish(tmp_path / "short.mp4"))
    with pytest.raises(DataError, match=r"a\.mp4: 0\.50 s of picture from 2\.5 s on"):
        span(Wish(base / "a.mp4", start=2.5))
    cut_off(base / "a.mp4", tmp_path / "cut.mp4")
    with pytest.raises(DataError, match=r"cut\.mp4: cut off"):
        span(Wish(tmp_path / "cut.mp4"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seconds": 0.9}, "seconds=0.9: a sound lasts 1 to 30 s"),
        ({"seconds": 30.1}, "seconds=30.1"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"start": -1.0}, "start=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"steps": 0}, "steps=0"),
        ({"method": "heun"}, "euler, midpoint"),
        ({"guidance": -2.0}, "guidance=-2"),
        ({"guidance": 1.0, "negative_prompt": "wind"}, "guidance=1 is none"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Wish(None, "rain", **settings)


def test_a_duration_beyond_trainings_is_warned_of(sampler, encoders):
    with pytest.warns(UserWarning, match="9 s: models are trained on 8 s"):
        generate(sampler, encoders, Wish(None, "rain", seconds=9, steps=1))


def test_threads_share_a_model_whatever_durations_they_want(base):
    model = load_pretrained_with_lora(MODEL, lora_config=LoRAConfig(rank=4), weights=base, device="cpu")
    durations = [1.0, 1.5, 2.0, 2.5]

    def sound(seconds):
        return model.generate(None, "rain", seconds=seconds, steps=3)

    expected = [sound(seconds) for seconds in durations]
    with ThreadPoolExecutor(len(durations)) as threads:
        found = list(threads.map(sound, durations))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    again = copy.deepcopy(model).generate(None, "rain", seconds=1.0, steps=3)
    assert torch.equal(again, expected[0]), "a lock is in no copy's way"
