"""The Python call: load, look, merge; generating needs the shipped model and is tested with it."""

import copy
import dataclasses
import os

import numpy as np
import pytest
import torch
from mini_adapters import TINY_TARGETS, write_tiny_adapter, zero_adapter_state
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from mmaudio.api import load_pretrained_with_lora, save_state_dict
from mmaudio.errors import ConfigError, MMAudioError, WeightsError
from mmaudio.lora.adapter import LoRAConfig, adapter_state
from mmaudio.lora.checkpoint import read_adapter, write_adapter
from mmaudio.media.audio_file import write_audio
from mmaudio.media.mux import mux_audio, write_video
from mmaudio.model.networks import build_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_adapter(tmp_path_factory.mktemp("weights"))


def load(folder, **options):
    return load_pretrained_with_lora("tiny_16k", folder / "best_lora.pt", weights=folder, device="cpu", **options)


def velocity(network):
    generator = torch.Generator().manual_seed(1)
    spec = network.spec
    shapes = [
        (spec.latent_tokens, spec.latent_dim),
        (spec.clip_tokens, spec.clip_dim),
        (spec.sync_tokens, spec.sync_dim),
        (77, spec.text_dim),
    ]
    with torch.no_grad():
        return network(*(torch.randn(1, *shape, generator=generator) for shape in shapes), torch.tensor([0.3]))


def test_the_guides_checks_print_adapted_layers(folder, capsys):
    lora_model = load(folder)
    lora_model.print_parameter_info()
    printed = capsys.readouterr().out
    adapted = [name for name, _ in lora_model.named_modules() if "lora" in name]
    spec = lora_model.network.spec
    expected = (spec.num_joint_blocks + spec.num_fused_blocks) * 4 * 4 * spec.width
    lines = dict(line.split(":", 1) for line in printed.splitlines()[1:3])
    assert lines["  trainable"].split()[0] == f"{expected:,}" and adapted
    base = sum(value.numel() for value in build_network("tiny_16k").parameters())
    assert lines["  base, frozen"].strip() == f"{base:,}" and f"{base + expected:,} parameters" in printed
    assert f"({100 * expected / (base + expected):.2f} % of all)" in printed
    blocks = [line.split() for line in printed.splitlines() if "_blocks." in line]
    assert sum(int(count.replace(",", "")) for _, count in blocks) == expected
    assert [name for name, _ in blocks] == [
        *(f"joint_blocks.{i}" for i in range(spec.num_joint_blocks)),
        *(f"fused_blocks.{i}" for i in range(spec.num_fused_blocks)),
    ]
    size = (folder / "best_lora.pt").stat().st_size
    assert f"{size / 1e6:.1f} MB in {folder}/best_lora.pt" in printed
    assert all(name.startswith("network.") for name in adapted) and len(adapted) == len(set(adapted))


@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(folder):
    fresh = load_pretrained_with_lora("tiny_16k", weights=folder, device="cpu")
    trained = load(folder)
    before = velocity(fresh.network)
    assert not torch.allclose(velocity(trained.network), before, atol=1e-3)
    trained.set_strength(0.0)
    assert torch.equal(velocity(trained.network), before)


def test_a_fresh_adapter_prints_its_size(folder):
    config = LoRAConfig(rank=8, target_modules=TINY_TARGETS)
    fresh = load_pretrained_with_lora("tiny_16k", lora_config=config, weights=folder, device="cpu")
    trained = sum(value.nbytes for value in adapter_state(fresh.peft_model).values())
    assert f"{trained / 1e6:.1f} MB when it is saved" in fresh.parameter_info()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["merged_model.pt", "merged_model.pth", "deploy/network.safetensors"])
def test_merging_writes_released_keys_and_leaves_the_adapter(folder, tmp_path, name, capsys):
    lora_model = load(folder)
    before = velocity(lora_model.network)
    merged = lora_model.merge_and_save(tmp_path / name)
    printed = capsys.readouterr().out
    assert name in printed and "largest difference from the adapter at a random input: " in printed
    path = tmp_path / name
    stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    released = build_network("tiny_16k")
    assert stored.keys() == released.state_dict().keys()
    released.load_released(stored)
    for network in (merged.network, released.eval()):
        assert torch.allclose(velocity(network), before, atol=1e-4)
    assert torch.equal(velocity(lora_model.network), before)
    assert any("lora" in name for name, _ in lora_model.named_modules())
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert merged.frozen_models is lora_model.frozen_models, "encoders would be loaded twice"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_merged_file_replaces_the_base_file(folder, tmp_path):
    """In a folder of its own, under the released name, it is what the commands load."""
    lora_model = load(folder)
    expected = velocity(lora_model.network)
    lora_model.merge_and_save(tmp_path / "network.safetensors")
    deployed = load_pretrained_with_lora("tiny_16k", weights=tmp_path, device="cpu")
    assert torch.allclose(velocity(deployed.network), expected, atol=1e-4)
    with pytest.raises(ConfigError, match="the base model's file"):
        deployed.merge_and_save(tmp_path / "network.safetensors")


