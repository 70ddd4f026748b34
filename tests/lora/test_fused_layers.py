"""The adapter's layers compute what peft's do, forward and backward, and drop the share that is asked for."""

import pytest
import torch
from helpers import assert_close
from mini_adapters import adapted_mini
from peft.tuners.lora import layer as peft_layers

from mmaudio.lora.fused_layers import FusedLoRAConv1d, FusedLoRALinear, dropout_mask
from mmaudio.model.layers import apply_both

LAYERS = {FusedLoRALinear: "fused_blocks.0.attn.qkv", FusedLoRAConv1d: "fused_blocks.0.ffn.w2"}
PEFTS = {FusedLoRALinear: peft_layers.Linear, FusedLoRAConv1d: peft_layers.Conv1d}


@pytest.fixture(autouse=True)
def default_generator():
    """The generator that draws the masks: seeded, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def layer_of(kind, **settings):
    """An adapted layer in training, and an input that wants a gradient."""
    network, _ = adapted_mini(**settings)
    layer = network.get_submodule(LAYERS[kind]).train()
    assert type(layer) is kind
    width = layer.in_features
    return layer, torch.randn(2, 30, width, generator=torch.Generator().manual_seed(0)).requires_grad_()


def outcome(layer, x, output):
    """The output and the gradients of x, A and B."""
    inputs = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad((output.float() * weights).sum(), inputs)]


@pytest.mark.parametrize("kind", LAYERS)
def test_the_fused_layer_computes_pefts_function(kind):
    layer, x = layer_of(kind)
    assert layer(x).grad_fn.name() == "_LowRankBackward"
    for got, expected in zip(
        outcome(layer, x, layer(x)), outcome(layer, x, PEFTS[kind].forward(layer, x)), strict=True
    ):
        assert got.dtype == expected.dtype == torch.float32
        assert_close(got, expected, 1e-5)


def test_a_bias_that_is_trained_gets_pefts_gradient():
    layer, x = layer_of(FusedLoRALinear)
    bias = layer.base_layer.bias.requires_grad_()
    outputs = layer(x), peft_layers.Linear.forward(layer, x)
    weights = torch.linspace(-1, 1, outputs[0].numel()).view_as(outputs[0])
    ours, pefts = (torch.autograd.grad((output * weights).sum(), [bias, x]) for output in outputs)
    for got, expected in zip(ours, pefts, strict=True):
        assert expected.abs().max() > 0
        assert_close(got, expected, 1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_under_autocast_it_is_as_exact_as_peft(kind):
    layer, x = layer_of(kind)
    exact = outcome(layer, x, layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(x), PEFTS[kind].forward(layer, x)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    for values in zip(exact, *(outcome(layer, x, output) for output in outputs), strict=True):
        expected, ours, pefts = (value.double() for value in values)
        assert (ours - expected).norm() < 1.2 * (pefts - expected).norm() + 1e-3 * expected.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_applies_to_the_adapters_input(kind):
    layer, x = layer_of(kind, dropout=0.25)
    torch.manual_seed(3)
    mask = dropout_mask(x.detach(), 0.25)
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    expected = layer.base_layer(x) + layer.scaling["default"] * b(a(x * mask / 0.75))
    torch.manual_seed(3)
    for got, reference in zip(outcome(layer, x, layer(x)), outcome(layer, x, expected), strict=True):
        assert_close(got, reference, 1e-5)
    assert torch.equal(layer.eval()(x), layer(x))


def pair_of(kind, block, **settings):
    """w1 and w3 of a block's MLP in training, and an input that wants a gradient."""
    network, _ = adapted_mini(**settings)
    ffn = network.get_submodule(block).ffn.train()
    assert type(ffn.w1) is type(ffn.w3) is kind
    return ffn.w1, ffn.w3, torch.randn(2, 30, ffn.w1.in_features).requires_grad_()


def pair_outcome(pair, x, outputs):
    """The outputs and the gradients of x and of both A and B, with other weights for each output."""
    halves = [half["default"].weight for layer in pair for half in (layer.lora_A, layer.lora_B)]
    weights = [torch.linspace(-1, 1 + i, out.numel()).view_as(out).to(out.dtype) for i, out in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, [x, *halves], weights)]


PAIRS = {FusedLoRALinear: "joint_blocks.0.text_block", FusedLoRAConv1d: "fused_blocks.0"}
RANKS = [{}, {"rank_pattern": {"ffn.w3": 3}}]


