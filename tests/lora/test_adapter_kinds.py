"""rsLoRA, DoRA, PiSSA, ranks by layer, biases and full fine-tuning: the promises that each shares with plain LoRA."""

import dataclasses

import mini_training
import pytest
import torch
from helpers import is_close, mini, mini_inputs, mini_velocity
from mini_adapters import KINDS
from peft import PeftModel

from mmaudio.config import compose
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.finetune.state import new_state
from mmaudio.lora.adapter import (
    LoRAConfig,
    adapter_state,
    add_lora,
    merge,
    merged_weights,
    saved_lora_config,
    set_strength,
)
from mmaudio.lora.base_values import without_adapter
from mmaudio.lora.checkpoint import AdapterFile, attach_adapter, read_adapter, write_adapter
from mmaudio.lora.merge import merge_copy
from mmaudio.lora.peft_layers import ADAPTER_NAME, lora_layers
from mmaudio.lora.targets import LINEAR_TARGETS


def train_adapter(config):
    """The miniature with an adapter whose trained weights have all moved, and the model."""
    network = mini()
    model = add_lora(network, config, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    return network, model


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def saved(kind, tmp_path):
    """The trained network's velocity, and the file of its adapter."""
    network, model = train_adapter(kind)
    adapter = AdapterFile(
        saved_lora_config(model, kind), adapter_state(model), "tiny_16k", "", sorted(lora_layers(model)), 3
    )
    write_adapter(tmp_path / "best_lora.pt", adapter)
    return mini_velocity(network), tmp_path / "best_lora.pt"


@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing(kind):
    network = mini()
    add_lora(network, kind, torch.Generator().manual_seed(0)).eval()
    assert is_close(mini_velocity(network), mini_velocity(mini()))


@pytest.mark.slow
def test_without_adapter_the_network_is_the_base(kind):
    network, model = train_adapter(kind)
    expected, adapted = mini_velocity(mini()), mini_velocity(network)
    assert not is_close(adapted, expected, 1e-2)
    with without_adapter(model):
        assert torch.equal(mini_velocity(network), expected)
    assert torch.equal(mini_velocity(network), adapted)


@pytest.mark.slow
def test_an_autograd_graph_survives_without_adapter(kind):
    network, model = train_adapter(kind)
    loss = network(**mini_inputs()).square().mean()
    with torch.no_grad(), without_adapter(model):
        network(**mini_inputs())
    loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.slow
def test_every_file_format_reproduces_the_velocity(kind, saved):
    expected, path = saved
    forms = (
        [path] if not kind.enabled else [path, path.with_suffix(""), path.with_suffix("") / "adapter_model.safetensors"]
    )
    for form in forms:
        network, adapter = mini(), read_adapter(form)
        attach_adapter(network, adapter, "tiny_16k")
        assert is_close(mini_velocity(network), expected), form
        assert adapter.lora.method_name == kind.method_name.replace("PiSSA + ", "").replace("PiSSA", "LoRA")


@pytest.mark.slow
def test_plain_peft_reads_the_folder(kind, saved):
    expected, path = saved
    if not kind.enabled:
        assert not path.with_suffix("").exists(), "peft has no form for whole networks"
        return
    theirs = PeftModel.from_pretrained(mini(), str(path.with_suffix(""))).get_base_model().eval()
    assert is_close(mini_velocity(theirs), expected)


@pytest.mark.slow
def test_merged_equals_unmerged(kind, saved):
    expected, path = saved
    network = mini()
    model = attach_adapter(network, read_adapter(path), "tiny_16k")
    dtypes = {key: value.dtype for key, value in mini().state_dict().items()}
    copy = merge_copy(model, dtypes)
    assert copy.state_dict.keys() == dtypes.keys() and is_close(mini_velocity(copy.network), expected, 1e-4)
    assert is_close(mini_velocity(merge(model)), expected, 1e-4) and list(network.state_dict()) == list(dtypes)


@pytest.mark.slow
def test_strength_goes_from_the_base_to_the_adapter(kind, saved):
    expected, path = saved
    network, base = mini(), mini_velocity(mini())
    model = attach_adapter(network, read_adapter(path), "tiny_16k")
    set_strength(model, 0.5)
    half = mini_velocity(network)
    assert not is_close(half, expected, 1e-3) and not is_close(half, base, 1e-3)
    set_strength(model, 0.0)
    assert is_close(mini_velocity(network), base)
    set_strength(model, 1.0)
    assert is_close(mini_velocity(network), expected)
    set_strength(model, 0.5)
    assert is_close(mini_velocity(merge(model)), half, 1e-4)


@pytest.mark.slow
def test_every_kind_trains_resumes_and_saves(kind, tmp_path):
    settings = {"lora": kind, "weight_decay": 0.0, "learning_rate": 1e-3, "ema_decay": 0.9, "preserve_base": 0.1}
    settings |= {"schedule": "constant", "eval_every": 4, "save_every": 4}
    whole = mini_training.train_mini(tmp_path / "whole", max_steps=4, **settings)
    assert whole.best_loss < whole.base_loss and whole.step == 4
    mini_training.train_mini(tmp_path / "parts", max_steps=3, **settings)
    parts = mini_training.train_mini(tmp_path / "parts", max_steps=4, **settings)
    one, other = (read_adapter(run.folder / "lora_checkpoints/last_lora.pt") for run in (parts, whole))
    assert parts.new_steps == 1 and all(torch.equal(one.state[key], value) for key, value in other.state.items())
    attach_adapter(mini(), one, "tiny_16k")


@pytest.mark.slow
def test_layers_have_the_rank_of_the_first_pattern_that_matches():
    model = add_lora(mini(), KINDS["ranks"])
    settings = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in lora_layers(model).items()}
    assert settings["fused_blocks.0.attn.qkv"] == (8, 1.0) and settings["fused_blocks.0.ffn.w1"] == (2, 1.5)
    assert settings["fused_blocks.0.ffn.w2"] == (4, 2.0)
    with pytest.raises(ConfigError, match=r"lora.rank_pattern: 'atn.qkv' matches nothing .*attn.qkv"):
        add_lora(mini(), LoRAConfig(rank=4, rank_pattern={"atn.qkv": 8}))
    assert compose(["lora.rank_pattern={attn.qkv:8,fused_blocks.*.ffn:2}"]).lora.rank_pattern == {
        "attn.qkv": 8,
        "fused_blocks.*.ffn": 2,
    }


