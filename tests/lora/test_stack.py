"""Several adapters at once: the sum of their changes, whatever their kinds, in any order, on one base only."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import fill, mini
from mini_adapters import KINDS

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, merge, saved_lora_config, set_strength
from mmaudio.lora.checkpoint import AdapterFile, attach_adapter, read_adapter, write_adapter
from mmaudio.lora.merge import merge_copy
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.lora.stack import pair_strengths, read_stack
from mmaudio.lora.strength import AS_TRAINED, Strength, parse_strength, uniform_strength

NAMES = ("rslora", "dora", "pissa and rslora", "own biases", "full")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An adapter of each kind whose trained weights have all moved, by name."""
    folder, paths = tmp_path_factory.mktemp("adapters"), {}
    for number, name in enumerate(NAMES):
        model = add_lora(mini(), KINDS[name], torch.Generator().manual_seed(number))
        for key, weight in model.named_parameters():
            if weight.requires_grad:
                weight.data += 0.02 * torch.as_tensor(fill.fill_values(f"{number}/{key}", tuple(weight.shape))).float()
        config, state = saved_lora_config(model, KINDS[name]), adapter_state(model)
        paths[name] = folder / f"{number}.pt"
        targets = sorted(lora_layers(model))
        write_adapter(paths[name], AdapterFile(config, state, "tiny_16k", "", targets))
    return paths


def parameters(network):
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def stacked(pairs):
    network = mini()
    read_stack(pairs).attach(network, "tiny_16k")
    return parameters(network)


def merged_alone(path, strength):
    network = mini()
    adapted = attach_adapter(network, read_adapter(path), "tiny_16k")
    set_strength(adapted, strength)
    return parameters(merge(adapted))


@pytest.mark.slow
def test_the_changes_of_every_kind_add_up_in_any_order(files):
    strengths = dict(zip(NAMES, (0.7, 0.5, 1.5, 1.0, 0.3), strict=True))
    pairs = [(files[name], uniform_strength(strength)) for name, strength in strengths.items()]
    total = stacked(pairs)
    base, alone = parameters(mini()), [merged_alone(files[name], strengths[name]) for name in NAMES]
    for name, value in total.items():
        expected = base[name] + sum(weights[name] - base[name] for weights in alone)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    again = stacked([pairs[index] for index in (3, 0, 4, 2, 1)])
    assert all(torch.equal(value, again[name]) for name, value in total.items()), (
        "the order does not matter, bit by bit"
    )


@pytest.mark.slow
def test_the_change_of_a_plain_adapter_is_scale_times_b_times_a(tmp_path):
    pairs = []
    for number, rank in enumerate((2, 3)):
        model = add_lora(mini(), LoRAConfig(rank=rank, alpha=rank), torch.Generator().manual_seed(number))
        state = {key: torch.ones_like(value) * (number + 1) for key, value in adapter_state(model).items()}
        path = tmp_path / f"{rank}.pt"
        write_adapter(path, AdapterFile(LoRAConfig(rank=rank, alpha=rank), state, "", "", sorted(lora_layers(model))))
        pairs.append((path, uniform_strength(0.5)))
    name = "fused_blocks.0.attn.qkv.weight"
    change = stacked(pairs)[name] - mini().get_parameter(name)
    torch.testing.assert_close(change, torch.full_like(change, 0.5 * 2 * 1 + 0.5 * 3 * 4))


