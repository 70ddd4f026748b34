"""DeSync: golden numbers, released keys, and inputs without a score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_close, build_golden, fill, filled, golden, manifest
from safetensors.torch import save_file
from torch import Tensor

from mmaudio.errors import WeightsError
from mmaudio.features.desync import (
    OFFSET_SECONDS,
    SAMPLE_RATE,
    WINDOW_SEGMENTS,
    build_desync,
    load_desync,
    logits_to_seconds,
    segment_log_mel,
)
from mmaudio.features.synchformer import build_synchformer


def golden_waveform() -> Tensor:
    """The golden waveform: 8 s at 16 kHz (1, samples)."""
    t = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    waveform = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * (100 * t + 400 * t**2))
    waveform += 0.05 * fill.fill_array("input/noise_sync", (len(t),))
    waveform[np.arange(len(t)) % (SAMPLE_RATE // 2) < 40] += 0.4
    return torch.from_numpy(waveform.astype(np.float32))[None]


def test_keys_are_those_of_the_released_file():
    with torch.device("meta"):
        modules = build_synchformer(), build_desync()
    shapes = {key: list(value.shape) for module in modules for key, value in module.state_dict().items()}
    assert shapes == {key: shape for key, (_, shape) in manifest("synchformer_full").items()}


def test_segment_log_mel_is_the_reference_s():
    expected = golden("desync")["log_mel_normalised.segment0"]
    assert_close(segment_log_mel(golden_waveform())[:, 0], expected)


@pytest.mark.slow
def test_outputs_match_the_golden_numbers():
    expected = golden("desync")
    model = build_golden(build_desync)
    video_f = filled("input/sync_video_features", 1, 24, 8, 768)
    with torch.inference_mode():
        audio_f = model.encode_audio(segment_log_mel(golden_waveform()))
        assert_close(audio_f[:, ::6], expected["audio_features"])
        for name, window in {"first": slice(WINDOW_SEGMENTS), "last": slice(-WINDOW_SEGMENTS, None)}.items():
            assert_close(model.predict_logits(video_f[:, window], audio_f[:, window]), expected[f"logits.{name}"])
    scores = model.score(video_f[0].flatten(0, 1), golden_waveform(), SAMPLE_RATE)
    assert_close(scores, expected["desync"])


def test_offsets_reach_two_seconds_to_both_sides():
    offsets = logits_to_seconds(torch.eye(21))
    assert offsets.tolist() == pytest.approx([-2 + OFFSET_SECONDS * k for k in range(21)])


def test_the_score_is_nan_below_eight_seconds():
    with torch.device("meta"):
        model = build_desync()
    video_f, waveform = torch.zeros(192, 768), torch.zeros(2, 8 * SAMPLE_RATE)
    assert model.score(video_f, waveform[:, :-1], SAMPLE_RATE).isnan().tolist() == [True, True]
    assert model.score(video_f[:-8], waveform, SAMPLE_RATE).isnan().all()


def test_a_file_without_the_classifier_is_an_error(tmp_path):
    state = build_synchformer("tiny_16k").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "synchformer.safetensors")
    with pytest.raises(WeightsError, match="Synchformer tiny_16k has no offset classifier"):
        load_desync("tiny_16k", tmp_path)
