"""Weights files: where they are looked for, what is fetched, and what is said of files that are absent or broken."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest
from huggingface_hub import constants
from safetensors.torch import save_file
from web import serving

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.spec import MODELS
from mmaudio.utils import checksums
from mmaudio.weights import registry as released
from mmaudio.weights import store as weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3)}
VAE, NETWORK = "v1-16.pth", "mmaudio_small_16k.pth"


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """A working folder and a cache of the test's own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(checksums, "LARGE", 100)


def put(path, state=STATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    os.utime(path, (1e9, 1e9))
    return path


def test_every_part_of_every_model_has_a_file_or_needs_none():
    for name, spec in MODELS.items():
        for part in released.PARTS:
            file = released.weights_file(name, part)
            assert (file is None) == (part == "vocoder" and spec.codec.vocoder == "griffin_lim")
            assert file is None or spec.embedded or (file.size and bool(file.md5) == (file.repository is None))


@pytest.mark.parametrize(
    ("model", "part", "keys"),
    [
        *[(name, "network", f"network_{name}") for name, spec in MODELS.items() if not spec.embedded],
        *[(f"small_{mode}", part, f"{part}_{mode}") for part in ("vae", "vocoder") for mode in ("16k", "44k")],
        ("small_16k", "clip", "clip_vit_h_14_384"),
    ],
)
def test_sizes_are_those_of_the_released_keys(model, part, keys):
    values = sum(np.prod(shape) for _, shape in manifest(keys).values())
    assert released.weights_file(model, part).size == pytest.approx(4 * values, rel=0.005)


def test_places_are_looked_in_in_order(tmp_path):
    places = [tmp_path / "mine", Path("weights"), Path("ext_weights"), weights.cache()]
    places[0].mkdir()
    for place in reversed(places):
        put(place / NETWORK)
        assert weights.find("small_16k", "network", tmp_path / "mine") == place / NETWORK
    loaded = weights.load_part("small_16k", "network", tmp_path / "mine")
    assert loaded.path.parent.name == "mine"
    assert torch.equal(loaded.state["a.weight"], STATE["a.weight"])
    assert loaded.identity == hashlib.sha256(loaded.path.read_bytes()).hexdigest()


def test_a_folder_of_weights_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match="typo: not there; a folder of weights is expected"):
        weights.missing("small_16k", tmp_path / "typo")


def test_a_vocoder_file_keeps_its_weights_under_generator(tmp_path):
    put(tmp_path / "best_netG.pt", {"generator": STATE, "steps": 7})
    assert weights.load_part("small_16k", "vocoder", tmp_path).state.keys() == STATE.keys()


