"""`compile=true`: losses and gradients of the eager blocks, resumed runs too; the error without a compiler."""

import json
import os
import subprocess
import sys

import mini_training
import pytest
import torch
from helpers import TESTS, assert_close, filled, mini

from mmaudio.finetune import step
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.state import new_state
from mmaudio.finetune.trainer import prepare_network
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.lora.checkpoint import read_adapter

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("default")  # the compiler emits warnings of its own
LORA = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)  # compiled dropout draws other numbers
HELD_OUT = mini_training.mini_clips(2, "val", seed=1)
NO_COMPILER_SCRIPT = """
import sys
from pathlib import Path
import mini_training
from mmaudio.errors import ConfigError
from mmaudio.finetune.torch_compile import can_compile
print("can compile:", can_compile(mini_training.mini()))
try:
    mini_training.train_mini(Path(sys.argv[1]), compile=True)
except ConfigError as error:
    print(f"refused: {error}")
"""


def gradients(folder, **settings):
    """Losses of a step's clips, every gradient by name; conditions dropped, the B matrices away from zero."""
    config, network = mini_training.build_config(folder, lora=LORA, **settings), mini()
    state = new_state(network, config, 5)
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:
            weight.data += 0.05 * filled(name, *weight.shape)
    prepare_network(state, config, CPU)
    state.model.train()
    losses = step.accumulate_gradients(
        state, build_dataset(network, mini_training.mini_clips(5), CPU), state.draws.draw(4, 0.3, 0.3), config
    )
    return losses, {name: weight.grad for name, weight in state.trainable_parameters().items()}


@pytest.mark.slow
def test_compiled_losses_and_gradients_equal_the_eager_ones(tmp_path):
    """With gradient checkpointing, which computes the compiled blocks once more; the test of whole runs has none."""
    torch._dynamo.utils.counters.clear()
    losses, compiled = gradients(tmp_path, compile=True, gradient_checkpointing=True)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 3, "a joint block, the last of them and a fused block"
    assert not counters["graph_break"], "blocks are compiled whole"
    expected_losses, expected = gradients(tmp_path, gradient_checkpointing=True)
    assert_close(losses, expected_losses, 1e-5)
    assert compiled.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        assert_close(compiled[name], gradient, 1e-5)


def run(folder, **settings):
    """A run's losses by step, and its last adapter."""
    outcome = mini_training.train_mini(folder, held_out=HELD_OUT, lora=LORA, schedule="constant", **settings)
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [row[key] for key in ("train/loss", "validation/loss") for row in rows if key in row]
    return numbers, read_adapter(outcome.folder / "lora_checkpoints" / "last_lora.pt").state


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_one_and_resumes_bit_for_bit(tmp_path):
    plain, _ = run(tmp_path / "plain", max_steps=4)
    whole, adapter = run(tmp_path / "whole", max_steps=4, compile=True)
    run(tmp_path / "parts", max_steps=2, compile=True)
    parts, resumed = run(tmp_path / "parts", max_steps=4, compile=True)
    assert whole == pytest.approx(plain, rel=1e-4) and whole[0] != whole[3]
    assert parts == whole and all(torch.equal(resumed[name], value) for name, value in adapter.items())


@pytest.mark.slow
def test_without_a_compiler_the_error_suggests_a_setting(tmp_path):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "CXX": str(tmp_path / "g++"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    process = subprocess.run(
        [sys.executable, "-c", NO_COMPILER_SCRIPT, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "can compile: False" in process.stdout, process.stderr
    message = process.stdout.splitlines()[-1]
    assert message.startswith("refused: compile=true: torch.compile does not work here (InvalidCxxCompiler"), (
        process.stderr
    )
    assert "It needs a C++ compiler (g++): install that, or take compile=false" in message
    assert not (tmp_path / "exp" / "lora_checkpoints").exists(), "nothing is trained"
