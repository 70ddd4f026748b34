"""The base's own samples of generic captions: made once, remade where they are damaged."""

import dataclasses

import pytest
import torch
from helpers import mini
from mini_training import build_config, mini_clips, train_mini, write_base_samples

from mmaudio.config import compose
from mmaudio.data import generic_captions
from mmaudio.data.generic_captions import training_captions
from mmaudio.errors import TrainingError
from mmaudio.finetune.base_samples import (
    encode_captions,
    hash_samples,
    make_base_samples,
    pair_with_videos,
    read_base_samples,
    read_shipped_latents,
    sample_captions,
    samples_path,
)
from mmaudio.finetune.run_inputs import RunInputs, describe_differences
from mmaudio.finetune.step import predict_base_velocity
from mmaudio.finetune.trainer import load_network
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.model.spec import CLIP_SECONDS
from mmaudio.weights.store import component_sha256

CPU = torch.device("cpu")


@pytest.mark.slow
def test_samples_are_made_once_by_the_base_from_text_alone(tmp_path, monkeypatch):
    two_captions = ["a red ring bouncing", "a gray box"]
    monkeypatch.setattr("mmaudio.finetune.base_samples.training_captions", lambda model: two_captions)
    config = build_config(tmp_path, features_dir=str(tmp_path))
    network, sha256 = load_network(config, CPU)
    network.set_duration(2.0)
    make_base_samples(network, config, sha256, 2.0)
    path = samples_path(config, sha256, 2.0)
    written = path.stat().st_mtime_ns
    samples = read_base_samples(network, config, sha256, 2.0)
    assert samples.captions == two_captions and not samples.std.any()
    assert samples.mean.shape == (2, network.lengths.latent_tokens, network.spec.latent_dim)
    assert torch.equal(samples.clip_features[0], network.empty_clip(1)[0])
    assert 0.3 < network.normalize(samples.mean).std() < 2, "latents on the codec's scale"
    make_base_samples(network, config, sha256, 2.0)
    assert path.stat().st_mtime_ns == written, "not made again"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    make_base_samples(network, config, sha256, 2.0)
    assert torch.equal(read_base_samples(network, config, sha256, 2.0).mean, samples.mean), "remade where damaged"


def test_latents_ship_for_the_base_and_the_captions_that_ship(tmp_path):
    config = compose(["model=tiny_16k", f"features_dir={tmp_path}", "offline=true"])
    sha256 = component_sha256(config.model, "network")
    latents = read_shipped_latents(config.model, hash_samples(config, sha256, CLIP_SECONDS))
    assert latents is not None, "python training/make_base_samples.py makes them anew"
    assert len(latents) == len(training_captions(config.model)) and latents.dtype == torch.float32
    assert read_shipped_latents(config.model, hash_samples(config, "other", CLIP_SECONDS)) is None
    assert read_shipped_latents("small_16k", hash_samples(config, sha256, CLIP_SECONDS)) is None


@pytest.mark.slow
def test_the_shipped_latents_are_what_the_base_makes(tmp_path):
    config = compose(["model=tiny_16k", f"features_dir={tmp_path}", "offline=true", "amp=false"])
    network, sha256 = load_network(config, CPU)
    network.set_duration(CLIP_SECONDS)
    text_features = encode_captions(config, training_captions(config.model)[:2], CPU)
    latents = read_shipped_latents(config.model, hash_samples(config, sha256, CLIP_SECONDS))
    assert latents is not None
    sampled, largest = sample_captions(network, text_features, config), latents.abs().amax((0, 1))
    assert ((sampled - latents[:2]).abs() <= 0.51 * largest / 127 + 2e-3).all(), "within the 8 bits of their channel"
    make_base_samples(network, config, sha256, CLIP_SECONDS)
    assert torch.equal(read_base_samples(network, config, sha256, CLIP_SECONDS).mean, latents)


def test_the_file_follows_the_base_the_captions_and_the_duration(tmp_path, monkeypatch):
    config = build_config(tmp_path)
    other = dataclasses.replace(config, model="small_16k")
    hashes = {
        hash_samples(*each) for each in [(config, "a", 8.0), (config, "b", 8.0), (config, "a", 4.0), (other, "a", 8.0)]
    }
    assert len(hashes) == 4
    with monkeypatch.context() as patched:
        patched.setattr(generic_captions, "HELD_BACK_EVERY", 1000)  # as before any was held back
        assert hash_samples(config, "a", 8.0) not in hashes, "samples of other captions are made anew"
    reference = dataclasses.replace(config, custom_finetune=False, features_dir="elsewhere")
    assert samples_path(reference, "a", 8.0).parent.parent == tmp_path, "nothing is written among another's features"


