"""The adapter as one file: it stands alone, says what it is, and names no video."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import is_close, mini, mini_velocity
from mini_adapters import adapted_mini
from safetensors import safe_open

from mmaudio.errors import WeightsError
from mmaudio.lora.adapter import LoRAConfig, adapter_state
from mmaudio.lora.checkpoint import AdapterFile, attach_adapter, read_adapter, write_adapter
from mmaudio.lora.clip_names import hash_name, hash_names, is_listed
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.lora.single_file import write_single_file

SETTINGS = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "rank_pattern": {"ffn": 2}, "alpha_pattern": {"ffn": 3.0}}
VIDEOS = ["holiday at grandma's.mp4", "sub/secret.mkv"]
DATA = {"seconds": 8.0, "train": {"clips": 2, "videos": VIDEOS, "ids": ["holiday_0", "secret_0"]}}


@pytest.fixture(scope="module")
def trained():
    """An adapter with settings by layer, and the velocity with it."""
    network, model = adapted_mini(**SETTINGS)
    targets = sorted(lora_layers(model))
    adapter = AdapterFile(
        LoRAConfig(**SETTINGS), adapter_state(model), "small_44k", "ab" * 32, targets, 7, {"seed": 1}, DATA
    )
    return adapter, mini_velocity(network)


def test_it_stands_alone_beside_the_settings_of_another(trained, tmp_path):
    adapter, expected = trained
    path = tmp_path / "dogs_lora.safetensors"
    assert write_single_file(path, adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 99, "lora_alpha": 1}))
    read_back, network = read_adapter(path), mini()
    attach_adapter(network, read_back, "small_44k", adapter.base_sha256)
    assert is_close(mini_velocity(network), expected)
    assert read_back.metadata() == adapter.metadata() | {"data": read_back.data}
    assert not write_single_file(path, adapter), "it is there and whole"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="its checksum is wrong"):
        read_adapter(path)
    assert write_single_file(path, adapter) and read_adapter(path).step == 7


def test_its_header_says_what_it_is_and_how_to_use_it(trained, tmp_path):
    write_single_file(tmp_path / "dogs_lora.safetensors", trained[0])
    with safe_open(tmp_path / "dogs_lora.safetensors", "pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["mmaudio"])
    assert (header["licence"], header["base_model"], header["base_sha256"]) == ("CC-BY-NC-4.0", "small_44k", "ab" * 32)
    assert header["lora"]["rank"] == header["peft"]["r"] == 4 and header["config"] == {"seed": 1}
    assert metadata["modelspec.title"] == "dogs_lora" and metadata["modelspec.license"].startswith("CC-BY-NC-4.0")
    hint = metadata["modelspec.usage_hint"]
    assert "mmaudio-lora generate --video VIDEO --adapter dogs_lora.safetensors" in hint and "models/loras" in hint


def test_what_leaves_the_machine_names_no_video(trained, tmp_path):
    logging = {"log_every": 5, "sample_videos": ["films/holiday at grandma's.mp4"]}
    adapter = replace(trained[0], config={"logging": logging, "init_from": "secret.mkv/best_lora.pt"})
    write_adapter(tmp_path / "best_lora.pt", adapter)
    write_single_file(tmp_path / "dogs_lora.safetensors", adapter)
    files = [tmp_path / "dogs_lora.safetensors", *(tmp_path / "best_lora").iterdir()]
    assert len(files) == 3
    for file in files:
        content = file.read_bytes()
        assert not any(word in content for word in (b"holiday", b"grandma", b"secret")), file.name
    assert read_adapter(tmp_path / "best_lora.pt").data == DATA, "the experiment keeps them"
    data = read_adapter(files[0]).data["train"]
    assert data["clips"] == 2 and len(data["videos"]) == 2
    assert all(is_listed(video, data["videos"]) for video in VIDEOS) and not is_listed("other.mp4", data["videos"])


def test_a_hash_is_not_hashed_again(trained, tmp_path):
    write_single_file(tmp_path / "a.safetensors", trained[0])
    copy = read_adapter(tmp_path / "a.safetensors")
    assert write_single_file(tmp_path / "b.safetensors", replace(copy))
    assert read_adapter(tmp_path / "b.safetensors").data == copy.data
    assert hash_name(hash_name("dog.mp4")) == hash_name("dog.mp4") != "dog.mp4"
    assert torch.equal(*(next(iter(read_adapter(tmp_path / f"{n}.safetensors").state.values())) for n in "ab"))


def test_names_of_videos_that_an_earlier_adapter_was_trained_on_are_hashed_too():
    lineage = [{"exp_id": "first", "train": {"clips": 1, "videos": ["aunt_may.mp4"], "ids": ["aunt_may_0"]}}]
    hashed = hash_names({"seconds": 8.0, "train": {"clips": 2, "videos": ["dog.mp4"]}, "lineage": lineage})
    assert "aunt_may" not in str(hashed) and "dog" not in str(hashed)
    assert is_listed("aunt_may.mp4", hashed["lineage"][0]["train"]["videos"]) and hashed["train"]["clips"] == 2
