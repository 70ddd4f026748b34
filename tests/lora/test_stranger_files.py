"""Adapter files of strangers that would take memory or time without end: one line, at once."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import pytest
import torch
from mini_adapters import zero_adapter_state
from safetensors.torch import save_file

from mmaudio.errors import WeightsError
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.weights.store import read_state_dict

CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": "tiny_16k"}


@pytest.fixture
def folder(tmp_path):
    """A PEFT folder that can be read."""
    save_file(zero_adapter_state("tiny_16k"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert read_adapter(tmp_path).base_model == "tiny_16k"
    return tmp_path


def write_compressed(path):
    """A file of torch.save of 10 MB, written again with compression: 10 kB."""
    torch.save({"a": torch.zeros(2_500_000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["bomb.pt", "adapter_model.bin"])
def test_a_file_that_grows_when_it_is_read_is_refused(tmp_path, name):
    write_compressed(tmp_path / name)
    with pytest.raises(WeightsError, match="the parts within are larger than the file"):
        read_adapter(tmp_path / name if name == "bomb.pt" else tmp_path)


@pytest.mark.parametrize("content", [b"hello\n", b"2.", b"rV", b"\x80\x02}\x81.", b"\0" * 1000])
def test_bytes_that_are_no_pickle_are_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pt: cannot be read as an adapter \(not a file of weights"):
        read_adapter(path)
    with pytest.raises(WeightsError, match=r"a\.pt: cannot be read as weights \(not a file of weights"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["pipe", "pipe.pt", "pipe.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError, match="neither a file nor a folder"):
        read_adapter(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "recursion"),
        ('{"r": ' + "9" * 5000 + "}", "limit"),
        ("[1]", "is missing or invalid"),
        ("null", "its lora_alpha is unknown"),
        ('"text"', "is missing or invalid"),
        (json.dumps(CONFIG) + " " * 10_000_000, "more than settings take"),
    ],
    ids=["deep", "long number", "list", "null", "text", "large"],
)
def test_settings_that_are_none_are_refused(folder, content, words):
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(WeightsError, match=words) as refused:
        read_adapter(folder)
    assert "\n" not in str(refused.value)


def test_links_as_in_the_cache_of_the_hub_are_followed_and_loops_are_refused(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (linked / file).symlink_to(folder / file)
    assert read_adapter(linked).base_model == "tiny_16k"
    shutil.rmtree(linked)
    linked.mkdir()
    (linked / "adapter_model.safetensors").symlink_to(linked / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="holds neither"):
        read_adapter(linked)