@pytest.mark.slow
def test_a_strength_by_part_acts_there_alone(files):
    base, full = parameters(mini()), merged_alone(files["full"], 1.0)
    by_part = merged_alone(files["full"], "joint=1,fused=0.5,rest=0")
    for name, value in by_part.items():
        strength = 1.0 if name.startswith("joint") else 0.5 if name.startswith("fused") else 0.0
        torch.testing.assert_close(value, base[name] + strength * (full[name] - base[name]))
    pairs = [(files["rslora"], parse_strength("joint=0")), (files["dora"], parse_strength("0,fused=1"))]
    total, alone = stacked(pairs), [merged_alone(files[name], 1.0) for name in ("rslora", "dora")]
    joint, fused = "joint_blocks.0.latent_block.attn.qkv.weight", "fused_blocks.0.attn.qkv.weight"
    assert torch.equal(total[joint], base[joint])
    expected = alone[0][fused] + alone[1][fused] - base[fused]
    torch.testing.assert_close(total[fused], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_strength_of_several_scales_their_sum_and_a_copy_merges_it(files):
    network, base = mini(), parameters(mini())
    model = read_stack([(files["rslora"], AS_TRAINED), (files["own biases"], AS_TRAINED)]).attach(network, "tiny_16k")
    total = parameters(network)
    set_strength(model, 0.5)
    halves = merge_copy(model, {key: value.dtype for key, value in mini().state_dict().items()}).state_dict
    for name, value in total.items():
        torch.testing.assert_close(halves[name], (base[name] + value) / 2, rtol=1e-5, atol=1e-6)
    set_strength(model, 0)
    assert all(torch.equal(value, base[name]) for name, value in parameters(network).items())


def test_an_adapter_of_another_base_in_a_stack_is_one_clear_line(files, tmp_path):
    adapter, pair = read_adapter(files["rslora"]), (files["dora"], AS_TRAINED)
    write_adapter(tmp_path / "a.pt", dataclasses.replace(adapter, base_model="small_16k"))
    words = r"a\.pt: it was trained on small_16k, and .*1\.pt on tiny_16k; adapters add up"
    with pytest.raises(WeightsError, match=words):
        read_stack([pair, (tmp_path / "a.pt", AS_TRAINED)])
    for name, digest in (("b.pt", "b" * 64), ("c.pt", "c" * 64)):
        write_adapter(tmp_path / name, dataclasses.replace(adapter, base_sha256=digest))
    with pytest.raises(WeightsError, match=r"c\.pt: it was trained on network of SHA-256 cccccccccccc, and .*bbbb"):
        read_stack([(tmp_path / name, AS_TRAINED) for name in ("b.pt", "c.pt")])
    with pytest.raises(WeightsError, match=r"b\.pt: the adapter was trained on another file of tiny_16k"):
        read_stack([pair, (tmp_path / "b.pt", AS_TRAINED)]).check("tiny_16k", "d" * 64)
    with pytest.raises(WeightsError, match=r"\d\.pt: the adapter was made for tiny_16k, not for small_16k"):
        read_stack([pair, (files["rslora"], AS_TRAINED)]).check("small_16k")
    with pytest.raises(ConfigError, match=r"1\.pt: this adapter is named twice"):
        read_stack([pair, pair])


def test_every_adapter_of_a_command_has_its_strength():
    a, b = Path("a.pt"), Path("b.pt")
    assert pair_strengths([a, b], ["0.7", "joint=0.5"]) == [(a, uniform_strength(0.7)), (b, Strength(joint=0.5))]
    assert pair_strengths([a, b], []) == [(a, AS_TRAINED), (b, AS_TRAINED)]
    with pytest.raises(ConfigError, match=r"2 adapters and 1 --strength.*--strength 0\.7 --adapter b\.pt"):
        pair_strengths([a, b], ["0.7"])
    with pytest.raises(ConfigError, match="no --adapter that it could be the strength of"):
        pair_strengths([], ["0.7"])


@pytest.mark.parametrize(
    "text", ["joint", "head=1", "joint=x", "joint=1,joint=0.5", "", "joint=1.6", "-1", "nan", "1,2"]
)
def test_a_strength_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--strength .*: (a number, or numbers by part|from 0, the base model)"):
        pair_strengths([Path("a.pt")], [text])


def test_strengths_are_read_as_they_are_written():
    for strength in (uniform_strength(0.7), Strength(1, 0.5, 0), Strength(joint=0.2)):
        assert parse_strength(strength.plain()) == strength
    assert parse_strength("0.8,fused=0.5") == Strength(0.8, 0.5, 0.8)
