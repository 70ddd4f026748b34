"""Training on from an adapter: a new adapter computes what the first one does, or says why not."""

from dataclasses import replace

import pytest
import torch
from helpers import is_close, mini, mini_velocity
from mini_adapters import KINDS, LINEARS, RANK_4, adapted_mini, seeded_generator

from mmaudio.errors import ConfigError
from mmaudio.lora.adapter import LoRAConfig, Phase, adapter_state, add_lora, load_adapter_state
from mmaudio.lora.adapter_start import check_start, load_start
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.peft_layers import lora_layers

PLAIN = LoRAConfig(**RANK_4)
NEXT = {
    "the same": (PLAIN, PLAIN),
    "grown": (PLAIN, replace(PLAIN, rank=8, alpha=16.0)),
    "grown, of another scale": (PLAIN, replace(PLAIN, rank=8, alpha=40.0)),
    "rslora": (PLAIN, replace(PLAIN, rank=8, use_rslora=True)),
    "phases": (PLAIN, replace(PLAIN, phases=[Phase(4, 3), Phase(8, 3)])),
    "more layers": (PLAIN, replace(PLAIN, extra_targets=["linear1"])),
    "ranks": (KINDS["ranks"], replace(KINDS["ranks"], rank=8, rank_pattern={"attn.qkv": 12})),
    "dora": (KINDS["dora"], replace(KINDS["dora"], rank=8, alpha=16.0)),
    "all biases": (KINDS["own biases"], replace(KINDS["all biases"], rank=6)),
    "full": (KINDS["full"], KINDS["full"]),
}


def trained(config):
    """A network with a filled adapter of `config`, and the adapter's file."""
    network, model = adapted_mini(**vars(config))
    if not config.enabled:  # the golden values are the mini network's own
        load_adapter_state(model, {key: 1.05 * value for key, value in adapter_state(model).items()})
    return network, AdapterFile(config, adapter_state(model), "tiny_16k", "")


def started(adapter, config):
    """A network with a new adapter of `config` that starts from `adapter`."""
    network = mini()
    check_start(adapter, network, config)
    model = add_lora(network, config, seeded_generator(3))
    load_start(model, adapter)
    return network, model.eval()


@pytest.mark.parametrize("name", ["the same", "grown", "full"])
def test_the_function_at_the_start_is_exactly_the_adapters(name):
    first, config = NEXT[name]
    network, adapter = trained(first)
    other, model = started(adapter, config)
    assert torch.equal(mini_velocity(other), mini_velocity(network))
    assert not is_close(mini_velocity(other), mini_velocity(mini()), 1e-3)
    assert {layer.r["default"] for layer in lora_layers(model).values()} <= {4, 8}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NEXT if name not in ("the same", "grown", "full")])
def test_every_kind_starts_from_its_function(name):
    first, config = NEXT[name]
    network, adapter = trained(first)
    other, _ = started(adapter, config)
    assert is_close(mini_velocity(other), mini_velocity(network))


def test_new_ranks_can_learn():
    _, adapter = trained(PLAIN)
    _, model = started(adapter, NEXT["grown"][1])
    state = adapter_state(model)
    key = next(key for key in state if key.endswith("attn.qkv.lora_A.weight"))
    assert torch.equal(state[key][:4], adapter.state[key]) and state[key][4:].abs().min() > 0
    assert state[key.replace("_A", "_B")][:, 4:].abs().max() == 0


@pytest.mark.parametrize(
    ("first", "config", "message"),
    [
        (PLAIN, replace(PLAIN, rank=2), r"rank is 4 .* rank 2 cannot hold; .* set lora\.rank=4 or more"),
        (KINDS["ranks"], PLAIN, r"rank is 8 .* rank 4 cannot hold"),
        (
            PLAIN,
            LoRAConfig(**RANK_4, target_modules=["fused_blocks[*].ffn"]),
            r"layers that lora\.target_modules leaves",
        ),
        (PLAIN, KINDS["full"], r"trained with lora\.enabled=true"),
        (KINDS["full"], PLAIN, r"trained with lora\.enabled=false"),
        (KINDS["dora"], LoRAConfig(**LINEARS), r"trained with lora\.use_dora=true"),
        (KINDS["all biases"], PLAIN, r"has biases, which lora\.bias=none has not; set all"),
        (LoRAConfig(**LINEARS), KINDS["pissa"], r"leave it or init_from out"),
    ],
)
def test_what_cannot_hold_the_adapter_is_refused(first, config, message):
    _, adapter = trained(first)
    with pytest.raises(ConfigError, match=message):
        check_start(adapter, mini(), config)
