"""`mmaudio-lora merge`: the merged file is the adapted network, and the command says what loads it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mini_adapters import write_tiny_adapter
from safetensors.torch import load_file

from mmaudio.api import load_pretrained_with_lora
from mmaudio.commands.__main__ import COMMANDS, main
from mmaudio.commands.merge_adapter import COMFYUI_MODELS, default_output, describe_comfyui
from mmaudio.errors import ConfigError
from mmaudio.lora.checkpoint import read_adapter, write_adapter
from mmaudio.lora.merge import velocity_at_random_input
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_adapter(tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), ("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_the_merged_file_computes_what_the_adapter_does_at_that_strength(
    folder, tmp_path, monkeypatch, capsys, dtype, tolerance
):
    monkeypatch.chdir(tmp_path)
    flags = ["--weights", str(folder), "--strength", "0.7", *([] if dtype is None else ["--dtype", dtype])]
    assert main(["merge", str(folder / "best_lora.pt"), *flags]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "best_lora_tiny_16k.safetensors"
    assert path.name in printed and "ComfyUI cannot use it" in printed and "44.1 kHz models only" in printed
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {
        {None: torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    }
    merged = build_network("tiny_16k").eval()
    merged.load_released(stored)
    adapted = load_pretrained_with_lora("tiny_16k", folder / "best_lora.pt", weights=folder, device="cpu")
    adapted.set_strength(0.7)
    expected = velocity_at_random_input(adapted.network)
    assert (velocity_at_random_input(merged) - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.slow
def test_several_adapters_are_merged_as_they_are_used(folder, tmp_path):
    adapter, first, second = read_adapter(folder / "best_lora.pt"), folder / "best_lora.pt", tmp_path / "second.pt"
    write_adapter(second, replace(adapter, lora=replace(adapter.lora, alpha=2.0)))
    flags = [str(first), "--strength", "0.7", str(second), "--strength", "joint=0.5", "--weights", str(folder)]
    assert main(["merge", *flags, "--output", str(tmp_path / "merged.pt")]) == 0
    pairs = [(str(second), "joint=0.5"), (first, 0.7)]
    both = load_pretrained_with_lora(lora_checkpoint=pairs, weights=folder, device="cpu")
    stored = torch.load(tmp_path / "merged.pt", weights_only=True)
    assert all(torch.equal(stored[key], value) for key, value in both.network.state_dict().items())
    info = both.parameter_info()
    assert info.startswith("tiny_16k with LoRA and LoRA:") and info.endswith(f"in {second}, {first}")


@pytest.mark.slow
def test_an_existing_file_is_replaced_only_where_that_is_said(folder, tmp_path):
    target = tmp_path / "merged.pt"
    target.write_bytes(b"precious")
    flags = ["merge", str(folder / "best_lora.pt"), "--weights", str(folder), "--output", str(target)]
    with pytest.raises(ConfigError, match="is there already; --overwrite replaces it"):
        main(flags)
    assert target.read_bytes() == b"precious"
    assert main([*flags, "--overwrite"]) == 0 and target.stat().st_size > 1000


def test_the_default_name_has_the_experiment_and_the_model():
    adapter = Path("output/dogs/lora_checkpoints/best_lora.pt")
    assert default_output([adapter], "small_44k") == Path("dogs_small_44k.safetensors")
    adapter = Path("output/dogs_small_44k/lora_checkpoints/best_lora.pt")
    assert default_output([adapter], "small_44k") == Path("dogs_small_44k.safetensors")
    assert default_output([Path("bell.safetensors")], "tiny_16k") == Path("bell_tiny_16k.safetensors")
    several = default_output([adapter, Path("bell.safetensors")], "small_44k")
    assert several == Path("dogs_bell_small_44k.safetensors")


@pytest.mark.parametrize("model", MODELS)
def test_it_is_said_whether_comfyui_takes_the_file(model):
    message = describe_comfyui(model, Path(f"dogs_{model}.safetensors"))
    assert ("ComfyUI/models/mmaudio and" in message) is (model in COMFYUI_MODELS)
    assert ("cannot" in message) is (model not in COMFYUI_MODELS)


def test_a_name_that_comfyui_would_misread_is_told():
    assert "as dogs_small_44k.safetensors" in describe_comfyui("small_44k", Path("dogs.safetensors"))
    assert ".safetensors and .pt" in describe_comfyui("small_44k", Path("dogs_44k.pth"))


def test_every_subcommand_has_a_help_and_an_unknown_one_a_suggestion(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as status:
            main([name, "--help"])
        assert status.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
    with pytest.raises(ConfigError, match=r"mmaudio-lora marge: no such command; did you mean merge\?"):
        main(["marge"])


@pytest.mark.slow
def test_wrong_use_is_one_line_and_status_2(folder):
    command = [sys.executable, "-m", "mmaudio.commands", "merge", str(folder / "best_lora.pt"), "--strength", "3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: --strength 3: from 0, the base model, to 1.5; 1 is as trained\n"
