"""A miniature network and clips that it can learn, for the trainer's tests."""

import torch
from test_networks import mini

from mmaudio.config import TrainConfig
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import Features, feature_set
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.trainer import train_on
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.model.spec import NetworkSpec

MINI = mini().spec


def random_features(clips: int, spec: NetworkSpec = MINI, seed: int = 0) -> Features:
    """Clips whose latents are all near one pattern: something an adapter can learn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(clips, *shape, generator=generator)

    pattern = torch.randn(spec.latent_tokens, spec.latent_dim, generator=torch.Generator().manual_seed(99))
    return Features(
        pattern + 0.1 * draw(spec.latent_tokens, spec.latent_dim),
        0.1 * draw(spec.latent_tokens, spec.latent_dim).abs(),
        draw(spec.clip_tokens, spec.clip_dim),
        draw(spec.sync_tokens, spec.sync_dim),
        draw(spec.text_tokens, spec.text_dim),
    )


def clip_rows(count, split="train", videos=3):
    """Rows of the table: 8 s clips of `videos` videos."""
    return [
        Clip(f"{split}{i}", f"{split}{i % videos}.mp4", 4.0 * i, 4.0 * i + 8, f"sound {i}", split, -3.0, -20.0, 0.1)
        for i in range(count)
    ]


def clips(count, split="train", videos=3, seed=0):
    """A feature set of the miniature's shapes."""
    return feature_set(random_features(count, seed=seed), clip_rows(count, split, videos), "tiny_16k")


def config(folder, **settings):
    """A few fast steps in float32, results in `folder`, no pictures."""
    made = TrainConfig(
        exp_id="exp",
        model="tiny_16k",
        output_dir=str(folder),
        batch_size=4,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        max_steps=6,
        warmup_steps=2,
        eval_every=2,
        save_every=2,
        amp=False,
        lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.1),
    )
    made.logging.sample_every, made.logging.log_every = 0, 1
    for name, value in settings.items():
        setattr(made, name, value)
    made.__post_init__()
    return made


def run(folder, network=None, train=None, held=..., team=None, **settings):
    """Train the miniature: the outcome."""
    held = clips(3, "val", seed=1) if held is ... else held
    return train_on(network or mini(), "0" * 64, config(folder, **settings), train or clips(5), held, team or Team())
