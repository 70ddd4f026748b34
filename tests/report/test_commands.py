"""Commands of a report: they repeat what was run, in the shell's and in Hydra's grammar."""

import shlex
from dataclasses import replace
from pathlib import Path

import torch

import evaluate_lora
from mmaudio.config import TrainConfig, compose
from mmaudio.evaluation.config import EvaluationConfig, SamplingConfig
from mmaudio.generation.sampler import fast_dtype
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.spec import model_spec
from mmaudio.report.commands import build_commands
from mmaudio.utils import checkout

MODEL = "tiny_16k"


def test_the_training_command_states_the_settings():
    lora = LoRAConfig(rank=8, target_modules=["fused_blocks[*].ffn"], rank_pattern={"ffn": 4})
    train_config = TrainConfig(exp_id="x", model=MODEL, learning_rate=1e-3, preserve_base=0.5, lora=lora, amp=False)
    adapter = AdapterFile(lora, {}, MODEL, "", config=train_config.to_dict())
    config = EvaluationConfig(Path("a.pt"), Path("v"), Path("ö #1/c.tsv"), Path("f's ${x}"), Path("o"))
    python, script, *overrides = shlex.split(dict(build_commands(config, model_spec(MODEL), adapter))["Train again"])
    assert (python, script) == ("python", "train_lora.py")
    paths = {"exp_id": "again", "clips_tsv": "ö #1/c.tsv", "features_dir": "f's ${x}"}
    assert compose(overrides).to_dict() == {**train_config.to_dict(), **paths}
    del adapter.config["early_times"]  # trained before there was such a setting
    command = shlex.split(dict(build_commands(config, model_spec(MODEL), adapter))["Train again"])
    assert compose(command[2:]).to_dict() == {**train_config.to_dict(), **paths, "early_times": 0.0}


def test_the_report_command_parses_to_the_same_settings():
    config = EvaluationConfig(
        Path("a.pt"), Path("v"), Path("c.tsv"), Path("f"), Path("o"), SamplingConfig(3, 2, 5, 2.5, 4)
    )
    config = replace(
        config, weights=Path("w"), metrics=("mel_l1",), strengths=(0.5,), max_clips=7, check_data=True, model=MODEL
    )
    config = replace(config, trackers=("tensorboard", "trackio"), project="dogs")
    commands = dict(build_commands(config, model_spec(MODEL), AdapterFile(LoRAConfig(), {}, MODEL, "")))
    assert "Train again" not in commands
    repeated = evaluate_lora.parse_config([*shlex.split(commands["Make this report again"])[2:], "--device", "cpu"])
    assert repeated == replace(config, offline=repeated.offline, dtype=fast_dtype(torch.device("cpu")))
    assert all(
        text.endswith("--weights w") for title, text in commands.items() if title.startswith(("Extract", "Make a"))
    )


def test_audio_is_generated_at_the_recommended_strength():
    config = EvaluationConfig(Path("a.pt"), Path("v"), Path("c.tsv"), Path("f"), Path("o"))
    for strength, flags in ((0.75, ["--strength", "0.75"]), (1.0, []), (None, [])):
        commands = dict(build_commands(config, model_spec(MODEL), AdapterFile(LoRAConfig(), {}, MODEL, ""), strength))
        arguments = shlex.split(commands["Make a sound for a video with the adapter"])
        assert arguments[arguments.index("a.pt") + 1 : arguments.index("--output")] == flags


def test_outside_a_checkout_they_are_subcommands(monkeypatch):
    """Where a wheel is installed, nobody has the scripts."""
    monkeypatch.setattr(checkout, "IN_CHECKOUT", False)
    config = EvaluationConfig(Path("a.pt"), Path("v"), Path("c.tsv"), Path("f"), Path("o"))
    adapter = AdapterFile(LoRAConfig(), {}, MODEL, "", config=TrainConfig(exp_id="x", model=MODEL).to_dict())
    words = [shlex.split(text)[:2] for _, text in build_commands(config, model_spec(MODEL), adapter)]
    assert words == [["mmaudio-lora", name] for name in ("evaluate", "extract", "train", "generate")]
