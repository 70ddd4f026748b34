"""Weights files: where they are looked for, what is fetched, and what is said of files that are absent or broken."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from file_server import serve_files
from helpers import manifest
from hub_server import serve_hub, use_hub
from huggingface_hub import constants
from safetensors.torch import save_file

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.spec import MODELS
from mmaudio.utils import checksums
from mmaudio.weights import registry
from mmaudio.weights import store as weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3)}
VAE, NETWORK = "v1-16.pth", "mmaudio_small_16k.pth"


@pytest.fixture(autouse=True)
def empty_folders(tmp_path, monkeypatch):
    """A working folder and a cache of the test's own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(checksums, "MIN_CACHED_BYTES", 100)


def put(path, state=STATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    os.utime(path, (1e9, 1e9))
    return path


def test_every_component_of_every_model_has_a_file_or_needs_none():
    for name, spec in MODELS.items():
        for component in registry.COMPONENTS:
            file = registry.weights_file(name, component)
            assert (file is None) == (component == "vocoder" and spec.codec.vocoder == "griffin_lim")
            assert file is None or spec.bundled or (file.size and bool(file.md5) == (file.repository is None))


@pytest.mark.parametrize(
    ("model", "component", "keys"),
    [
        *[(name, "network", f"network_{name}") for name, spec in MODELS.items() if not spec.bundled],
        *[
            (f"small_{mode}", component, f"{component}_{mode}")
            for component in ("vae", "vocoder")
            for mode in ("16k", "44k")
        ],
        ("small_16k", "clip", "clip_vit_h_14_384"),
    ],
)
def test_sizes_are_those_of_the_released_keys(model, component, keys):
    values = sum(np.prod(shape) for _, shape in manifest(keys).values())
    assert registry.weights_file(model, component).size == pytest.approx(4 * values, rel=0.005)


def test_folders_are_searched_in_order(tmp_path):
    places = [tmp_path / "mine", Path("weights"), Path("ext_weights"), weights.cache_folder()]
    places[0].mkdir()
    for place in reversed(places):
        put(place / NETWORK)
        assert weights.find_file("small_16k", "network", tmp_path / "mine") == place / NETWORK
    loaded = weights.load_weights("small_16k", "network", tmp_path / "mine")
    assert loaded.path.parent.name == "mine"
    assert torch.equal(loaded.state_dict["a.weight"], STATE["a.weight"])
    assert loaded.sha256 == hashlib.sha256(loaded.path.read_bytes()).hexdigest()


def test_a_missing_weights_folder_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="typo: not there; a folder of weights is expected"):
        weights.missing_files("small_16k", tmp_path / "typo")


def test_a_vocoder_file_has_its_weights_under_generator(tmp_path):
    put(tmp_path / "best_netG.pt", {"generator": STATE, "steps": 7})
    assert weights.load_weights("small_16k", "vocoder", tmp_path).state_dict.keys() == STATE.keys()