@pytest.mark.slow
def test_a_merged_file_has_the_dtypes_of_the_base(folder, tmp_path):
    state = load_file(folder / "network.safetensors")
    half = {key: value.half() if "blocks" in key else value for key, value in state.items()}
    save_file(half | {"t_embed.freqs": torch.zeros(3)}, tmp_path / "network.safetensors")  # a table that old files hold
    adapter = dataclasses.replace(read_adapter(folder / "best_lora.pt"), base_sha256="")
    write_adapter(tmp_path / "a.pt", adapter)
    lora_model = load_pretrained_with_lora("tiny_16k", tmp_path / "a.pt", weights=tmp_path, device="cpu")
    before = velocity(lora_model.network)
    lora_model.set_strength(1.5)
    stronger = velocity(lora_model.network)
    merged = lora_model.merge_and_save(tmp_path / "merged.pt")
    stored = torch.load(tmp_path / "merged.pt", weights_only=True)
    assert {key: value.dtype for key, value in stored.items()} == {key: value.dtype for key, value in half.items()}
    assert torch.allclose(velocity(merged.network), stronger, atol=1e-2)
    assert not torch.allclose(velocity(merged.network), before, atol=1e-2)


@pytest.mark.slow
def test_the_base_and_the_variant_are_checked_before_weights_are_read(folder, tmp_path):
    assert load_pretrained_with_lora(lora_checkpoint=folder / "best_lora", weights=folder).model_name == "tiny_16k"
    with pytest.raises(WeightsError, match="made for tiny_16k, not for small_16k"):
        load_pretrained_with_lora("small_16k", folder / "best_lora.pt", weights=tmp_path)
    unnamed = dataclasses.replace(read_adapter(folder / "best_lora.pt"), base_model="", base_sha256="")
    write_adapter(tmp_path / "a.pt", unnamed)
    with pytest.raises(WeightsError, match="does not fit small_16k: these are the shapes of tiny_16k"):
        load_pretrained_with_lora("small_16k", tmp_path / "a.pt", weights=tmp_path)
    with pytest.raises(ConfigError, match="matches nothing in the network"):
        load_pretrained_with_lora("small_16k", lora_config=LoRAConfig(target_modules=["atn.qkv"]), weights=tmp_path)


@pytest.mark.slow
def test_an_ambiguous_base_model_must_be_named(tmp_path):
    LoraConfig(r=1, lora_alpha=2, target_modules=["qkv"]).save_pretrained(str(tmp_path))
    save_file(zero_adapter_state("small_16k"), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"no model_name.*its shapes fit small_16k and small_44k"):
        load_pretrained_with_lora(lora_checkpoint=tmp_path)


@pytest.mark.slow
def test_invalid_arguments_are_errors(folder, tmp_path):
    with pytest.raises(WeightsError, match="no such adapter"):
        load_pretrained_with_lora("tiny_16k", tmp_path / "absent.pt", weights=folder)
    with pytest.raises(ConfigError, match="no model_name"):
        load_pretrained_with_lora()
    with pytest.raises(ConfigError, match="one of the two"):
        load(folder, lora_config=LoRAConfig())
    with pytest.raises(ConfigError, match=r"ends in \.pt, \.pth, \.safetensors"):
        load(folder).merge_and_save(tmp_path / "merged")
    (tmp_path / "file").touch()
    with pytest.raises(MMAudioError, match=r"merged\.pt: cannot be written"):
        load(folder).merge_and_save(tmp_path / "file" / "merged.pt")
    with pytest.raises(ConfigError, match="strength=2"):
        load(folder).set_strength(2)
    for pairs in ([], [("a.pt", 0.5, 1)], [("a.pt", "joint")]):
        with pytest.raises(ConfigError, match=r"a list of \(adapter, strength\)|strength=joint: a number"):
            load_pretrained_with_lora(lora_checkpoint=pairs)
    with pytest.raises(ConfigError, match="'promt'"):
        load(folder).generate("video.mp4", promt="rain")
    other = copy.deepcopy(build_network("tiny_16k").state_dict())
    save_file(other, tmp_path / "network.safetensors")
    with pytest.raises(WeightsError, match="another file"):
        load_pretrained_with_lora("tiny_16k", folder / "best_lora.pt", weights=tmp_path, device="cpu")


def test_merged_models_and_sounds_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        for name in ("merged.pt", "merged.pth", "merged.safetensors"):
            save_state_dict({"weight": torch.zeros(2)}, tmp_path / name)
        for name in ("sound.flac", "sound.wav"):
            write_audio(tmp_path / name, np.zeros(1600, np.float32), 16_000)
        write_video(tmp_path / "picture.mp4", np.zeros((4, 32, 32, 3), np.uint8), 4)
        for name in ("a.mp4", "a.mkv"):
            mux_audio(tmp_path / "picture.mp4", np.zeros(16_000, np.float32), 16_000, tmp_path / name)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert len(modes) == 8 and set(modes.values()) == {"0o640"}, modes
