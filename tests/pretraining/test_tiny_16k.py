"""The embedded base as it ships: whole, small enough, and better with the video than without."""

import pytest
import torch

from mmaudio.features.encoders import load_encoders
from mmaudio.generation.sampler import load_sampler
from mmaudio.model.flow_matching import sample_posterior, velocity_loss
from mmaudio.pretraining.base_evaluation import encode_clip, generate_mels, mean_onset_f1
from mmaudio.weights import store as weights

FOLDER = weights.ASSETS / "tiny_16k"
VIDEOS = sorted((FOLDER / "general").glob("*.mp4"))


@pytest.fixture(scope="module")
def base():
    encoders, sampler = load_encoders("tiny_16k"), load_sampler("tiny_16k")
    clips = [
        encode_clip(video, video.with_suffix(".txt").read_text(encoding="utf-8").strip(), 0.0, encoders)
        for video in VIDEOS[:8]
    ]
    return encoders, sampler, clips


def test_the_embedded_weights_are_complete_and_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    assert not weights.missing_files("tiny_16k")
    assert len(VIDEOS) >= 10
    assert all(video.with_suffix(".txt").read_text(encoding="utf-8").strip() for video in VIDEOS)


@pytest.mark.slow
def test_video_and_text_conditions_lower_the_velocity_loss(base):
    encoders, sampler, clips = base
    network = sampler.network
    clip, sync, text = (torch.stack([getattr(clip, name) for clip in clips]) for name in ("clip", "sync", "text"))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        posterior = encoders.vae.encode(torch.stack([clip.mel for clip in clips]))
        shape = posterior.mean.mT.shape
        eps, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        latent = network.normalize(sample_posterior(posterior.mean.mT, posterior.std.mT, eps))
        t = torch.full((len(clips),), 0.1)  # near the noise, where conditions matter: from 0.5 on the latent tells all

        def loss(clip, sync, text):
            conditions = network.preprocess_conditions(clip, sync, text)
            return velocity_loss(network, latent, conditions, t, noise)

        with_all = loss(clip, sync, text)
        with_none = loss(network.empty_clip(len(clips)), network.empty_sync(len(clips)), network.empty_text(len(clips)))
        with_others = loss(clip.roll(1, 0), sync.roll(1, 0), text)
    assert with_all.mean() < 0.85 * with_none.mean()
    assert with_all.mean() < 0.8 * with_others.mean()
    assert (with_all < with_others).float().mean() >= 0.8


@pytest.mark.slow
def test_generated_onsets_follow_the_video(base):
    _, sampler, clips = base
    mels = generate_mels(sampler, clips)
    score, shuffled = mean_onset_f1(mels, clips), mean_onset_f1(mels.roll(1, 0), clips)
    assert score >= 0.8  # eight clips; 0.87 over forty, `training/pretrain_tiny.py`
    assert score > 2 * shuffled