def test_every_sample_gets_the_video_of_a_clip_and_keeps_its_text_and_latents(tmp_path):
    config, network, train = build_config(tmp_path, features_dir=str(tmp_path)), mini(), mini_clips(3)
    write_base_samples(config)
    samples = read_base_samples(network, config, "0" * 64, 8.0)
    arguments = ((train, 1), (train.to_lazy(), 1), (train, 2))
    paired, same, other = (pair_with_videos(samples, clips, seed) for clips, seed in arguments)
    for row in range(len(samples)):
        (clip,) = (i for i in range(3) if torch.equal(train.clip_features[i], paired.clip_features[row]))
        assert torch.equal(train.sync_features[clip], paired.sync_features[row]), "of the same video"
    for name in ("mean", "std", "text_features"):
        assert torch.equal(getattr(paired, name), getattr(samples, name))
    assert torch.equal(paired.clip_features, same.clip_features), "read from files as in memory"
    assert not torch.equal(paired.clip_features, other.clip_features)


def test_a_run_from_before_early_times_does_not_go_on_with_them(tmp_path):
    inputs = RunInputs(build_config(tmp_path, early_times=0.3), "0" * 64, mini_clips(3), None)
    values = inputs.fixed_values()
    saved = {name: value for name, value in values.items() if name != "early_times"}
    assert describe_differences(saved, values) == "early_times: 0.0, now 0.3"
    assert describe_differences(saved, values | {"early_times": 0.0}) == ""


def test_samples_that_are_others_are_named_in_words(tmp_path):
    """Those of an earlier version had no videos beside them."""
    values = RunInputs(build_config(tmp_path, preserve_base=1.0), "0" * 64, mini_clips(3), None).fixed_values()
    saved = values | {"base samples": values["base samples"].removesuffix(" with videos")}
    message = "base samples: others now, by captions, base model, length or the videos beside them"
    assert describe_differences(saved, values) == message


@pytest.mark.slow
def test_half_of_the_samples_draws_have_a_video_and_all_have_their_text(tmp_path, monkeypatch):
    drawn, with_videos = [], []

    def pair(samples, clips, seed):
        with_videos.append(pair_with_videos(samples, clips, seed))
        return with_videos[-1]

    monkeypatch.setattr("mmaudio.finetune.trainer.pair_with_videos", pair)

    def record(state, samples, draws, dtype):
        drawn.append(draws)
        return predict_base_velocity(state, samples, draws, dtype)

    monkeypatch.setattr("mmaudio.finetune.step.predict_base_velocity", record)
    train_mini(tmp_path, max_steps=10, preserve_base=1.0, preserve_share=4.0, early_times=1.0)
    no_video, t = (torch.cat([getattr(draws, name) for draws in drawn]) for name in ("no_video", "t"))
    assert len(with_videos) == 1 and len(t) >= 100 and not any(draws.no_text.any() for draws in drawn)
    assert 0.35 < float(no_video.float().mean()) < 0.65
    assert 0.25 < float((t < 0.1).float().mean()) < 0.7, "near the noise, as the clips' own times"


@pytest.mark.slow
def test_a_run_that_preserves_the_base_resumes_bit_for_bit(tmp_path):
    settings = {"preserve_base": 1.0, "schedule": "constant"}
    straight = train_mini(tmp_path / "straight", max_steps=6, **settings)
    train_mini(tmp_path / "parts", max_steps=3, **settings)
    parts = train_mini(tmp_path / "parts", max_steps=6, **settings)
    one, other = (read_adapter(run.folder / "lora_checkpoints/last_lora.pt").state for run in (straight, parts))
    assert parts.new_steps == 3 and all(torch.equal(one[name], other[name]) for name in one)
    free = read_adapter(
        train_mini(tmp_path / "free", schedule="constant").folder / "lora_checkpoints/last_lora.pt"
    ).state
    assert any(not torch.equal(one[name], free[name]) for name in one)
    with pytest.raises(TrainingError, match=r"\(preserve_base: 1\.0, now 0\.0\)"):
        train_mini(tmp_path / "parts", max_steps=8, train=mini_clips(5), schedule="constant")
