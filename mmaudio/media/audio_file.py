"""Sound files by PyAV: FLAC or 16-bit WAV, mono."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from mmaudio.errors import ConfigError
from mmaudio.utils.files import writing

CODECS = {".flac": "flac", ".wav": "pcm_s16le"}
_FULL_SCALE = 32_767
_BLOCK = 4096
"""Samples of one frame."""


def write_sound(path: Path | str, waveform: npt.ArrayLike, rate: int, tags: Mapping[str, str] | None = None) -> None:
    """Write (samples,) within [-1, 1] at `rate` Hz; louder samples are clipped. The suffix picks the format.

    Written to a temporary name and renamed. `tags` are kept in the file where its kind has room for them. Raises
    ConfigError for another suffix than .flac and .wav, MMAudioError where nothing can be written there.
    """
    target = Path(path)
    if target.suffix.lower() not in CODECS:
        raise ConfigError(f"{target.name}: sound is written as {' or '.join(CODECS)}")
    samples = np.round(np.clip(np.asarray(waveform, np.float64), -1, 1) * _FULL_SCALE).astype(np.int16)
    with writing(target) as part, av.open(str(part), "w", format=target.suffix.lower()[1:]) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(CODECS[target.suffix.lower()], rate=rate, layout="mono")
        for start in range(0, len(samples), _BLOCK):
            block = np.ascontiguousarray(samples[None, start : start + _BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
