"""A miniature network and clips that it can learn, for the trainer's tests."""

import torch
from helpers import assert_close, mini
from safetensors.torch import save_file

from mmaudio.config import TrainConfig
from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_set import Features, build_feature_set
from mmaudio.data.feature_store import Header, encoder_names, shard_path, write_shard
from mmaudio.data.generic_captions import training_captions
from mmaudio.finetune.base_samples import samples_path
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.trainer import train_adapter
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.model.networks import build_network
from mmaudio.model.spec import NetworkSpec, model_spec
from mmaudio.utils.files import atomic_write

MINI = mini().spec


def random_features(num_clips: int, spec: NetworkSpec = MINI, seed: int = 0) -> Features:
    """Clips whose latents are all near one pattern: something an adapter can learn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(num_clips, *shape, generator=generator)

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


def mini_clips(count, split="train", videos=3, seed=0):
    """A feature set of the miniature's shapes."""
    return build_feature_set(random_features(count, seed=seed), clip_rows(count, split, videos), "tiny_16k")


def write_shards(folder, rows, spec=MINI, model="tiny_16k", features=None):
    """The table of `rows` in `folder`, and a shard of random features per video in `features`, or beside the table."""
    write_clips(folder / "clips.tsv", rows)
    encoders = {encoder: f"{name}:0" for encoder, name in encoder_names(model_spec(model)).items()}
    for seed, video in enumerate(dict.fromkeys(row.video for row in rows)):
        clip_rows_of_video = [row for row in rows if row.video == video]
        ids, captions = [row.id for row in clip_rows_of_video], [row.caption for row in clip_rows_of_video]
        header = Header(video, ids, captions, model, 8.0, encoders, "0", "0", "0")
        shard = shard_path(features or folder, video)
        write_shard(shard, header, random_features(len(clip_rows_of_video), spec, seed))


def write_training_data(folder, rows):
    """What train_lora.py needs for tiny_16k: clips.tsv of `rows`, feature shards and a random network in `folder`."""
    spec = model_spec("tiny_16k")
    write_shards(folder, rows, spec.network, features=folder / "features")
    network = build_network(spec.name)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():  # a fresh network's zero output cannot be adapted
        if not weight.any():
            weight.data.normal_(0, 0.02, generator=generator)
    save_file(network.state_dict(), folder / "network.safetensors")


def build_config(folder, **settings):
    """A few fast steps in float32, results in `folder`, no samples."""
    config = TrainConfig(
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
    config.logging.sample_every, config.logging.log_every = 0, 1
    for name, value in settings.items():
        setattr(config, name, value)
    config.__post_init__()
    return config


def write_base_samples(config, base_sha256="0" * 64, seconds=8.0, captions=None, spec=MINI):
    """Random samples of the base at the place where training looks for those that it has made."""
    path = samples_path(config, base_sha256, seconds, captions)
    features = random_features(len(captions or training_captions(config.model)), spec, seed=7)
    with atomic_write(path) as temporary:  # of several processes, perhaps
        torch.save({"latents": features.mean, "text_features": features.text_features}, temporary)


def train_mini(folder, network=None, train=None, held_out=..., distributed=None, **settings):
    """Train the miniature: the training result."""
    held_out = mini_clips(3, "val", seed=1) if held_out is ... else held_out
    config = build_config(folder, **{"features_dir": str(folder)} | settings)
    if config.preserve_base:
        write_base_samples(config)
    inputs = RunInputs(config, "0" * 64, train or mini_clips(5), held_out)
    return train_adapter(network or mini(), inputs, distributed or Distributed())


def assert_same_gradients(gradients, expected, tolerance=1e-5):
    assert gradients.keys() == expected.keys() and all(value.abs().sum() > 0 for value in expected.values())
    for name, value in expected.items():
        assert_close(gradients[name], value, tolerance)
