"""The guide's settings and its progressive training, run: each block trains as it is written, two steps of it."""

import shutil
from dataclasses import replace

import mini_training
import pytest
import torch
from guide_blocks import MODEL, PROGRESSIVE, settings_blocks
from mini_training import clip_rows, write_shards

from mmaudio.config import CONFIG_FOLDER, TrainConfig, compose
from mmaudio.finetune.clip_sets import load_clip_sets
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.trainer import train_adapter
from mmaudio.lora.adapter import LoRAConfig, progressive
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.model.networks import MMAudio

pytestmark = pytest.mark.slow

WIDE = replace(mini_training.MINI, width=128, num_heads=2)
"""Wide enough for the guide's ranks."""


@pytest.fixture(scope="module")
def wide_data(tmp_path_factory):
    """Clips of five videos with features for a network of WIDE."""
    folder = tmp_path_factory.mktemp("wide")
    write_shards(folder, clip_rows(8, videos=3) + clip_rows(3, "val", videos=2), WIDE)
    return folder


def train_wide(data, output, config):
    """Train a network of WIDE on the clips for two steps: the outcome and its last adapter."""
    run_config = replace(
        config, model=MODEL, clips_tsv=f"{data}/clips.tsv", features_dir=str(data), output_dir=str(output)
    )
    torch.manual_seed(0)
    network = MMAudio(WIDE)
    for weight in network.parameters():  # a fresh network's velocity is zero
        weight.data += 0.02 * torch.randn(weight.shape)
    outcome = train_adapter(network, RunInputs(run_config, "0" * 64, *load_clip_sets(run_config)), Distributed())
    return outcome, read_adapter(outcome.folder / "lora_checkpoints" / "last_lora.pt")


@pytest.mark.parametrize("text", settings_blocks())
def test_the_settings_train_as_written(wide_data, tmp_path, text):
    folder = shutil.copytree(CONFIG_FOLDER, tmp_path / "config")
    (folder / "preset" / "guide.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    composed = compose(["preset=guide", "logging.sample_every=0"], folder)
    outcome, adapter = train_wide(wide_data, tmp_path, replace(composed, max_steps=2))
    assert (outcome.step, outcome.new_steps) == (2, 2) and outcome.base_loss < float("inf")
    assert (adapter.lora.rank, adapter.lora.alpha) == (composed.lora.rank, composed.lora.alpha)
    assert adapter.config["batch_size"] == composed.batch_size
    assert any(value.any() for name, value in adapter.state.items() if "lora_B" in name), "it has learned something"


def test_progressive_training_trains(wide_data, tmp_path):
    variables = {"LoRAConfig": LoRAConfig}
    exec(PROGRESSIVE.replace("000)", ")"), variables)  # a thousandth of the steps
    config = TrainConfig(lora=progressive(variables["configs"]), batch_size=2, gradient_accumulation_steps=1)
    config.logging.sample_every = 0
    outcome, adapter = train_wide(wide_data, tmp_path, config)
    assert outcome.step == 6 and adapter.lora.rank == 128
