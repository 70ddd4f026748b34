"""`compile=true`: losses and gradients of the uncompiled blocks, resumed runs too; one line without a compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_world
import torch
from conftest import assert_close, filled
from test_networks import mini

from mmaudio.finetune import step
from mmaudio.finetune.dataset import material
from mmaudio.finetune.state import new_state
from mmaudio.finetune.trainer import ready
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.lora.checkpoint import read_adapter

CPU = torch.device("cpu")
LORA = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)  # compiled dropout draws other numbers
HELD = small_world.clips(2, "val", seed=1)
TESTS = Path(__file__).parents[1]
ABSENT = """
import sys
from pathlib import Path
import small_world
from mmaudio.errors import ConfigError
try:
    small_world.run(Path(sys.argv[1]), compile=True)
except ConfigError as error:
    print(f"refused: {error}")
"""


def gradients(folder, **settings):
    """Losses of a step's clips, every gradient by name; conditions dropped, the B matrices away from zero."""
    config, network = small_world.config(folder, lora=LORA, **settings), mini()
    state = new_state(network, config, 5)
    for name, weight in state.trained().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape)
    ready(state, config, CPU)
    state.model.train()
    losses = step.batch_losses(state, material(network, small_world.clips(5), CPU), state.draw(4, 0.3, 0.3), config)
    return losses, {name: weight.grad for name, weight in state.trained().items()}


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_the_uncompiled_blocks(tmp_path):
    for settings in ({}, {"gradient_checkpointing": True}):
        torch._dynamo.utils.counters.clear()
        losses, found = gradients(tmp_path, compile=True, **settings)
        expected_losses, expected = gradients(tmp_path, **settings)
        assert_close(losses, expected_losses, 1e-5)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().sum() > 0
            assert_close(found[name], gradient, 1e-5)
        if not settings:
            counters = torch._dynamo.utils.counters
            assert counters["stats"]["unique_graphs"] >= 3, "a joint block, the last of them and a fused block"
            assert not counters["graph_break"], "blocks are compiled whole"


def run(folder, **settings):
    """A run's losses by step, and its last adapter."""
    outcome = small_world.run(folder, held=HELD, lora=LORA, schedule="constant", **settings)
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [row[key] for key in ("train/loss", "validation/loss") for row in rows if key in row]
    return numbers, read_adapter(outcome.folder / "lora_checkpoints" / "last_lora.pt").state


@pytest.mark.slow
def test_a_compiled_run_is_the_uncompiled_one_and_resumes_bit_for_bit(tmp_path):
    plain, _ = run(tmp_path / "plain", max_steps=4)
    whole, adapter = run(tmp_path / "whole", max_steps=4, compile=True)
    run(tmp_path / "parts", max_steps=2, compile=True)
    parts, resumed = run(tmp_path / "parts", max_steps=4, compile=True)
    assert whole == pytest.approx(plain, rel=1e-4) and whole[0] != whole[3]
    assert parts == whole and all(torch.equal(resumed[name], value) for name, value in adapter.items())


@pytest.mark.slow
def test_without_a_compiler_it_says_what_to_do(tmp_path):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "CXX": str(tmp_path / "g++"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    said = done.stdout.splitlines()[-1]
    assert said.startswith("refused: compile=true: torch.compile does not work here (InvalidCxxCompiler"), done.stderr
    assert "It needs a C++ compiler (g++): install that, or take compile=false" in said
    assert not (tmp_path / "exp" / "lora_checkpoints").exists(), "nothing is trained"
