"""The Python call: load, look, merge; generating needs the shipped model and is tested with it."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from mmaudio.adapters import AdapterFile, write_adapter
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.lora import LoRAConfig, adapter_state
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora
from mmaudio.model.networks import build_network
from mmaudio.weights import file_hash

TARGETS = ["joint_blocks.*.latent_block.attn.qkv", "fused_blocks.*.attn.qkv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A weights folder with a network of tiny_16k's shapes, and an adapter for it."""
    place = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(0)
    network = build_network("tiny_16k")
    for weight in network.parameters():
        if not weight.any():
            weight.data.normal_(0, 0.05, generator=generator)
    save_file(network.state_dict(), place / "network.safetensors")
    config = LoRAConfig(rank=4, alpha=8.0, target_modules=TARGETS)
    fresh = load_pretrained_with_lora("tiny_16k", lora_config=config, weights=place, device="cpu")
    state = {
        key: torch.randn(value.shape, generator=generator) * 0.1
        for key, value in adapter_state(fresh.peft_model).items()
    }
    targets = list(fresh.peft_model.base_model.targeted_module_names)
    identity = file_hash(place / "network.safetensors")
    write_adapter(place / "best_lora.pt", AdapterFile(config, state, "tiny_16k", identity, targets))
    return place


def load(folder, **more):
    return load_pretrained_with_lora("tiny_16k", folder / "best_lora.pt", weights=folder, device="cpu", **more)


def velocity(network):
    generator = torch.Generator().manual_seed(1)
    spec = network.spec
    shapes = [
        (spec.latent_tokens, spec.latent_dim), (spec.clip_tokens, spec.clip_dim), (spec.sync_tokens, spec.sync_dim),
        (77, spec.text_dim),
    ]  # fmt: skip
    with torch.no_grad():
        return network(*(torch.randn(1, *shape, generator=generator) for shape in shapes), torch.tensor([0.3]))


def test_the_guides_checks(folder, capsys):
    lora_model = load(folder)
    lora_model.print_parameter_info()
    said = capsys.readouterr().out
    adapted = [name for name, _ in lora_model.named_modules() if "lora" in name]
    spec = lora_model.network.spec
    expected = (spec.joint_blocks + spec.fused_blocks) * 4 * 4 * spec.width
    assert f"{expected:,} trainable" in said and "fused_blocks.0" in said and adapted
    assert all(name.startswith("network.") for name in adapted) and len(adapted) == len(set(adapted))


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(folder):
    fresh = load_pretrained_with_lora("tiny_16k", weights=folder, device="cpu")
    trained = load(folder)
    before = velocity(fresh.network)
    assert not torch.allclose(velocity(trained.network), before, atol=1e-3)
    trained.set_strength(0.0)
    assert torch.equal(velocity(trained.network), before)


def test_merging_writes_released_keys_and_leaves_the_adapter(folder, tmp_path):
    lora_model = load(folder)
    before = velocity(lora_model.network)
    merged = lora_model.merge_and_save(tmp_path / "merged_model.pt")
    stored = torch.load(tmp_path / "merged_model.pt", weights_only=True)
    released = build_network("tiny_16k")
    assert stored.keys() == released.state_dict().keys()
    released.load_released(stored)
    for network in (merged.network, released.eval()):
        assert torch.allclose(velocity(network), before, atol=1e-4)
    assert torch.equal(velocity(lora_model.network), before)
    assert any("lora" in name for name, _ in lora_model.named_modules())
    assert not any("lora" in name for name, _ in merged.named_modules())


def test_mistakes(folder, tmp_path):
    with pytest.raises(WeightsError, match="no such adapter"):
        load_pretrained_with_lora("tiny_16k", tmp_path / "absent.pt", weights=folder)
    with pytest.raises(ConfigError, match="no model_name"):
        load_pretrained_with_lora()
    with pytest.raises(ConfigError, match="one of them"):
        load(folder, lora_config=LoRAConfig())
    with pytest.raises(ConfigError, match=r"NAME\.pt"):
        load(folder).merge_and_save(tmp_path / "merged")
    with pytest.raises(ConfigError, match="'promt'"):
        load(folder).generate("video.mp4", promt="rain")
    other = copy.deepcopy(build_network("tiny_16k").state_dict())
    save_file(other, tmp_path / "network.safetensors")
    with pytest.raises(WeightsError, match="another file"):
        load_pretrained_with_lora("tiny_16k", folder / "best_lora.pt", weights=tmp_path, device="cpu")
