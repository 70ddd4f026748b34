"""Training where tokens share their modulation, as at 44.1 kHz, is that of a modulation for every token."""

from dataclasses import replace
from functools import partial

import mini_training
import pytest
import torch
from helpers import assert_close, fill, mini_spec

from mmaudio.data.feature_set import build_feature_set
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.lora.config import LoRAConfig
from mmaudio.model import spec
from mmaudio.model.networks import MMAudio

SPEC = replace(mini_spec(), latent_tokens=60)
SYNC_TOKENS = SPEC.sync_tokens


def clips(count, split):
    return build_feature_set(
        mini_training.random_features(count, SPEC), mini_training.clip_rows(count, split), "tiny_16k"
    )


def train(folder, **settings):
    """The adapter that training ends with, and the rows that a block's modulation had in training and in validation."""
    network, rows = MMAudio(SPEC), {True: set(), False: set()}
    fill.fill_module(network)
    layer = network.fused_blocks[0].adaLN_modulation
    layer.register_forward_hook(lambda module, _inputs, out: rows[torch.is_grad_enabled()].add(out.shape[1]))
    outcome = mini_training.train_mini(folder, network, clips(5, "train"), clips(3, "val"), max_steps=3, **settings)
    return read_adapter(outcome.folder / "lora_checkpoints" / "last_lora.pt").state, rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, shares",
    [
        ({}, True),
        ({"gradient_checkpointing": True}, True),
        ({"lora": LoRAConfig(4, 8.0, 0.0, target_modules=["fused_blocks[*].attn.qkv"], use_dora=True)}, True),
        ({"preserve_base": 1.0}, True),
        ({"lora": LoRAConfig(4, 8.0, 0.0, extra_targets=["*.adaLN_modulation.1"])}, False),
    ],
    ids=["LoRA", "checkpointing", "DoRA", "base samples", "on modulations"],
)
def test_training_is_the_same(tmp_path, monkeypatch, settings, shares):
    monkeypatch.setattr(mini_training, "write_base_samples", partial(mini_training.write_base_samples, spec=SPEC))
    adapter, rows = train(tmp_path / "shared", **settings)
    assert rows[False] == {SYNC_TOKENS} and rows[True] == ({SYNC_TOKENS} if shares else {SPEC.latent_tokens})
    monkeypatch.setattr(spec, "MAX_SHARED_ROWS", 0.0)
    expected, rows = train(tmp_path / "each", **settings)
    assert rows[True] == rows[False] == {SPEC.latent_tokens}
    assert adapter.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(adapter[name], value, 1e-5)
