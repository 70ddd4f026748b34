"""Synchformer's visual branch: the golden numbers, its attention against dense attention, and what goes in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, build_golden, filled, golden, manifest
from torch import Tensor, nn

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.synchformer import DividedAttention, FramePool, build_synchformer, split_segments

STEPS, PLACES, WIDTH, HEADS = 3, 5, 16, 2


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def test_keys_are_those_of_the_released_file():
    with torch.device("meta"):
        encoder = build_synchformer()
    assert shapes(encoder) == {key: shape for key, (_, shape) in manifest("synchformer").items()}


@pytest.mark.slow
def test_outputs_match_the_golden_numbers():
    encoder = build_golden(build_synchformer)
    taps: dict[str, Tensor] = {}
    blocks = encoder.vfeat_extractor.blocks
    for name, block in {"block0": blocks[0], "block_last": blocks[-1]}.items():
        block.register_forward_hook(lambda _, __, out, name=name: taps.__setitem__(name, out[:, :5]))
    with torch.no_grad():
        taps["features"] = encoder(filled("input/sync_segments", 1, 2, 16, 3, 224, 224).clamp(-1, 1))
    for name, expected in golden("synchformer").items():
        assert_close(taps[name], expected)


@pytest.mark.parametrize("groups", ["time", "space"])
@pytest.mark.parametrize("training", [True, False])
def test_divided_attention_is_dense_attention_under_a_mask(groups: str, training: bool):
    layer = DividedAttention(WIDTH, HEADS, groups)
    x = torch.randn(2, 1 + STEPS * PLACES, WIDTH, generator=torch.Generator().manual_seed(0))
    token = torch.arange(STEPS * PLACES)
    group = token % PLACES if groups == "time" else token // PLACES
    mask = torch.ones(len(token) + 1, len(token) + 1, dtype=torch.bool)
    mask[1:, 1:] = group[:, None] == group[None]
    with torch.set_grad_enabled(training):
        q, k, v = layer.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        assert_close(layer(x, STEPS), layer.proj(dense), 1e-5)


def test_frame_pool_is_an_encoder_layer_at_its_class_token():
    pool = FramePool(WIDTH, HEADS)
    nn.init.normal_(pool.cls_token)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    layer.load_state_dict({key: value for key, value in pool.state_dict().items() if key != "cls_token"})
    patches = torch.randn(4, PLACES, WIDTH)
    whole = layer(torch.cat([pool.cls_token.expand(4, 1, WIDTH), patches], dim=1))
    assert_close(pool(patches), whole[:, 0], 1e-5)


def test_segments_do_not_attend_to_each_other():
    encoder = build_synchformer("tiny_16k").eval()
    clip = torch.rand(1, 3, 16, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        features = encoder(clip)
        assert features.shape == (1, 3, 8, 96)
        assert_close(encoder(clip[:, 1:2]), features[:, 1:2], 1e-5)
    assert (features[:, 0] - features[:, 1]).abs().mean() > 0.01


def test_training_under_bfloat16_stays_close_and_reaches_every_weight():
    encoder = build_synchformer("tiny_16k")
    clip = torch.rand(1, 2, 16, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = encoder(clip)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(clip)
    assert_close(features.float().detach(), expected, 5e-2)
    features.float().square().mean().backward()
    untouched = {name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()}
    assert untouched == {f"vfeat_extractor.patch_embed.proj.{name}" for name in ("weight", "bias")}


def test_preprocess_keeps_the_aspect_ratio_and_crops_the_centre():
    encoder = build_synchformer("tiny_16k")
    frames = torch.zeros(2, 3, 128, 384, dtype=torch.uint8)
    frames[..., 128:256] = 255  # the middle third is what remains
    out = encoder.preprocess(frames)
    assert out.shape == (2, 3, 64, 64)
    assert out.dtype == torch.float32
    assert out[..., 8:-8].min() == 1.0
    assert encoder.preprocess(torch.zeros(1, 3, 90, 70, dtype=torch.uint8)).unique().tolist() == [-1.0]
    with pytest.raises(DataError, match="uint8"):
        encoder.preprocess(torch.zeros(1, 3, 90, 70))


def test_segments_overlap_by_half():
    frames = torch.arange(200.0)[:, None, None, None].expand(200, 3, 2, 2)
    cut = split_segments(frames)
    assert cut.shape == (24, 16, 3, 2, 2)
    assert cut[:, :, 0, 0, 0].tolist() == [[8.0 * s + t for t in range(16)] for s in range(24)]
    with pytest.raises(DataError, match="15 frames"):
        split_segments(frames[:15])


@pytest.mark.slow
def test_loading_skips_the_audio_branch_and_names_mismatched_keys():
    encoder, other = build_synchformer("tiny_16k"), build_synchformer("tiny_16k")
    state = other.state_dict() | {"afeat_extractor.x": torch.zeros(1), "transformer.y": torch.zeros(1)}
    encoder.load_released({key: value.half() for key, value in state.items()})
    loaded = encoder.state_dict()["vfeat_extractor.pos_embed"]
    assert loaded.dtype == torch.float32
    assert_close(loaded, state["vfeat_extractor.pos_embed"], 1e-3)

    wrong = dict(state) | {"vfeat_extractor.extra": torch.zeros(1), "vfeat_extractor.norm.bias": torch.zeros(3)}
    del wrong["vfeat_extractor.cls_token"]
    with pytest.raises(WeightsError) as error:
        encoder.load_released(wrong)
    for message in (
        "1 missing (vfeat_extractor.cls_token)",
        "1 unexpected (vfeat_extractor.extra)",
        "(3,), expected (96,)",
    ):
        assert message in str(error.value)


def test_an_unknown_model_name_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'synchformer'"):
        build_synchformer("syncformer")
