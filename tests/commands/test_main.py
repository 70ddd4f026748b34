"""`mmaudio-lora` and its subcommands: help, the scripts of the checkout, and what a platform may lack."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from mmaudio import cli
from mmaudio.commands import __main__ as commands
from mmaudio.commands.train_help import format_help, format_settings
from mmaudio.config import CONFIG_FOLDER, LORA_SHORTCUTS, PRIMARY_CONFIG, TrainConfig, compose, dotted_names
from mmaudio.errors import ConfigError
from mmaudio.generation.sampler import fast_dtype


def test_without_fcntl_every_lock_is_granted(tmp_path, monkeypatch):
    from mmaudio.utils import locks

    monkeypatch.setattr(locks, "fcntl", None)
    with locks.FileLocks(tmp_path) as one, locks.FileLocks(tmp_path) as other:
        assert one.acquire("a") and other.acquire("a") and other.describe_holder("a") == ""
        one.release("a")


def test_without_resource_the_memory_is_not_told(monkeypatch):
    from mmaudio.pipeline import run

    assert run.peak_memory() is not None
    monkeypatch.setitem(sys.modules, "resource", None)
    assert run.peak_memory() is None


def test_an_apple_gpu_is_a_device_where_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device='mps': this torch has no Apple GPU here; take device=cpu"):
        cli.pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert cli.pick_device("mps") == torch.device("mps") and fast_dtype(torch.device("mps")) == torch.float32
    assert compose(["device=mps"]).device == "mps" and cli.pick_device("auto").type != "mps"


@pytest.mark.parametrize("name", ["split", "extract", "evaluate"])
def test_a_subcommand_is_the_script_of_the_checkout(name):
    path = commands.COMMANDS[name].module
    module = commands.COMMANDS[name].load()
    assert module.__file__ == str(ROOT / path) and commands.COMMANDS[name].load() is module


def test_the_help_of_training_lists_every_setting_with_its_explanation():
    text = (CONFIG_FOLDER / f"{PRIMARY_CONFIG}.yaml").read_text()
    lines = [line for line in format_settings(text) if line]
    names = [line.strip().partition("=")[0] for line in lines]
    settings = dotted_names(TrainConfig)
    groups = {name.partition(".")[0] for name in settings if "." in name}
    assert len(names) == len(set(names)) and set(names) == set(settings) - groups - set(LORA_SHORTCUTS)
    assert all(len(line) <= 140 for line in lines)
    explained = [line for line in lines if len(line.split(None, 1)) == 2]
    assert len(explained) > 0.9 * len(lines)
    page = "\n".join(format_help("mmaudio-lora train"))
    assert "low_memory" in page and "lora.rank=64 " in page and "usage: mmaudio-lora train [key=value" in page


@pytest.mark.slow
@pytest.mark.parametrize("program", [["train_lora.py"], ["-m", "mmaudio.commands", "train"]])
def test_help_of_training_comes_from_our_own_page(program):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *program, "--help"], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    name = "train_lora.py" if program[0] != "-m" else "mmaudio-lora train"
    assert result.returncode == 0 and result.stdout.startswith(f"usage: {name} ") and "Hydra" not in result.stdout


def test_help_names_the_command_and_ends_in_an_example(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmaudio-lora"])
    for name in ("run", "generate", "split"):
        with pytest.raises(SystemExit):
            commands.main([name, "--help"])
        output = capsys.readouterr().out
        assert output.startswith(f"usage: mmaudio-lora {name} ") and "run_lora_pipeline.sh" not in output
        assert output.rstrip().endswith(f"example: mmaudio-lora {name} {commands.COMMANDS[name].example}")


def test_examples_are_for_their_parser():
    for name in ("doctor", "extract", "evaluate", "generate", "merge"):
        entry = commands.COMMANDS[name]
        entry.load().build_parser().parse_args(entry.example.split())
    split = commands.COMMANDS["split"]
    assert split.load().build_parser().parse_intermixed_args(split.example.split()).output_tsv.name == "clips.tsv"
    assert importlib.import_module("mmaudio.pipeline.flags").parse_flags(["my_videos"]).folder.name == "my_videos"
