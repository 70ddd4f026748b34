"""The training benchmark's contestants compute the same loss and gradients; its command says what it measured."""

import dataclasses

import pytest
import torch
from helpers import assert_close, fill

from benchmarks.baseline_training import PlainTraining
from benchmarks.random_inputs import random_features, random_network
from benchmarks.training import main
from mmaudio.config import TrainConfig
from mmaudio.errors import ConfigError
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import compute_losses
from mmaudio.finetune.trainer import prepare_network
from mmaudio.lora.adapter import LoRAConfig, adapter_state, load_adapter_state

CPU = torch.device("cpu")


def run_both(dtype=torch.float32, **settings):
    """Losses (B,) and gradients by name, of plain peft and of the trainer, at the same filled adapter and draws."""
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.0, enabled=settings.pop("enabled", True))
    amp = dtype == torch.bfloat16
    config = TrainConfig(model="tiny_16k", batch_size=3, gradient_accumulation_steps=1, lora=lora, amp=amp, **settings)
    features = random_features("tiny_16k", 3)
    state = new_state(random_network("tiny_16k"), config, len(features))
    plain = PlainTraining(random_network("tiny_16k"), features, config, CPU, dtype)
    if lora.enabled:
        shapes = {key: tuple(value.shape) for key, value in adapter_state(state.model).items()}
        adapter = {key: torch.as_tensor(fill.fill_values(key, shape)).float() for key, shape in shapes.items()}
        load_adapter_state(state.model, adapter)
        plain.load_adapter(adapter)
    clips = build_dataset(state.network, features, CPU)
    prepare_network(state, config, CPU)
    draws = state.draws.draw(3, 0.0, 0.0)
    draws = dataclasses.replace(draws, no_video=draws.index == 0, no_text=draws.index == 1)
    results = []
    for model, loss in (
        (plain.model, plain.losses(draws)),
        (state.model, compute_losses(state.network, clips, draws, dtype)),
    ):
        loss.mean().backward()
        results.append((loss, {n: w.grad for n, w in model.named_parameters() if w.grad is not None}))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"enabled": False}], ids=str)
def test_contestants_have_the_same_losses_and_gradients(settings):
    (plain_losses, plain), (trainer_losses, trainer) = run_both(**settings)
    assert_close(trainer_losses, plain_losses, 1e-5)
    unread = {name for name in plain if name not in trainer}  # queries that nothing attends with
    assert not trainer.keys() - plain.keys() and all(not plain[name].any() for name in unread)
    assert len(trainer) == 60 or settings.get("enabled") is False
    for name, gradient in trainer.items():
        assert_close(gradient, plain[name], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--full", "--checkpointing", "--float32"]], ids=str)
def test_the_table_names_what_was_measured(arguments, capsys):
    assert main(["--model", "tiny_16k", "--batch", "2", "--rank", "8", "--rounds", "1", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    kind = "full fine-tuning, float32, gradient_checkpointing" if arguments else "LoRA rank 8, dropout 0.1, "
    assert lines[0].startswith(f"tiny_16k, batch 2, {kind}")
    assert "a step needs" in lines[2] and "Tflop/s" in lines[2]
    for line, name in zip(lines[3:5], ("plain peft", "this trainer"), strict=True):
        assert line.startswith(name)
        assert all(word in line for word in ("steps/s", "samples/s", "% of the ceiling", "GB at most"))
    assert lines[5].startswith("this trainer takes ") and len(lines) == 6


@pytest.mark.parametrize("flag", ["--batch", "--rank", "--rounds", "--threads"])
@pytest.mark.parametrize(("value", "message"), [("0", "at least 1"), ("-1", "at least 1"), ("9999999999", "at most")])
def test_invalid_numbers_are_refused(flag, value, message):
    with pytest.raises(ConfigError, match=f"{flag} {value}: {message}"):
        main([flag, value])