def test_files_of_old_torch_are_read(tmp_path):
    torch.save({"generator": STATE}, tmp_path / "best_netG.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(weights.load_weights("small_16k", "vocoder", tmp_path).state_dict["a.weight"], STATE["a.weight"])


def test_safetensors_files_are_read(tmp_path):
    save_file(STATE, tmp_path / "vae.safetensors")
    assert torch.equal(weights.load_weights("tiny_16k", "vae", tmp_path).state_dict["a.weight"], STATE["a.weight"])


def test_a_model_without_weights_has_an_empty_state():
    loaded = weights.load_weights("tiny_16k", "vocoder")
    assert loaded.state_dict == {} and loaded.sha256 == hashlib.sha256(b"").hexdigest()


def test_a_missing_file_is_an_error_with_folders_and_source(tmp_path):
    places = rf"{tmp_path}.*, weights, ext_weights, .*assets/mmaudio, .*hub\."
    with pytest.raises(WeightsError, match=rf"mmaudio_large_44k_v2\.pth: not found .*{places}.*https://"):
        weights.load_weights("large_44k_v2", "network", tmp_path)
    assert [file.name for file in weights.missing_files("small_16k")] == [
        NETWORK,
        VAE,
        "best_netG.pt",
        "synchformer_state_dict.pth",
        "open_clip_model.safetensors",
    ]


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken"])
def test_a_broken_file_is_an_error_not_a_traceback(tmp_path, content):
    (tmp_path / VAE).write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.load_weights("small_16k", "vae", tmp_path)
    assert (tmp_path / VAE).read_bytes() == content


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    put(tmp_path / VAE, {"epoch": 3})
    with pytest.raises(WeightsError, match="no state dict"):
        weights.load_weights("small_16k", "vae", tmp_path)


def test_a_file_that_could_run_code_is_refused(tmp_path):
    torch.save({"a": Path("x")}, tmp_path / VAE)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        weights.load_weights("small_16k", "vae", tmp_path)


def test_a_truncated_or_changed_copy_is_refused_and_stays(tmp_path):
    whole = put(tmp_path / VAE, {"a": torch.arange(50_000.0)}).read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content, words in ((whole[:-1000], "cannot be read"), (bytes(changed), "corrupt")):
        (tmp_path / VAE).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{tmp_path}/v1-16\.pth.*{words}"):
            weights.load_weights("small_16k", "vae", tmp_path)
        assert (tmp_path / VAE).read_bytes() == content


def test_a_users_file_is_used_and_reported(tmp_path, capsys):
    put(tmp_path / VAE)
    weights.fetch_files("small_16k", ("vae",), tmp_path, offline=True)
    assert "is not the released file (MD5" in capsys.readouterr().err
    assert weights.load_weights("small_16k", "vae", tmp_path).state_dict.keys() == STATE.keys()


def test_a_corrupt_cached_file_is_an_error_offline(tmp_path):
    content = put(weights.cache_folder() / VAE).read_bytes()
    for call in (weights.load_weights, lambda model, component: weights.fetch_files(model, (component,), offline=True)):
        with pytest.raises(WeightsError, match=r"corrupt \(MD5"):
            call("small_16k", "vae")
    assert (weights.cache_folder() / VAE).read_bytes() == content


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'small_16k'"):
        weights.find_file("smal_16k", "network")


def saved(tmp_path, state):
    return put(tmp_path / "weights.pth", state).read_bytes()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server in place of GitHub, with the 16 kHz VAE."""
    content = saved(tmp_path, STATE)
    with serve_files(files={f"/{VAE}": content}) as server:
        file = registry.WeightsFile((VAE,), f"{server.address}/{VAE}", len(content), hashlib.md5(content).hexdigest())
        monkeypatch.setitem(registry.RELEASED_FILES, ("vae", "16k"), file)
        yield server


def test_an_absent_file_is_downloaded_into_the_cache_once(site):
    for _ in range(2):
        weights.fetch_files("small_16k", ("vae",))
    assert len(site.requests) == 1 and weights.find_file("small_16k", "vae") == weights.cache_folder() / VAE
    assert torch.equal(weights.load_weights("small_16k", "vae").state_dict["a.weight"], STATE["a.weight"])


def test_a_file_in_the_folder_is_not_downloaded(site):
    put(Path("ext_weights") / VAE)
    weights.fetch_files("small_16k", ("vae",))
    assert not site.requests


def test_a_corrupt_cached_file_is_moved_aside_and_downloaded_again(site, capsys):
    bad = put(weights.cache_folder() / VAE, {"b": torch.zeros(9)}).read_bytes()
    weights.fetch_files("small_16k", ("vae",))
    assert "corrupt" in capsys.readouterr().out
    (aside,) = weights.cache_folder().glob(f"{VAE}.corrupt-*")
    assert aside.read_bytes() == bad and len(site.requests) == 1


def test_offline_a_missing_file_is_an_error_with_folders_and_source(site, tmp_path):
    with pytest.raises(WeightsError) as error:
        weights.fetch_files("small_16k", ("vae", "clip"), tmp_path, offline=True)
    message = str(error.value)
    for words in (
        "2 weights files of small_16k",
        f"{VAE}  from {site.address}/{VAE}",
        "apple/DFN5B-CLIP-ViT-H-14-384",
        str(tmp_path),
        "ext_weights",
        str(weights.cache_folder()),
        "--offline",
    ):
        assert words in message
    assert not site.requests and not weights.cache_folder().exists()


def test_too_little_disk_space_is_an_error_before_downloading(site, monkeypatch):
    file = registry.WeightsFile((VAE,), f"{site.address}/{VAE}", 10**15, "0")
    monkeypatch.setitem(registry.RELEASED_FILES, ("vae", "16k"), file)
    with pytest.raises(WeightsError, match=r"1000000\.0 GB or more are needed .* HF_HOME"):
        weights.fetch_files("small_16k", ("vae",))
    assert not site.requests


HUB_SCRIPT = """
from mmaudio import cli
from mmaudio.weights import store as weights
def main(arguments):
    weights.fetch_files("small_44k", ("vocoder", "clip"), offline="--offline" in arguments)
    print(weights.component_sha256("small_44k", "vocoder"), *weights.load_weights("small_44k", "vocoder").state_dict)
    print(weights.find_file("small_44k", "clip").name, *weights.load_weights("small_44k", "clip").state_dict)
cli.run(main)
"""


def through_the_hub(address, home, *arguments):
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    del environment["HF_HUB_OFFLINE"]
    return subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_vocoder_and_clip_are_downloaded_by_the_hubs_client(tmp_path):
    vocoder, clip = saved(tmp_path, {"generator": STATE}), saved(tmp_path, {"logit_scale": torch.zeros(())})
    repositories = "nvidia/bigvgan_v2_44khz_128band_512x", "apple/DFN5B-CLIP-ViT-H-14-384"
    paths = [
        f"/{name}/resolve/main/{file}"
        for name, file in zip(repositories, ("bigvgan_generator.pt", "open_clip_pytorch_model.bin"), strict=True)
    ]
    with serve_files(files=dict(zip(paths, (vocoder, clip), strict=True))) as site:
        first = through_the_hub(site.address, tmp_path / "home")
        assert first.returncode == 0, first.stderr
        num_requests = len(site.requests)
        again = through_the_hub(site.address, tmp_path / "home", "--offline")
        assert len(site.requests) == num_requests
    expected = [f"{hashlib.sha256(vocoder).hexdigest()} a.weight", "open_clip_pytorch_model.bin logit_scale"]
    assert first.stdout.splitlines()[-2:] == again.stdout.splitlines() == expected


def test_a_hub_that_does_not_answer_is_an_error_with_its_address(tmp_path, monkeypatch):
    with serve_hub() as site:
        pass
    use_hub(site, tmp_path / "home", monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's tries: 23 s
    with pytest.raises(WeightsError, match=rf"bigvgan_generator\.pt: cannot be fetched from {site.address}/nvidia"):
        weights.fetch_files("small_44k", ("vocoder",))


@pytest.mark.slow
def test_a_file_missing_on_the_hub_is_one_line(tmp_path):
    with serve_files() as site:
        result = through_the_hub(site.address, tmp_path / "home")
    assert result.returncode == 1 and "error: bigvgan_generator.pt: not in http://127" in result.stderr


def test_a_corrupt_hub_blob_is_refused(tmp_path):
    name = hashlib.sha256(b"what it was").hexdigest()
    folder = Path(constants.HF_HUB_CACHE) / "models--nvidia--bigvgan_v2_44khz_128band_512x"
    put(folder / "blobs" / name, {"generator": STATE})
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "bigvgan_generator.pt").symlink_to(folder / "blobs" / name)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    with pytest.raises(WeightsError, match=rf"corrupt \(SHA-256 .*, the hub says {name}"):
        weights.load_weights("small_44k", "vocoder")
    assert (folder / "blobs" / name).is_file()


def test_checksums_are_stored_in_the_cache(tmp_path):
    path = put(tmp_path / NETWORK)
    identity = weights.component_sha256("small_16k", "network", tmp_path)
    (note,) = (weights.cache_folder() / "checksums").iterdir()
    assert json.loads(note.read_text())["sha256"] == identity == hashlib.sha256(path.read_bytes()).hexdigest()
