"""Shot boundaries by PySceneDetect, an optional extra: `pip install "mmaudio-lora[scenes]"`."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from mmaudio.data.video_stats import CutDetector
from mmaudio.errors import ConfigError

MIN_SHOT_SECONDS = 0.5
TIME_BASE = Fraction(1, 1_000_000)
"""Seconds per unit of the time stamps that PySceneDetect receives."""


def check_scenes_extra() -> None:
    """ConfigError where PySceneDetect is not installed."""
    if find_spec("scenedetect") is None:
        raise ConfigError('--scenes needs PySceneDetect, which is not here; pip install "mmaudio-lora[scenes]"')


def make_cut_detector(fps: float) -> CutDetector:
    """An adaptive cut detector for one video: a cut stands out against the changes of the frames around it.

    It reports a cut a few frames late; cuts are located by time stamps, not by frame counts.
    """
    from scenedetect.common import FrameTimecode, Timecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(min_scene_len=MIN_SHOT_SECONDS)
    rate = Fraction(fps).limit_denominator(1001)

    def detect_cuts(time: float, image: npt.NDArray[np.uint8]) -> list[float]:
        """Times in seconds of cuts that a further frame, at `time`, shows."""
        code = FrameTimecode(Timecode(pts=round(time / TIME_BASE), time_base=TIME_BASE), fps=rate)
        return [float(cut.seconds) for cut in detector.process_frame(code, image)]

    return detect_cuts
