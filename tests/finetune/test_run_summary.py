"""The lines that a run prints before its first step, and the words for a change."""

import mini_training
import pytest
from helpers import mini

from mmaudio.finetune.early_stopping import compute_paired_change
from mmaudio.finetune.run_summary import describe_change
from mmaudio.lora.adapter import add_lora, parameter_counts


def test_a_change_is_described_as_better_or_unclear():
    videos = ["a", "b", "c"]
    assert (
        describe_change(compute_paired_change([1.0, 2.0, 3.0], [0.5, 1.5, 2.5], videos))
        == "better, on the clips that also chose this step"
    )
    assert describe_change(compute_paired_change([1.0, 2.0, 3.0], [0.5, 2.5, 2.5], videos)) == "cannot tell"


@pytest.mark.slow
def test_the_lines_printed_at_the_start(tmp_path, capsys):
    mini_training.train_mini(tmp_path, max_steps=1)
    output = capsys.readouterr().out
    counts = parameter_counts(add_lora(mini(), mini_training.build_config(tmp_path).lora))
    for expected in (
        f"parameters: {counts.total / 1e6:.2f} M in all, {counts.trainable / 1e6:.2f} M trained",
        *(f"{name} {count / 1e6:.2f} M" for name, count in counts.blocks.items()),
        "training:   5 clips of 3 videos, 0.01 h; a step takes 4 clips",
        "validation: 3 clips of 3 videos, 0.01 h, 8 flow times each",
        "rank 4, alpha 8",
        "2 x fused_blocks[*].attn.qkv",
        "6 x joint_blocks[*].latent_block.ffn",
        "3 x joint_blocks[*].clip_block.ffn",
        "memory:     about",
        "validation loss",
    ):
        assert expected in output, output
