"""Validation: fixed times and noise, so that two evaluations differ by the weights alone."""

import mini_training
import pytest
import torch
from helpers import mini

from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.state import new_state
from mmaudio.finetune.validation import build_validation_set, validate
from mmaudio.lora.adapter import LoRAConfig

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_clips_losses_do_not_depend_on_the_other_clips(tmp_path):
    config, network = mini_training.build_config(tmp_path, batch_size=5), mini()
    state, clips = new_state(network, config, 5), mini_training.mini_clips(3, "val")
    validation_set = build_validation_set(build_dataset(network, clips, CPU), clips.ids, 8)
    last_clip = clips.subset([2])
    before = state.draws.generator.get_state()
    losses = validate(state, validation_set, config, Distributed())
    again = validate(state, validation_set, config, Distributed())
    single = validate(
        state, build_validation_set(build_dataset(network, last_clip, CPU), last_clip.ids, 8), config, Distributed()
    )
    assert losses.shape == (3, 8) and torch.equal(losses, again) and torch.allclose(losses[2], single[0], rtol=1e-5)
    assert torch.equal(before, state.draws.generator.get_state()), "evaluating must not change what training draws"
    assert len({float(loss) for loss in losses.flatten()}) == 24


@pytest.mark.slow
def test_losses_depend_on_the_weights(tmp_path):
    config, network = mini_training.build_config(tmp_path), mini()
    state, clips = new_state(network, config, 5), mini_training.mini_clips(2, "val")
    validation_set = build_validation_set(build_dataset(network, clips, CPU), clips.ids, 8)
    before = validate(state, validation_set, config, Distributed())
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:
            weight.data.add_(0.01)
    assert not torch.equal(before, validate(state, validation_set, config, Distributed()))


@pytest.mark.slow
def test_validation_has_no_dropout(tmp_path):
    losses = []
    for dropout in (0.5, 0.0):
        config, network = (
            mini_training.build_config(tmp_path, lora=LoRAConfig(rank=4, alpha=8.0, dropout=dropout)),
            mini(),
        )
        state, clips = new_state(network, config, 5), mini_training.mini_clips(2, "val")
        for name, weight in state.trainable_parameters().items():
            if "lora_B" in name:
                weight.data.add_(0.01)
        state.model.train()  # as a step leaves it
        losses.append(
            validate(
                state, build_validation_set(build_dataset(network, clips, CPU), clips.ids, 8), config, Distributed()
            )
        )
    assert torch.equal(*losses)
