"""Adapters on the hub: fetched once, read from the cache, safetensors alone, and a line for every refusal."""

from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Repository, serve_hub, use_hub
from huggingface_hub import constants
from mini_adapters import zero_adapter_state

from mmaudio.errors import WeightsError
from mmaudio.lora.checkpoint import AdapterFile, adapter_files, read_adapter, write_adapter
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.hub_adapter import fetch_adapter, parse_hub_name
from mmaudio.lora.single_file import write_single_file
from mmaudio.lora.stack import adapter_name, read_stack
from mmaudio.lora.strength import AS_TRAINED

NAME = Path("anna/dogs")


def write_files(folder, step=3):
    """The files of an adapter: those of PEFT's folder, and the one that stands alone."""
    state = zero_adapter_state("tiny_16k", ["fused_blocks.0.attn.qkv"])
    targets = ["fused_blocks.0.attn.qkv"]
    lora = LoRAConfig(rank=1, alpha=2.0, dropout=0.0, target_modules=targets)
    write_adapter(folder / "best_lora.pt", AdapterFile(lora, state, "tiny_16k", "", targets, step))
    adapter = read_adapter(folder / "best_lora.pt")
    write_single_file(folder / "dogs.safetensors", adapter)
    files = {path.name: path.read_bytes() for path in (folder / "best_lora").iterdir()}
    return files, {"dogs.safetensors": (folder / "dogs.safetensors").read_bytes()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve_hub() as site:
        use_hub(site, tmp_path / "home", monkeypatch)
        repository = site.repositories["anna/dogs"] = Repository()
        for number, tag in enumerate(("v1", "v2")):
            (tmp_path / tag).mkdir()
            repository.refs[tag] = repository.commit(write_files(tmp_path / tag, number + 1)[0])
        yield site


def refused(path, offline=False):
    """The line that a user reads."""
    with pytest.raises(WeightsError) as error:
        read_stack([(Path(path), AS_TRAINED)], offline)
    assert str(error.value).isprintable() and len(str(error.value)) < 400
    return str(error.value)


def test_it_is_fetched_once_and_read_from_the_cache(hub):
    assert read_stack([(NAME, AS_TRAINED)], offline=False).adapters[0].file.step == 2
    assert read_stack([(Path("anna/dogs@v1"), AS_TRAINED)], offline=False).adapters[0].file.step == 1
    commit = hub.repositories["anna/dogs"].refs["v1"]
    assert read_stack([(Path(f"anna/dogs@{commit}"), AS_TRAINED)], offline=False).adapters[0].file.step == 1
    num_requests = len(hub.requests)
    assert read_adapter(NAME).step == 2 and read_adapter(Path("anna/dogs@v1")).step == 1
    assert [path.name for path in adapter_files(NAME)] == ["adapter_model.safetensors", "adapter_config.json"]
    assert adapter_name(Path("anna/dogs.v2@v1")) == "dogs.v2" and len(hub.requests) == num_requests


def test_without_a_connection_the_cached_revision_is_used(hub, monkeypatch):
    assert "not in the hub's cache" in refused(NAME, offline=True)
    assert hub.requests == []
    fetch_adapter(NAME, offline=False)
    num_requests = len(hub.requests)
    assert read_stack([(NAME, AS_TRAINED)], offline=True).adapters[0].file.step == 2
    assert len(hub.requests) == num_requests
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert read_stack([(NAME, AS_TRAINED)], offline=False).adapters[0].file.step == 2
    assert "http://127.0.0.1:9/anna/cats" in refused("anna/cats")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_stack([(NAME, AS_TRAINED)], offline=False).adapters[0].file.step == 2
    assert "HF_HUB_OFFLINE forbids to connect" in refused("anna/cats")


def test_what_is_here_wins_over_the_hub(hub, tmp_path):
    write_files_at = tmp_path / "anna"
    write_files_at.mkdir()
    (tmp_path / "v1" / "best_lora").rename(write_files_at / "dogs")
    assert read_stack([(NAME, AS_TRAINED)], offline=False).adapters[0].file.step == 1
    assert hub.requests == []


@pytest.mark.parametrize(
    "text", ["dogs.pt", "output/best_lora.pt", "/a/b", "../a/b", "a/b/c", "a/b.safetensors", "a b/c"]
)
def test_a_path_is_no_name_on_the_hub(text):
    assert parse_hub_name(Path(text)) is None


def test_a_repository_with_a_single_file_has_that(hub, tmp_path):
    (tmp_path / "single").mkdir()
    single = write_files(tmp_path / "single")[1]
    hub.repositories["anna/one"] = Repository()
    hub.repositories["anna/one"].commit({**single, "README.md": b"text", "old/dogs.safetensors": b"other"})
    assert read_stack([(Path("anna/one"), AS_TRAINED)], offline=False).adapters[0].file.step == 3
    assert read_adapter(Path("anna/one")).step == 3


def test_a_pickled_file_is_refused(hub, tmp_path):
    pickled = (tmp_path / "v1" / "best_lora.pt").read_bytes()
    hub.repositories["anna/old"] = Repository()
    hub.repositories["anna/old"].commit({"best_lora.pt": pickled, "adapter_model.bin": pickled})
    assert "best_lora.pt is not loaded: such a file may run code" in refused("anna/old")
    hub.repositories["anna/two"] = Repository()
    hub.repositories["anna/two"].commit({"a.safetensors": b"", "b.safetensors": b""})
    assert "2 safetensors files and no adapter_model.safetensors" in refused("anna/two")
    fetch_adapter(NAME, offline=False)
    snapshot = adapter_files(NAME)[0].parent
    (snapshot / "adapter_model.safetensors").unlink()
    (snapshot / "adapter_model.bin").write_bytes(pickled)
    with pytest.raises(WeightsError, match=r"no adapter_model\.safetensors of it|not in the hub's cache"):
        read_adapter(NAME)


def test_every_refusal_is_a_line(hub, monkeypatch):
    assert f"{hub.address}/anna/cats: it wants a token, or has no anna/cats" in refused("anna/cats")
    assert "it has no such revision" in refused("anna/dogs@v9")
    hub.repositories["anna/dogs"].private = True
    assert "it wants a token, or has no anna/dogs; set HF_TOKEN" in refused(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token is wrong" in refused(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "there is no anna/cats, or no right to see it" in refused("anna/cats")
    assert read_stack([(NAME, AS_TRAINED)], offline=False).adapters[0].file.step == 2


def test_a_cut_download_is_a_line_and_the_next_one_goes_on(hub, monkeypatch):
    hub.answers["/resolve/"] = 0
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert f"cannot be fetched from {hub.address}/anna/dogs: " in refused(NAME)
    hub.answers.clear()
    assert torch.equal(
        next(iter(read_stack([(NAME, AS_TRAINED)], offline=False).adapters[0].file.state.values())), torch.zeros(1, 96)
    )
