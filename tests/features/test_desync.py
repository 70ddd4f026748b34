"""DeSync: the golden numbers, the released keys, and what has no score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_close, fill, filled, golden, manifest
from safetensors.torch import save_file
from torch import Tensor

from mmaudio.errors import WeightsError
from mmaudio.features.desync import (
    RATE,
    STEP_SECONDS,
    WINDOW,
    build_desync,
    load_desync,
    offset_seconds,
    pictures_of,
)
from mmaudio.features.synchformer import build_synchformer


def sound() -> Tensor:
    """The golden sound: 8 s at 16 kHz (1, samples)."""
    t = np.arange(8 * RATE) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * (100 * t + 400 * t**2))
    wave += 0.05 * fill.fill_array("input/noise_sync", (len(t),))
    wave[np.arange(len(t)) % (RATE // 2) < 40] += 0.4
    return torch.from_numpy(wave.astype(np.float32))[None]


def test_keys_are_those_of_the_released_file():
    with torch.device("meta"):
        parts = build_synchformer(), build_desync()
    found = {key: list(value.shape) for part in parts for key, value in part.state_dict().items()}
    assert found == {key: shape for key, (_, shape) in manifest("synchformer_full").items()}


def test_the_picture_of_the_sound_is_the_reference_s():
    expected = golden("desync")["log_mel_normalised.segment0"]
    assert_close(pictures_of(sound())[:, 0], expected)


@pytest.mark.slow
def test_golden():
    expected = golden("desync")
    judge = build_desync()
    fill.fill_module(judge)
    seen = filled("input/sync_video_features", 1, 24, 8, 768)
    with torch.inference_mode():
        heard = judge.eval().hear(pictures_of(sound()))
        assert_close(heard[:, ::6], expected["audio_features"])
        for name, part in {"first": slice(WINDOW), "last": slice(-WINDOW, None)}.items():
            assert_close(judge.logits(seen[:, part], heard[:, part]), expected[f"logits.{name}"])
    scores = judge.score(seen[0].flatten(0, 1), sound(), RATE)
    assert_close(scores, expected["desync"])


def test_offsets_are_two_seconds_to_both_sides():
    offsets = offset_seconds(torch.eye(21))
    assert offsets.tolist() == pytest.approx([-2 + STEP_SECONDS * k for k in range(21)])


def test_less_than_eight_seconds_have_no_score():
    with torch.device("meta"):
        judge = build_desync()
    seen, wave = torch.zeros(192, 768), torch.zeros(2, 8 * RATE)
    assert judge.score(seen, wave[:, :-1], RATE).isnan().tolist() == [True, True]
    assert judge.score(seen[:-8], wave, RATE).isnan().all()


def test_a_file_without_the_classifier_says_so(tmp_path):
    state = build_synchformer("tiny_16k").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "synchformer.safetensors")
    with pytest.raises(WeightsError, match="Synchformer tiny_16k has no offset classifier"):
        load_desync("tiny_16k", tmp_path)
