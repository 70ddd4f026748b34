"""Shot boundaries by PySceneDetect, an optional extra: `pip install "mmaudio-lora[scenes]"`."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from mmaudio.data.video_stats import CutDetector
from mmaudio.errors import ConfigError

SHORTEST = 0.5
"""Seconds of the shortest shot that is told apart."""
UNIT = Fraction(1, 1_000_000)


def check_scenes() -> None:
    """ConfigError where PySceneDetect is not installed."""
    if find_spec("scenedetect") is None:
        raise ConfigError('--scenes needs PySceneDetect, which is not here; pip install "mmaudio-lora[scenes]"')


def cut_detector(fps: float) -> CutDetector:
    """A detector for one video: cuts stand out against how much the pictures around them change.

    It says of a cut only when it has seen a few frames more; cuts go by time stamps, not by frame counts.
    """
    from scenedetect.common import FrameTimecode, Timecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(min_scene_len=SHORTEST)
    rate = Fraction(fps).limit_denominator(1001)

    def cuts(time: float, picture: npt.NDArray[np.uint8]) -> list[float]:
        code = FrameTimecode(Timecode(pts=round(time / UNIT), time_base=UNIT), fps=rate)
        return [float(cut.seconds) for cut in detector.process_frame(code, picture)]

    return cuts
