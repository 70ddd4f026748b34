"""An adapter on the hub in the commands and the Python calls, and the commands as a user runs them."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hub_server import Repository, serve_hub, use_hub
from mini_adapters import write_tiny_adapter
from safetensors.torch import load_file

from mmaudio.api import load_pretrained_with_lora
from mmaudio.commands.__main__ import main
from mmaudio.errors import WeightsError
from mmaudio.lora.checkpoint import read_adapter, write_adapter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_adapter(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def hub(weights, tmp_path, monkeypatch):
    """The hub with an adapter, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    with serve_hub() as site:
        use_hub(site, tmp_path / "home", monkeypatch)
        repository = site.repositories["anna/dogs"] = Repository()
        repository.refs["v1"] = repository.commit(
            {path.name: path.read_bytes() for path in (weights / "best_lora").iterdir()}
        )
        yield site


def test_merging_takes_it_and_names_the_file_after_it(weights, hub, tmp_path):
    flags = ["--weights", str(weights)]
    assert main(["merge", str(weights / "best_lora.pt"), *flags, "--output", "local.safetensors"]) == 0
    assert main(["merge", "anna/dogs@v1", *flags]) == 0
    local, merged = (load_file(tmp_path / name) for name in ("local.safetensors", "dogs_tiny_16k.safetensors"))
    assert all(torch.equal(local[key], value) for key, value in merged.items())
    with pytest.raises(WeightsError, match="anna/cats: no such file or folder here, and not in the hub's cache"):
        main(["merge", "anna/cats", *flags, "--offline"])


def test_python_calls_take_it(weights, hub):
    model = load_pretrained_with_lora(lora_checkpoint=[("anna/dogs@v1", 0.5)], weights=weights, device="cpu")
    assert "anna/dogs@v1" in model.parameter_info()
    hub.answers = {"GET": 500}
    again = load_pretrained_with_lora("tiny_16k", "anna/dogs@v1", weights=weights, device="cpu", offline=True)
    expected = load_pretrained_with_lora("tiny_16k", weights / "best_lora.pt", weights=weights, device="cpu")
    states = again.state_dict(), expected.state_dict()
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_generation_takes_it_and_says_which(weights, hub, tmp_path):
    local = replace(read_adapter(weights / "best_lora.pt"), base_sha256="")
    write_adapter(tmp_path / "best_lora.pt", local)
    files = {path.name: path.read_bytes() for path in (tmp_path / "best_lora").iterdir()}
    hub.repositories["anna/cats"] = Repository()
    hub.repositories["anna/cats"].commit(files)
    flags = ["--prompt", "rain", "--seconds", "4", "--steps", "1", "--device", "cpu", "--model", "tiny_16k"]
    sounds = []
    for number, name in enumerate(("best_lora.pt", "anna/cats")):
        assert main(["generate", *flags, "--adapter", name, "--output", f"{number}.wav"]) == 0
        sounds.append((tmp_path / f"{number}.wav").read_bytes()[-100_000:])
    assert sounds[0] == sounds[1]


def test_a_refusal_is_one_line_for_the_user(weights, hub, tmp_path):
    folder = tmp_path / "output" / "dogs" / "lora_checkpoints"
    folder.mkdir(parents=True)
    write_adapter(folder / "best_lora.pt", read_adapter(weights / "best_lora.pt"))
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "mmaudio.commands", "push", "anna/birds", "output/dogs", "--token", "hf_wrong"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        f"error: anna/birds: cannot be pushed to {hub.address}/anna/birds: the token is wrong or has ended; set "
        "HF_TOKEN to another, or log in again with `hf auth login`\n",
    )