def test_rslora_scales_by_the_root_of_the_rank():
    layer = next(iter(lora_layers(add_lora(mini(), KINDS["rslora"])).values()))
    assert layer.scaling["default"] == 8 / 4**0.5


@pytest.mark.parametrize("changed", [{"rank": 65}, {"rank": 4, "rank_pattern": {"fused_blocks[0].attn.qkv": 65}}])
def test_a_rank_larger_than_the_layer_is_refused(changed):
    with pytest.raises(ConfigError, match=r"lora.rank=65: \w+_blocks\.0\.(latent_block\.)?attn\.qkv is 64 wide"):
        add_lora(mini(), LoRAConfig(**changed))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa", "dropout": 0.0}])
def test_convolutions_are_refused_for_kinds_that_need_linears(settings):
    with pytest.raises(ConfigError, match=r"is for linears, but joint_blocks.* are convolutions.*preset=\w+"):
        add_lora(mini(), LoRAConfig(rank=4, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("preset, kind", [("dora", "DoRA"), ("pissa", "PiSSA")])
def test_the_presets_of_the_kinds_fit_the_network(preset, kind):
    config = compose([f"preset={preset}", "rank=8"])
    assert config.lora.method_name == kind and list(config.lora.target_modules) == list(LINEAR_TARGETS)
    add_lora(mini(), config.lora)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["lora.init_lora_weights=pissa"], "set lora.dropout=0"),
        (["lora.init_lora_weights=pissa", "lora.dropout=0"], "set weight_decay=0"),
        (["lora.init_lora_weights=olora"], "it is kaiming, pissa"),
        (["lora.bias=some"], "it is none, all, lora_only"),
        (["lora.enabled=false", "lora.use_rslora=true"], "lora.use_rslora has no effect there"),
        (["lora.enabled=false", "lora_plus_ratio=16"], "lora_plus_ratio is for adapters alone"),
        (["lora.rank_pattern={ffn:0}"], "ffn: 0: the rank is at least 1"),
    ],
)
def test_contradictory_settings_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        compose(overrides)


@pytest.mark.slow
def test_only_the_selected_biases_are_trained(tmp_path):
    def trained_biases(bias):
        config = mini_training.build_config(tmp_path, lora=LoRAConfig(rank=4, bias=bias))
        return {name for name in new_state(mini(), config, 5).trainable_parameters() if name.endswith(".bias")}

    everywhere, adapted_layers = trained_biases("all"), trained_biases("lora_only")
    assert not trained_biases("none") and adapted_layers < everywhere
    assert adapted_layers and all(name.endswith("attn.qkv.base_layer.bias") for name in adapted_layers)


@pytest.mark.slow
def test_a_fully_trained_file_of_another_model_is_refused(tmp_path):
    _, model = train_adapter(KINDS["full"])
    state = {key: value for key, value in adapter_state(model).items() if "final_layer" not in key}
    adapter = AdapterFile(KINDS["full"], state, "tiny_16k", "")
    with pytest.raises(WeightsError, match=r"fully fine-tuned tiny_16k weights of another model.*missing"):
        attach_adapter(mini(), adapter, "tiny_16k")
    with pytest.raises(WeightsError, match="made for tiny_16k, not for small_16k"):
        attach_adapter(mini(), dataclasses.replace(adapter, state={}), "small_16k")


@pytest.mark.slow
def test_weights_merged_for_a_while_compute_the_same_and_leave_no_trace(kind, saved):
    network = mini()
    model = attach_adapter(network, read_adapter(saved[1]), "tiny_16k")
    set_strength(model, 0.5)
    half, before = mini_velocity(network), {key: value.clone() for key, value in network.state_dict().items()}
    with merged_weights(model):
        assert is_close(mini_velocity(network), half, 1e-4)
        assert all(layer.merged for layer in lora_layers(model).values())
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(mini_velocity(network), half)
    if layers := list(lora_layers(model).values()):
        layers[0].lora_A[ADAPTER_NAME].weight.data.fill_(torch.nan)
        with pytest.raises(WeightsError, match="not finite"), merged_weights(model):
            pass