def test_files_of_old_torch_are_read(tmp_path):
    torch.save({"generator": STATE}, tmp_path / "best_netG.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(weights.load_part("small_16k", "vocoder", tmp_path).state["a.weight"], STATE["a.weight"])


def test_safetensors_files_are_read(tmp_path):
    save_file(STATE, tmp_path / "vae.safetensors")
    assert torch.equal(weights.load_part("tiny_16k", "vae", tmp_path).state["a.weight"], STATE["a.weight"])


def test_a_part_without_weights_is_empty():
    found = weights.load_part("tiny_16k", "vocoder")
    assert found.state == {} and found.identity == hashlib.sha256(b"").hexdigest()


def test_a_missing_file_is_named_with_the_places_and_the_source(tmp_path):
    places = rf"{tmp_path}.*, weights, ext_weights, .*assets/mmaudio, .*hub\."
    with pytest.raises(WeightsError, match=rf"mmaudio_large_44k_v2\.pth: not found .*{places}.*https://"):
        weights.load_part("large_44k_v2", "network", tmp_path)
    assert [file.name for file in weights.missing("small_16k")] == [
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
        weights.load_part("small_16k", "vae", tmp_path)
    assert (tmp_path / VAE).read_bytes() == content


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    put(tmp_path / VAE, {"epoch": 3})
    with pytest.raises(WeightsError, match="no state dict"):
        weights.load_part("small_16k", "vae", tmp_path)


def test_a_file_that_could_run_code_is_refused(tmp_path):
    torch.save({"a": Path("x")}, tmp_path / VAE)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        weights.load_part("small_16k", "vae", tmp_path)


def test_a_cut_or_changed_copy_is_never_used_and_stays(tmp_path):
    whole = put(tmp_path / VAE, {"a": torch.arange(50_000.0)}).read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content, words in ((whole[:-1000], "cannot be read"), (bytes(changed), "corrupt")):
        (tmp_path / VAE).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{tmp_path}/v1-16\.pth.*{words}"):
            weights.load_part("small_16k", "vae", tmp_path)
        assert (tmp_path / VAE).read_bytes() == content


def test_a_users_own_file_is_used_and_said_to_be_one(tmp_path, capsys):
    put(tmp_path / VAE)
    weights.fetch("small_16k", ("vae",), tmp_path, offline=True)
    assert "is not the released file (MD5" in capsys.readouterr().err
    assert weights.load_part("small_16k", "vae", tmp_path).state.keys() == STATE.keys()


def test_a_corrupt_file_in_the_cache_is_an_error_offline(tmp_path):
    kept = put(weights.cache() / VAE).read_bytes()
    for call in (weights.load_part, lambda model, part: weights.fetch(model, (part,), offline=True)):
        with pytest.raises(WeightsError, match=r"corrupt \(MD5"):
            call("small_16k", "vae")
    assert (weights.cache() / VAE).read_bytes() == kept


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'small_16k'"):
        weights.find("smal_16k", "network")


def saved(tmp_path, state):
    return put(tmp_path / "made.pth", state).read_bytes()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server in place of GitHub, with the 16 kHz VAE."""
    content = saved(tmp_path, STATE)
    entry = (VAE, 1, hashlib.md5(content).hexdigest(), None)
    with serving(files={f"/{VAE}": content}) as made:
        monkeypatch.setattr(released, "RELEASE", made.address)
        monkeypatch.setitem(released._ON_GITHUB, ("vae", "16k"), entry)
        yield made


def test_what_is_absent_is_fetched_into_the_cache_once(site):
    for _ in range(2):
        weights.fetch("small_16k", ("vae",))
    assert len(site.asked) == 1 and weights.find("small_16k", "vae") == weights.cache() / VAE
    assert torch.equal(weights.load_part("small_16k", "vae").state["a.weight"], STATE["a.weight"])


def test_what_lies_in_a_folder_is_not_fetched(site):
    put(Path("ext_weights") / VAE)
    weights.fetch("small_16k", ("vae",))
    assert not site.asked


def test_a_corrupt_file_in_the_cache_is_kept_aside_and_fetched_again(site, capsys):
    bad = put(weights.cache() / VAE, {"b": torch.zeros(9)}).read_bytes()
    weights.fetch("small_16k", ("vae",))
    assert "corrupt" in capsys.readouterr().out
    (aside,) = weights.cache().glob(f"{VAE}.corrupt-*")
    assert aside.read_bytes() == bad and len(site.asked) == 1


def test_offline_says_what_is_missing_where_it_was_looked_for_and_where_to_get_it(site, tmp_path):
    with pytest.raises(WeightsError) as error:
        weights.fetch("small_16k", ("vae", "clip"), tmp_path, offline=True)
    said = str(error.value)
    for words in (
        "2 weights files of small_16k",
        f"{VAE}  from {site.address}/{VAE}",
        "apple/DFN5B-CLIP-ViT-H-14-384",
        str(tmp_path),
        "ext_weights",
        str(weights.cache()),
        "--offline",
    ):
        assert words in said
    assert not site.asked and not weights.cache().exists()


def test_no_room_is_said_before_anything_is_fetched(site, monkeypatch):
    monkeypatch.setitem(released._ON_GITHUB, ("vae", "16k"), (VAE, 10**9, "0", None))
    with pytest.raises(WeightsError, match=r"1000000\.0 GB or more are needed .* HF_HOME"):
        weights.fetch("small_16k", ("vae",))
    assert not site.asked


HUB_SCRIPT = """
from mmaudio import cli, weights
def main(arguments):
    weights.fetch("small_44k", ("vocoder", "clip"), offline="--offline" in arguments)
    print(weights.identity("small_44k", "vocoder"), *weights.load_part("small_44k", "vocoder").state)
    print(weights.find("small_44k", "clip").name, *weights.load_part("small_44k", "clip").state)
cli.run(main)
"""


def through_the_hub(address, home, *arguments):
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    del environment["HF_HUB_OFFLINE"]
    return subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_vocoder_and_clip_come_through_the_hub_s_client_and_cache(tmp_path):
    vocoder, clip = saved(tmp_path, {"generator": STATE}), saved(tmp_path, {"logit_scale": torch.zeros(())})
    repositories = "nvidia/bigvgan_v2_44khz_128band_512x", "apple/DFN5B-CLIP-ViT-H-14-384"
    paths = [
        f"/{name}/resolve/main/{file}"
        for name, file in zip(repositories, ("bigvgan_generator.pt", "open_clip_pytorch_model.bin"), strict=True)
    ]
    with serving(files=dict(zip(paths, (vocoder, clip), strict=True))) as site:
        first = through_the_hub(site.address, tmp_path / "home")
        assert first.returncode == 0, first.stderr
        asked = len(site.asked)
        again = through_the_hub(site.address, tmp_path / "home", "--offline")
        assert len(site.asked) == asked
    expected = [f"{hashlib.sha256(vocoder).hexdigest()} a.weight", "open_clip_pytorch_model.bin logit_scale"]
    assert first.stdout.splitlines()[-2:] == again.stdout.splitlines() == expected
    nobody = through_the_hub(site.address, tmp_path / "other")
    assert nobody.returncode == 1 and nobody.stderr.count("error: bigvgan_generator.pt: cannot be fetched") == 1
    assert "Traceback" not in nobody.stderr


@pytest.mark.slow
def test_the_hub_without_the_file_is_one_line(tmp_path):
    with serving() as site:
        result = through_the_hub(site.address, tmp_path / "home")
    assert result.returncode == 1 and "error: bigvgan_generator.pt: not in http://127" in result.stderr


def test_a_blob_of_the_hub_that_went_bad_is_refused(tmp_path):
    name = hashlib.sha256(b"what it was").hexdigest()
    folder = Path(constants.HF_HUB_CACHE) / "models--nvidia--bigvgan_v2_44khz_128band_512x"
    put(folder / "blobs" / name, {"generator": STATE})
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "bigvgan_generator.pt").symlink_to(folder / "blobs" / name)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    with pytest.raises(WeightsError, match=rf"corrupt \(SHA-256 .*, the hub says {name}"):
        weights.load_part("small_44k", "vocoder")
    assert (folder / "blobs" / name).is_file()


def test_checksums_are_noted_in_the_cache(tmp_path):
    path = put(tmp_path / NETWORK)
    identity = weights.identity("small_16k", "network", tmp_path)
    (note,) = (weights.cache() / "checksums").iterdir()
    assert json.loads(note.read_text())["sha256"] == identity == hashlib.sha256(path.read_bytes()).hexdigest()