@pytest.mark.parametrize("settings", RANKS, ids=["equal ranks", "other ranks"])
@pytest.mark.parametrize("kind", PAIRS)
def test_two_layers_of_one_input_compute_pefts_function(kind, settings):
    *pair, x = pair_of(kind, PAIRS[kind], **settings)
    outputs = pair[0].forward_both(pair[1], x)
    assert outputs[0].grad_fn is outputs[1].grad_fn
    expected = [PEFTS[kind].forward(layer, x) for layer in pair]
    for got, reference in zip(pair_outcome(pair, x, outputs), pair_outcome(pair, x, expected), strict=True):
        assert_close(got, reference, 1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_two_layers_of_one_input_share_its_dropout_mask(kind):
    *pair, x = pair_of(kind, PAIRS[kind], dropout=0.25)
    torch.manual_seed(3)
    dropped = x * dropout_mask(x.detach(), 0.25) / 0.75
    expected = [
        layer.base_layer(x) + layer.scaling["default"] * layer.lora_B["default"](layer.lora_A["default"](dropped))
        for layer in pair
    ]
    torch.manual_seed(3)
    outputs = pair[0].forward_both(pair[1], x)
    for got, reference in zip(pair_outcome(pair, x, outputs), pair_outcome(pair, x, expected), strict=True):
        assert_close(got, reference, 1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_under_autocast_two_layers_are_as_exact_as_peft(kind):
    *pair, x = pair_of(kind, PAIRS[kind])
    exact = pair_outcome(pair, x, [PEFTS[kind].forward(layer, x) for layer in pair])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = pair[0].forward_both(pair[1], x), [PEFTS[kind].forward(layer, x) for layer in pair]
    assert {output.dtype for both in outputs for output in both} == {torch.bfloat16}
    for values in zip(exact, *(pair_outcome(pair, x, both) for both in outputs), strict=True):
        expected, ours, pefts = (value.double() for value in values)
        assert (ours - expected).norm() < 1.2 * (pefts - expected).norm() + 1e-3 * expected.norm()


def test_an_mlp_with_an_adapter_on_one_of_two_layers_computes_pefts_function():
    network, _ = adapted_mini(target_modules=["ffn.w1"])
    ffn = network.get_submodule("fused_blocks.0").ffn.train()
    x = torch.randn(2, 30, ffn.w3.in_channels).requires_grad_()
    gate, values = apply_both(ffn.w1, ffn.w3, x)
    assert torch.equal(gate, ffn.w1(x)) and torch.equal(values, ffn.w3(x))


def test_layers_with_other_dropout_rates_have_masks_of_their_own():
    first, second, x = pair_of(FusedLoRAConv1d, "fused_blocks.0", dropout=0.25)
    second.lora_dropout["default"].p = 0.5
    outputs = first.forward_both(second, x)
    assert outputs[0].grad_fn is not outputs[1].grad_fn


def test_a_layer_of_inputs_without_tokens_computes_pefts_function():
    network, _ = adapted_mini(extra_targets=["global_cond_mlp.*"])
    layers = [module for module in network.global_cond_mlp.modules() if type(module) is FusedLoRALinear]
    assert layers
    for layer in layers:
        layer.train()
        x = torch.randn(3, layer.in_features).requires_grad_()
        for got, reference in zip(
            outcome(layer, x, layer(x)), outcome(layer, x, PEFTS[FusedLoRALinear].forward(layer, x)), strict=True
        ):
            assert_close(got, reference, 1e-5)


def test_layers_that_do_not_fuse_are_computed_one_after_the_other():
    first, second, x = pair_of(FusedLoRAConv1d, "fused_blocks.0", dropout=0.25)
    first.eval(), second.eval()
    second.merge()
    outputs = first.forward_both(second, x)
    assert [output.grad_fn.name() for output in outputs] != ["_LowRankBackward"] * 2
    for got, reference in zip(outputs, (first(x), second(x)), strict=True):
        assert torch.equal(got, reference)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_drop_the_given_share(share, dtype):
    x = torch.empty(1001, 999, dtype=dtype)
    mask = dropout_mask(x, share)
    assert mask.dtype == dtype and mask.unique().tolist() == [0, 1]
    assert abs(1 - mask.float().mean() - share) < 5 * (share * (1 - share) / x.numel()) ** 0.5 + 1e-5
    columns = mask.float().mean(0)
    assert (columns + share - 1).abs().max() < 6 * (share * (1 - share) / 1001) ** 0.5
    assert not torch.equal(mask, dropout_mask(x, share))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no gradient", "disabled", "merged", "DoRA"])
def test_other_cases_use_pefts_own_forward(case):
    kind = FusedLoRALinear
    dora = {"use_dora": True, "target_modules": ["attn.qkv"]} if case == "DoRA" else {}
    layer, x = layer_of(kind, filled_adapter=case != "DoRA", **dora)
    if case == "disabled":
        layer.enable_adapters(False)
    if case == "merged":
        layer.merge()
    with torch.set_grad_enabled(case != "no gradient"):
        got, expected = layer(x), PEFTS[kind].forward(layer, x)
    assert torch.equal(got, expected)
    assert case == "no gradient" or got.grad_fn.name() != "_LowRankBackward"
