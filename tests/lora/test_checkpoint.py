"""Adapter files: what is written is what is read, by us and by peft; the wrong base is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import fill, mini, mini_inputs
from mini_adapters import zero_adapter_state
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, load_adapter_state
from mmaudio.lora.checkpoint import (
    AdapterFile,
    attach_adapter,
    check_base,
    read_adapter,
    shared_metadata,
    size_on_disk,
    write_adapter,
    write_synced,
)
from mmaudio.model.networks import build_network


def flow(network):
    with torch.no_grad():
        return network(**mini_inputs())


@pytest.mark.slow
def test_an_adapter_that_was_trained_here_is_read_without_peft(written):
    """peft takes seconds to import, and a job that goes on reads its step alone."""
    code = "import sys; from pathlib import Path; from mmaudio.lora.checkpoint import read_adapter\n"
    code += "print([read_adapter(Path(name)).step for name in sys.argv[1:]], 'peft' in sys.modules)"
    command = [sys.executable, "-c", code, written[1], written[1].with_suffix("")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[7, 7] False\n"


@pytest.fixture
def written(tmp_path):
    """An adapter that changes the miniature, its file, and the velocity with it."""
    network = mini()
    model = add_lora(network, LoRAConfig(rank=4, alpha=8.0, dropout=0.1))
    shapes = {key: tuple(value.shape) for key, value in adapter_state(model).items()}
    state = {key: torch.as_tensor(fill.fill_values(key, shape)).float() for key, shape in shapes.items()}
    load_adapter_state(model, state)
    targets = list(model.base_model.targeted_module_names)
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.1)
    adapter = AdapterFile(lora, state, "tiny_16k", "ab" * 32, targets, 7, {"seed": 1}, {"train": {"ids": ["a"]}})
    path = tmp_path / "best_lora.pt"
    write_adapter(path, adapter)
    return adapter, path, flow(network.eval())


def test_every_file_format_reads_back_the_same(written):
    adapter, path, _ = written
    folder = path.with_suffix("")
    for form in (path, folder, folder / "adapter_model.safetensors"):
        read_back = read_adapter(form)
        expected = adapter.metadata() if form == path else shared_metadata(adapter)
        assert read_back.metadata() == expected
        assert all(torch.equal(read_back.state[key], value) for key, value in adapter.state.items())
    assert not list(path.parent.glob(".*")), "temporary files are left"


def test_writing_twice_gives_the_same_bytes(written):
    adapter, path, _ = written
    files = [path, *path.with_suffix("").iterdir()]
    before = {file.name: file.read_bytes() for file in files}
    for _ in range(4):  # safetensors itself orders two entries of metadata by chance
        write_adapter(path, adapter)
        assert before == {file.name: file.read_bytes() for file in files}


def test_attached_computes_as_trained(written):
    adapter, path, expected = written
    network = mini()
    attach_adapter(network, read_adapter(path), "tiny_16k", adapter.base_sha256)
    assert torch.equal(flow(network), expected)


@pytest.mark.slow
def test_peft_reads_our_folder_and_we_read_pefts(written, tmp_path):
    _, path, expected = written
    network = mini()
    model = PeftModel.from_pretrained(network, str(path.with_suffix("")))
    assert torch.equal(flow(network.eval()), expected)
    model.save_pretrained(str(tmp_path / "by_peft"))
    read_back = read_adapter(tmp_path / "by_peft")
    again = mini()
    attach_adapter(again, read_back, "tiny_16k")
    assert torch.equal(flow(again), expected) and read_back.lora.rank == 4


@pytest.mark.parametrize(
    "model, sha256, expected", [("small_16k", "", "tiny_16k"), ("tiny_16k", "cd" * 32, "another file")]
)
def test_another_base_is_refused(written, model, sha256, expected):
    network = mini()
    with pytest.raises(WeightsError, match=expected):
        attach_adapter(network, read_adapter(written[1]), model, sha256)
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_files_that_are_not_adapters_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such adapter"):
        read_adapter(tmp_path / "best_lora.pt")
    for content in (b"", b"not a file of torch"):
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(WeightsError, match=r"broken\.pt"):
            read_adapter(tmp_path / "broken.pt")
    for stored, words in (
        ({"weight": torch.zeros(1)}, r"other\.pt: holds weight: an adapter of LoRA's A and B"),
        (mini().state_dict(), "a whole network, not an adapter"),
        ({"format": 1, "origin": {}, "state": {}}, r"this is the training state; .* best_lora\.pt"),
        ({"epoch": 3}, "holds epoch, "),
        ([1], "holds a list"),
        ({"adapter": {}, "format": 1}, "holds no weights"),
        ({"adapter": 3, "format": 1}, "not an adapter of this program"),
    ):
        torch.save(stored, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=words):
            read_adapter(tmp_path / "other.pt")


def test_invalid_settings_are_reported_with_the_file_name(written):
    path = written[1]
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"lora": stored["lora"] | {"rank": 0}, "peft": None}, path)
    with pytest.raises(WeightsError, match=r"best_lora\.pt: lora\.rank=0"):
        read_adapter(path)


def test_a_folder_without_an_adapter_suggests_the_one_inside(written):
    _, path, _ = written
    folder = path.parent / "exp"
    (folder / "lora_checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"exp: holds neither adapter_model\.safetensors nor adapter_model\.bin$"):
        read_adapter(folder)
    shutil.copytree(path.with_suffix(""), folder / "named")
    with pytest.raises(WeightsError, match=r"did you mean .*exp/named"):
        read_adapter(folder)
    shutil.copy(path, folder / "lora_checkpoints" / "best_lora.pt")
    for above in (folder, folder / "lora_checkpoints"):
        with pytest.raises(WeightsError, match=r"did you mean .*lora_checkpoints/best_lora\.pt"):
            read_adapter(above)


def test_an_adapter_file_needs_the_suffix_pt(written, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.pt"):
        write_adapter(tmp_path / "adapter", written[0])


def by_peft(folder, network=None, **settings):
    """A folder that peft alone wrote, of an adapter that changes the miniature; the network with it."""
    network = network or mini()
    model = get_peft_model(network, LoraConfig(**{"r": 4, "lora_alpha": 8} | settings))
    generator = torch.Generator().manual_seed(0)
    for key, weight in model.named_parameters():
        if "lora_B" in key or (weight.requires_grad and "lora_A" not in key):
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(str(folder), safe_serialization="pickled" not in str(folder))
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*fused_blocks\.\d+\.(attn\.qkv|ffn\.w[12])"},
        {"target_modules": ["qkv", "w3"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["qkv"], "exclude_modules": r"joint_blocks.*"},
        {"target_modules": ["qkv"], "layers_to_transform": [1], "layers_pattern": "fused_blocks"},
        {"target_modules": ["qkv", "w1"], "use_rslora": True},
        {"target_modules": ["qkv", "w1"], "rank_pattern": {"w1": 2}, "alpha_pattern": {r"fused_blocks\.0\..*": 3}},
        {"target_modules": ["qkv"], "use_dora": True},
        {"target_modules": ["qkv", "w1"], "bias": "all"},
        {"target_modules": ["qkv", "w1"], "bias": "lora_only", "use_rslora": True},
    ],
    ids=["regex", "ends", "all-linear", "excluded", "layers", "rslora", "patterns", "dora", "biases", "own biases"],
)
def test_folders_of_plain_peft_compute_as_in_peft(tmp_path, settings):
    network = by_peft(tmp_path / "by_peft", **settings)
    read_back = read_adapter(tmp_path / "by_peft")
    assert (read_back.base_model, read_back.base_sha256, read_back.possible_models) == ("", "", ())
    again = mini()
    attach_adapter(again, read_back, "small_16k")
    assert torch.equal(flow(again), flow(network)) and not torch.equal(flow(again), flow(mini()))
    write_adapter(tmp_path / "ours.pt", read_back)
    for form in (tmp_path / "ours.pt", tmp_path / "ours"):
        once_more = mini()
        attach_adapter(once_more, read_adapter(form), "small_16k")
        assert torch.equal(flow(once_more), flow(network)), form
    theirs = PeftModel.from_pretrained(mini(), str(tmp_path / "ours")).get_base_model().eval()
    for mine, weight in zip(network.parameters(), theirs.parameters(), strict=True):
        weight.requires_grad_(mine.requires_grad)  # decides which product torch takes, and so how it rounds
    assert torch.equal(flow(theirs), flow(network))


@pytest.mark.slow
def test_other_file_formats_of_peft_are_read(tmp_path):
    network = by_peft(tmp_path / "pickled", target_modules=["qkv"])
    assert (tmp_path / "pickled" / "adapter_model.bin").is_file()
    bare = {key: value for key, value in network.state_dict().items() if "lora_" in key}
    for name in ("keyed.pt", "bare.pt"):
        (tmp_path / name.removesuffix(".pt")).mkdir()
        shutil.copy(tmp_path / "pickled" / "adapter_config.json", tmp_path / name.removesuffix(".pt"))
    theirs = torch.load(tmp_path / "pickled" / "adapter_model.bin", weights_only=True)
    torch.save(theirs, tmp_path / "keyed" / "keyed.pt")
    torch.save(bare, tmp_path / "bare" / "bare.pt")
    for form in (tmp_path / "pickled", tmp_path / "keyed" / "keyed.pt", tmp_path / "bare" / "bare.pt"):
        again = mini()
        attach_adapter(again, read_adapter(form), "tiny_16k")
        assert torch.equal(flow(again), flow(network)), form
    for lonely in ("lonely.pt", "lonely.safetensors"):
        (torch.save if lonely.endswith("pt") else save_file)(theirs, tmp_path / lonely)
        with pytest.raises(WeightsError, match=rf"{lonely}: its lora_alpha is unknown: put peft's adapter_config"):
            read_adapter(tmp_path / lonely)


@pytest.mark.slow
def test_unsupported_methods_of_peft_are_named(tmp_path):
    state = by_peft(tmp_path / "dora", target_modules=["qkv"], use_dora=True).state_dict()
    magnitudes = {key: value for key, value in state.items() if "magnitude" in key}
    assert magnitudes
    torch.save(magnitudes, tmp_path / "dora" / "half.pt")
    with pytest.raises(WeightsError, match=r"half\.pt: holds no weights"):
        read_adapter(tmp_path / "dora" / "half.pt")
    by_peft(tmp_path / "whole", target_modules=["qkv"], modules_to_save=["final_layer"])
    with pytest.raises(WeightsError, match=r"whole: holds .*final_layer"):
        read_adapter(tmp_path / "whole")
    settings = (tmp_path / "dora" / "adapter_config.json").read_text()
    (tmp_path / "dora" / "adapter_config.json").write_text(settings, encoding="utf-8-sig")  # as an editor may leave it
    assert read_adapter(tmp_path / "dora").lora.use_dora
    odd = json.loads(settings) | {"rank_pattern": {"(": 8}}
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps(odd))
    with pytest.raises(WeightsError, match=r"dora: adapter_config\.json is invalid: .* is not a valid pattern"):
        read_adapter(tmp_path / "dora")
    (tmp_path / "dora" / "adapter_config.json").write_text("{broken")
    with pytest.raises(WeightsError, match="dora: "):
        read_adapter(tmp_path / "dora")


@pytest.mark.slow
def test_pefts_configuration_takes_precedence(written):
    adapter, path, expected = written
    config = path.with_suffix("") / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"lora_alpha": 0.5 * settings["lora_alpha"]}))
    read_back = read_adapter(path.with_suffix(""))
    assert (read_back.lora.alpha, read_back.lora.target_modules) == (4.0, adapter.lora.target_modules)
    network = mini()
    attach_adapter(network, read_back, "tiny_16k")
    assert not torch.allclose(flow(network), expected)


@pytest.mark.slow
def test_old_files_without_pefts_configuration_are_read(written):
    adapter, path, expected = written
    stored = torch.load(path, weights_only=True)
    assert stored.pop("peft")["lora_alpha"] == 8
    torch.save(stored, path)
    (path.with_suffix("") / "adapter_config.json").unlink()
    for form in (path, path.with_suffix("") / "adapter_model.safetensors"):
        read_back = read_adapter(form)
        assert read_back.metadata() == (adapter.metadata() if form == path else shared_metadata(adapter))
        network = mini()
        attach_adapter(network, read_back, "tiny_16k")
        assert torch.equal(flow(network), expected)
    torch.save(stored | {"format": 2}, path)
    with pytest.raises(WeightsError, match="format 2; this version reads 1"):
        read_adapter(path)


def foreign(folder, model, base=None):
    """A folder without our header, in the shapes of a released model."""
    folder.mkdir()
    config = LoraConfig(r=1, lora_alpha=2, target_modules="all-linear", base_model_name_or_path=base)
    config.save_pretrained(str(folder))
    save_file(zero_adapter_state(model), folder / "adapter_model.safetensors", {"format": "pt"})
    return read_adapter(folder)


@pytest.mark.slow
def test_shapes_identify_the_base_of_a_file_without_its_name(tmp_path):
    read_back = foreign(tmp_path / "a", "medium_44k")
    assert (read_back.base_model, read_back.possible_models) == ("medium_44k", ("medium_44k",))
    check_base(read_back, "medium_44k")
    for other in ("small_16k", "large_44k"):  # all of it fits large_44k's first blocks
        with pytest.raises(WeightsError, match=f"does not fit {other}: these are the shapes of medium_44k. Name that"):
            check_base(read_back, other)
    several = foreign(tmp_path / "b", "small_16k")
    assert (several.base_model, several.possible_models) == ("", ("small_16k", "small_44k"))
    check_base(several, "small_44k")
    with pytest.raises(WeightsError, match="these are the shapes of small_16k or small_44k"):
        check_base(several, "large_44k_v2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("small_44k", "small_44k"),
        ("weights/mmaudio_small_44k.pth", "small_44k"),
        ("hkchengrex/MMAudio", ""),
        ("", ""),
    ],
)
def test_a_known_base_name_in_pefts_configuration_is_used(tmp_path, name, base):
    assert foreign(tmp_path / "a", "small_44k", name).base_model == base


@pytest.mark.slow
def test_wrong_shapes_with_the_right_base_name_are_refused(written):
    adapter, _, _ = written
    with torch.device("meta"):
        small = build_network("small_16k")
    wrong = AdapterFile(adapter.lora, zero_adapter_state("medium_44k"), "small_16k", "")
    with pytest.raises(WeightsError, match="does not fit small_16k: these are the shapes of medium_44k; name that"):
        attach_adapter(small, wrong, "small_16k")
    unknown = AdapterFile(adapter.lora, adapter.state, "small_16k", "")
    with pytest.raises(WeightsError, match=r"attn\.qkv is 1344 x 448, not 192 x 64 and \d+ more; is it for"):
        attach_adapter(small, unknown, "small_16k")
    assert not any("lora" in name for name, _ in small.named_parameters())


def test_the_size_on_disk_is_that_of_file_or_folder(written):
    _, path, _ = written
    assert size_on_disk(path) == len(path.read_bytes())
    folder = path.with_suffix("")
    assert size_on_disk(folder) == sum(len(file.read_bytes()) for file in folder.iterdir())
    assert sum(value.nbytes for value in load_file(folder / "adapter_model.safetensors").values()) < size_on_disk(path)


@pytest.mark.parametrize("content", [b"\0\0\0 ftypisom", b"", b"<html>not found</html>", b"PK\x03\x04 cut"])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "best_lora.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"best_lora\.pt: cannot be read as an adapter \(.+\); copy") as refused:
        read_adapter(tmp_path / "best_lora.pt")
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)


@pytest.mark.slow
def test_no_flipped_bit_of_an_adapter_goes_unnoticed(written, tmp_path):
    _, path, _ = written
    whole, copy, refused = path.read_bytes(), tmp_path / "best_lora.pt", 0
    state = read_adapter(path).state
    for place in range(0, len(whole), len(whole) // 97):
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            read_state = read_adapter(copy).state
        except WeightsError as error:
            assert "cannot be read as an adapter" in str(error)
            refused += 1
        else:  # a byte that only pads
            assert read_state.keys() == state.keys() and all(
                torch.equal(read_state[key], value) for key, value in state.items()
            )
    assert refused > 80


def test_a_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    path, synced = tmp_path / "state.pt", []
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_size, path.read_bytes())))
    write_synced(path, b"newer")
    assert synced == [(5, b"old")] and path.read_bytes() == b"newer" and list(tmp_path.iterdir()) == [path]
