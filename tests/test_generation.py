"""The sampler on a network with random weights, and the sound files that it ends in."""

import av
import numpy as np
import pytest
import torch
from random_base import MODEL, make_base, make_video

from mmaudio.adapters import AdapterFile, write_adapter
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.__main__ import main
from mmaudio.generation.sampler import load_sampler
from mmaudio.generation.sound import write_sound
from mmaudio.model.lora import LoRAConfig, adapter_state, add_lora, expand_targets
from mmaudio.model.networks import build_network


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    make_base(folder, encoders=False)
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


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    make_video(folder / "clip.mp4", 0, 1.5)
    return folder


def generated(base, output, *more):
    arguments = ["--model", MODEL, "--weights", str(base), "--steps", "2", "--device", "cpu", "--output", str(output)]
    assert main([*arguments, *more]) == 0


def seconds_of(path, kind):
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return float(stream.duration * stream.time_base)


def test_a_video_gets_its_sound(base, tmp_path, capsys):
    video = base / "clip.mp4"
    generated(base, tmp_path / "out", "--video", str(video), "--prompt", "a ball bounces", "--negative_prompt", "hum")
    sound, film = tmp_path / "out" / "clip.flac", tmp_path / "out" / "clip.mp4"
    assert capsys.readouterr().out.split() == [str(sound), str(film)]
    assert seconds_of(sound, "audio") == pytest.approx(1.5, abs=0.04)
    assert seconds_of(film, "video") == pytest.approx(1.5, abs=0.04)
    assert seconds_of(film, "audio") == pytest.approx(1.5, abs=0.1)
    with av.open(str(video)) as a, av.open(str(film)) as b:
        packets = [[bytes(packet) for packet in source.demux(video=0) if packet.size] for source in (a, b)]
    assert packets[0] == packets[1]


def test_seed_prompt_and_video_all_matter(base, tmp_path):
    video = ["--video", str(base / "clip.mp4")]
    takes = {
        "plain": [*video],
        "again": [*video],
        "seed": [*video, "--seed", "1"],
        "prompt": [*video, "--prompt", "a dog barks"],
        "text": ["--prompt", "a dog barks", "--seconds", "1.48"],
    }
    for name, more in takes.items():
        generated(base, tmp_path / f"{name}.wav", *more)
    files = {name: (tmp_path / f"{name}.wav").read_bytes() for name in takes}
    assert files["plain"] == files["again"]
    assert len(set(files.values())) == 4


def test_an_adapter_acts_by_its_strength(base, tmp_path):
    network = build_network(MODEL)
    adapted = add_lora(network, LoRAConfig(rank=2), torch.Generator().manual_seed(0))
    for name, parameter in adapted.named_parameters():
        parameter.data += 0.1 * ("lora_B" in name)
    targets = expand_targets(build_network(MODEL), LoRAConfig().target_modules)
    write_adapter(tmp_path / "x.pt", AdapterFile(LoRAConfig(rank=2), adapter_state(adapted), MODEL, "", targets))
    text = ["--prompt", "a dog barks", "--seconds", "1"]
    generated(base, tmp_path / "base.wav", *text)
    for strength in ("0", "0.5"):
        generated(
            base, tmp_path / f"{strength}.wav", *text, "--adapter", str(tmp_path / "x.pt"), "--strength", strength
        )
    files = {name: (tmp_path / f"{name}.wav").read_bytes() for name in ("base", "0", "0.5")}
    assert files["base"] == files["0"]
    assert files["base"] != files["0.5"]


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ([], ConfigError, "neither a video nor a prompt"),
        (["--video", "VIDEO", "--start", "1.2"], DataError, "at least 0.64 s"),
        (["--video", "VIDEO", "--output", "sound.mp3"], ConfigError, "ends in .flac, .wav, .mp4"),
        (["--prompt", "rain", "--output", "sound.mp4"], ConfigError, "no --video"),
        (["--prompt", "rain", "--model", "tiny_17k"], ConfigError, "did you mean 'tiny_16k'"),
        (["--prompt", "rain", "--steps", "0"], ConfigError, "steps=0"),
    ],
)
def test_wishes_that_make_no_sense_are_named(base, tmp_path, more, error, words):
    with pytest.raises(error, match=words):
        generated(base, tmp_path, *[str(base / "clip.mp4") if word == "VIDEO" else word for word in more])
