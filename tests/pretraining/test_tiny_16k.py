"""The embedded base as it ships: whole, small enough, and better with the video than without."""

import pytest
import torch

from mmaudio.features.encoders import load_encoders
from mmaudio.generation.sampler import load_sampler
from mmaudio.model.flow_matching import sample_posterior, velocity_loss
from mmaudio.pretraining.export import generate, onset_agreement, read_item
from mmaudio.weights import store as weights

FOLDER = weights.ASSETS / "tiny_16k"
VIDEOS = sorted((FOLDER / "general").glob("*.mp4"))


@pytest.fixture(scope="module")
def base():
    encoders, sampler = load_encoders("tiny_16k"), load_sampler("tiny_16k")
    items = [
        read_item(video, video.with_suffix(".txt").read_text(encoding="utf-8").strip(), 0.0, encoders)
        for video in VIDEOS[:8]
    ]
    return encoders, sampler, items


def test_it_is_whole_and_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    assert not weights.missing("tiny_16k")
    assert len(VIDEOS) >= 10
    assert all(video.with_suffix(".txt").read_text(encoding="utf-8").strip() for video in VIDEOS)


@pytest.mark.slow
def test_the_video_and_the_words_lower_the_velocity_loss(base):
    encoders, sampler, items = base
    network = sampler.network
    clip, sync, text = (torch.stack([getattr(item, name) for item in items]) for name in ("clip", "sync", "text"))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        posterior = encoders.vae.encode(torch.stack([item.mel for item in items]))
        shape = posterior.mean.mT.shape
        eps, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        latent = network.normalize(sample_posterior(posterior.mean.mT, posterior.std.mT, eps))
        t = torch.full((len(items),), 0.1)  # near the noise, where conditions matter: from 0.5 on the latent tells all

        def loss(clip, sync, text):
            conditions = network.preprocess_conditions(clip, sync, text)
            return velocity_loss(network, latent, conditions, t, noise)

        seen = loss(clip, sync, text)
        nothing = loss(network.empty_clip(len(items)), network.empty_sync(len(items)), network.empty_text(len(items)))
        other = loss(clip.roll(1, 0), sync.roll(1, 0), text)
    assert seen.mean() < 0.85 * nothing.mean()
    assert seen.mean() < 0.8 * other.mean()
    assert (seen < other).float().mean() >= 0.8


@pytest.mark.slow
def test_onsets_follow_the_picture(base):
    _, sampler, items = base
    mels = generate(sampler, items)
    own, shuffled = onset_agreement(mels, items), onset_agreement(mels.roll(1, 0), items)
    assert own >= 0.8  # eight clips; 0.87 over forty, `training/pretrain_tiny.py`
    assert own > 2 * shuffled
