"""Damage of PEFT folders: every flipped bit is refused or reported, and a folder that is gone is written again."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import pytest
import torch
from mini_adapters import zero_adapter_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmaudio.errors import WeightsError
from mmaudio.lora.checkpoint import AdapterFile, read_adapter, restore_folder, write_adapter
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_compat import adapted_modules

LAYERS = ["joint_blocks[*].latent_block.attn.qkv"]
NAMES = ("adapter_model.safetensors", "adapter_config.json")


@pytest.fixture
def path(tmp_path):
    """best_lora.pt with its folder."""
    state, generator = zero_adapter_state("tiny_16k", LAYERS, rank=2), torch.Generator().manual_seed(0)
    for value in state.values():
        value.uniform_(generator=generator)
    adapter = AdapterFile(
        LoRAConfig(2, 4.0, target_modules=LAYERS), state, "tiny_16k", "ab" * 32, adapted_modules(state)
    )
    write_adapter(tmp_path / "best_lora.pt", adapter)
    return tmp_path / "best_lora.pt"


def same(one, other):
    return one.metadata() == other.metadata() and all(
        torch.equal(one.state[key], other.state[key]) for key in one.state
    )


def outcomes(folder, name, places, capsys):
    """What reading says of the file `name` with each of these bits flipped: refused, reported, or harmless."""
    whole, file = read_adapter(folder), folder / name
    content, outcomes = file.read_bytes(), []
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            adapter = read_adapter(folder)
        except WeightsError as error:
            assert "\n" not in str(error)
            outcomes.append("refused")
        else:
            is_reported = "If nobody edited it, it is damaged" in capsys.readouterr().err
            assert is_reported or same(adapter, whole)
            outcomes.append("reported" if is_reported else "harmless")
    file.write_bytes(content)
    return outcomes


@pytest.mark.slow
def test_no_flipped_bit_of_a_folder_goes_unnoticed(path, capsys):
    folder, draw = path.with_suffix(""), random.Random(0)
    for name in NAMES:
        harmless = bits_of_checksums_name(folder) if name == NAMES[0] else range(0)
        bits = [bit for bit in draw.sample(range(8 * (folder / name).stat().st_size), 60) if bit not in harmless]
        assert "harmless" not in outcomes(folder, name, bits, capsys), name


def bits_of_checksums_name(folder):
    """The bits of the name under which the weights' file has its checksums."""
    start = (folder / NAMES[0]).read_bytes().index(b"mmaudio_checksums")
    return range(8 * start, 8 * (start + len(b"mmaudio_checksums")))


def test_a_flipped_bit_in_the_name_of_the_checksums_is_harmless(path, capsys):
    folder = path.with_suffix("")
    assert set(outcomes(folder, NAMES[0], bits_of_checksums_name(folder)[::8], capsys)) == {"harmless"}


def test_a_single_safetensors_file_has_its_checksum(path, tmp_path):
    alone = shutil.copy(path.with_suffix("") / NAMES[0], tmp_path / "alone.safetensors")
    assert same(read_adapter(alone), read_adapter(path))
    content = bytearray(alone.read_bytes())
    content[-1] ^= 1
    alone.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"alone\.safetensors: cannot be read as an adapter \(its checksum is wrong\)"
    ):
        read_adapter(alone)


def test_edited_settings_are_used_with_a_note(path, capsys):
    config = path.with_suffix("") / NAMES[1]
    settings = json.loads(config.read_text())
    assert read_adapter(path.with_suffix("")).lora.alpha == 4.0 and not capsys.readouterr().err
    config.write_text(json.dumps(settings | {"lora_alpha": 3.0}))
    assert read_adapter(path.with_suffix("")).lora.alpha == 3.0
    assert "Its settings are used: rank 2, alpha 3. If nobody edited it" in capsys.readouterr().err


def test_folders_without_checksums_are_read(path, capsys):
    weights = path.with_suffix("") / NAMES[0]
    with safe_open(weights, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if "checksums" not in name}
    save_file(load_file(weights), weights, metadata)
    assert same(read_adapter(path.with_suffix("")), read_adapter(path)) and not capsys.readouterr().err


@pytest.mark.parametrize("damage", ["gone", "weights", "settings"])
def test_a_folder_that_is_gone_or_damaged_is_written_again(path, damage):
    folder = path.with_suffix("")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert not restore_folder(path)
    if damage == "gone":
        shutil.rmtree(folder)
    else:
        (folder / NAMES[damage == "settings"]).write_bytes(b"")
    assert restore_folder(path) and not restore_folder(path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_full_finetuning_has_no_folder_to_restore(path, tmp_path):
    adapter = dataclasses.replace(read_adapter(path), lora=LoRAConfig(enabled=False), targets=[])
    write_adapter(tmp_path / "full.pt", adapter)
    assert not restore_folder(tmp_path / "full.pt") and not (tmp_path / "full").exists()
