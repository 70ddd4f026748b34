"""The backward passes written by hand are autograd's."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, mini, mini_inputs

from mmaudio.model import fused_ops
from mmaudio.model.layers import SelfAttention, add_gated, attend_heads, modulated_norm, rotary_table


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).requires_grad_()


def both(monkeypatch, function, inputs):
    """Outputs and the inputs' gradients, by hand and by autograd."""
    results = []
    for by_autograd in (False, True):
        if by_autograd:
            monkeypatch.setattr(fused_ops, "can_fuse", lambda *tensors: False)
        outputs = function(*inputs)
        weights = [torch.linspace(-1, 2, out.numel()).view_as(out).to(out.dtype) for out in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, weights)])
    return zip(*results, strict=True)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_fused_head_inputs_match_autograd(rotated, dtype, tolerance, monkeypatch):
    attention = SelfAttention(64, 2).requires_grad_(False)
    attention.qkv = torch.nn.Identity()
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.copy_(random(32).detach())
    table = rotary_table(20, 32, 1.5, torch.device("cpu")) if rotated else None
    qkv = random(3, 20, 192, dtype=dtype)
    assert attention(qkv, table)[0].grad_fn.name() == "_HeadInputsBackward"
    for got, expected in both(monkeypatch, lambda qkv: attention(qkv, table), [qkv]):
        assert got.dtype == expected.dtype == dtype
        assert_close(got.float(), expected.float(), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_computes_what_training_computes(dtype):
    network, inputs = mini(), mini_inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = network(**inputs)
        assert expected.requires_grad
        with torch.inference_mode():
            assert fused_ops.is_sampling(inputs["latent"])
            assert_close(network(**inputs).float(), expected.float(), 1e-5 if dtype == torch.float32 else 2e-2)


def test_trained_norms_get_their_gradients():
    attention = SelfAttention(64, 2)
    queries, keys, _ = attention(random(3, 20, 64), rotary_table(20, 32, 1.0, torch.device("cpu")))
    (queries.sum() + keys.square().sum()).backward()
    assert attention.q_norm.weight.grad.any() and attention.k_norm.weight.grad.any()


@pytest.mark.parametrize("keys", [20, 33])
def test_cpu_attention_matches_autograd(keys, monkeypatch):
    inputs = [random(2, 3, tokens, 32, dtype=torch.bfloat16) for tokens in (20, keys, keys)]
    assert attend_heads(*inputs).shape == (2, 20, 96)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = next(iter(zip(*both(monkeypatch, lambda *qkv: [attend_heads(*qkv)], exact), strict=True)))
    monkeypatch.undo()
    for truth, (got, autograd) in zip(
        expected, both(monkeypatch, lambda *qkv: [attend_heads(*qkv)], inputs), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert (got.double() - truth).norm() < 1.2 * (autograd.double() - truth).norm() + 2e-3 * truth.norm()


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gates_and_modulated_norms_match_autograd(dtype, tolerance, stream, tokens, monkeypatch):
    gate, shift, scale = (random(3, tokens, 64, dtype=dtype).detach() for _ in range(3))
    x, y = random(3, 20, 64, dtype=torch.promote_types(stream, dtype)), random(3, 20, 64, dtype=dtype)

    def function(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return [add_gated(x, gate, y), modulated_norm(x, shift, scale)]

    names = [output.grad_fn.name() for output in function(x, y)]
    assert names == ["_AddGatedBackward", "_ModulatedNormBackward"]
    for got, expected in both(monkeypatch, function, [x, y]):
        assert got.dtype == expected.dtype
        assert_close(got.float(), expected.float(), tolerance)


@pytest.mark.parametrize("size", [1, 3])
def test_attention_in_sampling_is_as_exact_as_torchs(size):
    q, k, v = (factor * torch.randn(2, 3, tokens, 64) for factor, tokens in ((size, 250), (size, 391), (1, 391)))
    q, k, v = (tensor.bfloat16() for tensor in (q, k, v))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with torch.inference_mode():
        assert fused_ops.can_store_scores(q, k)
        got, torchs = fused_ops.sampling_attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
        assert torch.equal(attend_heads(q, k, v), got.transpose(1, 2).flatten(2))
    assert got.dtype == torch.bfloat16
    assert (got.double() - exact).norm() < 1.4 * (torchs.double() - exact).norm() < 0.01 * exact.norm()


def test_attention_over_many_tokens_in_sampling_stores_no_scores():
    q = torch.empty(1, 16, 600, 4)
    with torch.inference_mode():
        assert fused_ops.can_store_scores(q[:, :, :400], q) and not fused_ops.can_store_scores(q, q)
    assert not fused_ops.can_store_scores(q[:, :, :400], q)
