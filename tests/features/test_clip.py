"""The CLIP encoder: the golden numbers, and what the network is given."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close, build_golden, filled, golden, manifest

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.clip import MEAN, STD, ClipEncoder, build_clip, normalize_frames
from mmaudio.model.spec import CLIP_ENCODERS

TEXTS = ["", "a dog barking in the rain", "metal gate creaks, then slams shut"]


@pytest.fixture(scope="module")
def tiny() -> ClipEncoder:
    return build_clip("tiny_16k").eval()


@pytest.mark.slow
def test_keys_are_those_of_the_released_file():
    with torch.device("meta"):
        encoder = build_clip("dfn5b_vit_h_14_384")
    expected = {key: shape for key, (_, shape) in manifest("clip_vit_h_14_384").items()}
    assert {key: list(value.shape) for key, value in encoder.model.state_dict().items()} == expected


@pytest.mark.slow
def test_outputs_match_the_golden_numbers():
    encoder = build_golden(lambda: build_clip("dfn5b_vit_h_14_384"))
    expected = golden("clip")
    with torch.no_grad():
        assert_close(encoder.encode_text(TEXTS)[:, ::8], expected["text_features"])
        frames = normalize_frames(filled("input/clip_frames", 2, 3, 384, 384).abs().clamp(0, 1))
        assert_close(encoder.encode_frames(frames[None, 1:])[0], expected["image_features"][1:])


def test_rows_have_the_sizes_of_the_spec_and_unit_length(tiny: ClipEncoder):
    spec = CLIP_ENCODERS["tiny_16k"]
    with torch.no_grad():
        image = tiny.encode_frames(torch.randn(2, 3, 3, 64, 64))
        text = tiny.encode_text(TEXTS)
    assert image.shape == (2, 3, spec.image_dim)
    assert text.shape == (3, 77, spec.text_dim)
    for rows in (image, text):
        assert torch.allclose(rows.norm(dim=-1), torch.ones(()), atol=1e-5)


def test_text_attention_is_causal(tiny: ClipEncoder):
    with torch.no_grad():
        short, longer = tiny.encode_text(["a dog barks", "a dog sleeps in the sun"])
    assert torch.allclose(short[:3], longer[:3], atol=1e-6)  # start, a, dog
    assert not torch.allclose(short[3], longer[3], atol=1e-3)


def test_tokens_are_open_clip_s_for_the_released_model(tiny: ClipEncoder):
    import open_clip

    texts = [*TEXTS, "word " * 200, "Ünïcode & <html>"]
    expected = open_clip.get_tokenizer(CLIP_ENCODERS["dfn5b_vit_h_14_384"].architecture)(texts)
    assert torch.equal(tiny.tokenize(texts), expected)
    assert expected.shape == (5, 77)


def test_preprocess_resizes_and_normalises(tiny: ClipEncoder):
    frames = torch.zeros(2, 3, 100, 300, dtype=torch.uint8)
    frames[..., 150:] = 255
    out = tiny.preprocess(frames)
    assert out.shape == (2, 3, 64, 64)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(out[0, :, 10, 4], black, atol=1e-6)  # both halves are still there
    assert torch.allclose(out[0, :, 10, 60], white, atol=1e-6)
    with pytest.raises(DataError, match="uint8"):
        tiny.preprocess(frames.float())


@pytest.mark.slow
def test_weights_are_loaded(tiny: ClipEncoder):
    fresh = build_clip("tiny_16k").eval()
    fresh.load_released(tiny.model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.encode_text(TEXTS), tiny.encode_text(TEXTS))
    with pytest.raises(WeightsError, match=r"missing \(.*positional_embedding"):
        fresh.load_released({"logit_scale": torch.zeros(())})


def test_the_image_tower_works_without_the_text_tower(tiny: ClipEncoder):
    seeing = build_clip("tiny_16k").eval()
    seeing.load_released(tiny.model.state_dict())
    seeing.drop_text()
    frames = torch.randn(1, 2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(seeing.encode_frames(frames), tiny.encode_frames(frames))
    assert all(name.startswith(("model.visual.", "model.logit_scale")) for name in seeing.state_dict())
    with pytest.raises(ConfigError, match="text tower of this CLIP was dropped"):
        seeing.encode_text(TEXTS)


def test_bfloat16_stays_near_float32(tiny: ClipEncoder):
    frames = torch.randn(1, 2, 3, 64, 64)
    with torch.no_grad():
        expected = tiny.encode_frames(frames)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(tiny.encode_frames(frames), expected, 5e-2)
            assert tiny.encode_text(TEXTS).dtype == torch.float32
