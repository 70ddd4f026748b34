"""Sound files by PyAV: FLAC or 16-bit WAV, mono."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from mmaudio.errors import ConfigError

CODECS = {".flac": "flac", ".wav": "pcm_s16le"}
_FULL_SCALE = 32_767
_BLOCK = 4096
"""Samples of one frame."""


def write_sound(path: Path | str, waveform: npt.ArrayLike, rate: int) -> None:
    """Write (samples,) within [-1, 1] at `rate` Hz; louder samples are clipped. The suffix picks the format.

    Written to a temporary name and renamed. Raises ConfigError for another suffix than .flac and .wav.
    """
    target = Path(path)
    if target.suffix.lower() not in CODECS:
        raise ConfigError(f"{target.name}: sound is written as {' or '.join(CODECS)}")
    samples = np.round(np.clip(np.asarray(waveform, np.float64), -1, 1) * _FULL_SCALE).astype(np.int16)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with av.open(str(part), "w", format=target.suffix.lower()[1:]) as container:
            stream = container.add_stream(CODECS[target.suffix.lower()], rate=rate, layout="mono")
            for start in range(0, len(samples), _BLOCK):
                block = np.ascontiguousarray(samples[None, start : start + _BLOCK])
                frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
