"""Finding and reading weights files: folders, formats, and what is said where one is missing or broken."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from mmaudio import weights
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.spec import MODELS

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3)}


def test_every_part_of_every_model_has_a_file_or_needs_none():
    for name, spec in MODELS.items():
        for part in weights.PARTS:
            file = weights.weights_file(name, part)
            assert (file is None) == (part == "vocoder" and spec.codec.vocoder == "griffin_lim")


def test_the_named_folder_comes_before_the_working_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "weights").mkdir()
    torch.save(STATE, tmp_path / "weights" / "mmaudio_small_16k.pth")
    assert weights.find("small_16k", "network", tmp_path / "mine").parent.name == "weights"
    torch.save(STATE, tmp_path / "mine" / "mmaudio_small_16k.pth")
    loaded = weights.load_part("small_16k", "network", tmp_path / "mine")
    assert loaded.path.parent.name == "mine"
    assert torch.equal(loaded.state["a.weight"], STATE["a.weight"])
    assert loaded.identity == hashlib.sha256(loaded.path.read_bytes()).hexdigest()


def test_a_vocoder_file_keeps_its_weights_under_generator(tmp_path):
    torch.save({"generator": STATE, "steps": 7}, tmp_path / "best_netG.pt")
    assert weights.load_part("small_16k", "vocoder", tmp_path).state.keys() == STATE.keys()


def test_safetensors_files_are_read(tmp_path):
    save_file(STATE, tmp_path / "vae.safetensors")
    assert torch.equal(weights.load_part("tiny_16k", "vae", tmp_path).state["a.weight"], STATE["a.weight"])


def test_a_part_without_weights_is_empty():
    assert weights.load_part("tiny_16k", "vocoder").state == {}


def test_a_missing_file_is_named_with_the_places_and_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"mmaudio_large_44k_v2\.pth: not found .* ext_weights.*https://"):
        weights.load_part("large_44k_v2", "network", tmp_path)
    assert [file.names[0] for file in weights.missing("small_16k")] == [
        "mmaudio_small_16k.pth",
        "v1-16.pth",
        "best_netG.pt",
        "synchformer_state_dict.pth",
        "open_clip_model.safetensors",
    ]


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken"])
def test_a_broken_file_is_an_error_not_a_traceback(tmp_path, content):
    (tmp_path / "v1-16.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.load_part("small_16k", "vae", tmp_path)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "v1-16.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        weights.load_part("small_16k", "vae", tmp_path)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'small_16k'"):
        weights.find("smal_16k", "network")
