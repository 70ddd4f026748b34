"""Values of the metrics of one sound, from clicks at known times."""

import math

import pytest
import torch

from mmaudio.features.mel import build_mel
from mmaudio.metrics.compute import compute_metrics
from mmaudio.metrics.metric_inputs import MetricInputs, OriginalAudio
from mmaudio.model.spec import codec_spec

CODEC = codec_spec("16k")


def clicks(late: float, loudness: float = 0.9) -> torch.Tensor:
    """Two seconds with a click at three times, each `late` seconds later."""
    audio = torch.zeros(2 * CODEC.sample_rate)
    for time in (0.4, 0.9, 1.5):
        start = round((time + late) * CODEC.sample_rate)
        audio[start : start + 8] = loudness
    return audio


def onset_lag(*samples: torch.Tensor) -> float:
    """The lag of samples of a clip whose original has its clicks at their times."""
    audio, to_mel = torch.stack(samples), build_mel(CODEC.name)
    inputs = MetricInputs(audio, to_mel(audio), OriginalAudio(clicks(0), to_mel(clicks(0)[None])[0], CODEC))
    return compute_metrics(inputs, ["onset_lag"])["onset_lag"]


def test_a_sample_without_onsets_takes_no_clip_out_of_the_lag():
    silence = clicks(0, loudness=0)
    assert onset_lag(clicks(0.1)) == pytest.approx(0.1, abs=0.02)
    assert onset_lag(clicks(0.1), silence) == onset_lag(clicks(0.1))
    assert math.isnan(onset_lag(silence, silence)), "a clip without any onset has no lag"
