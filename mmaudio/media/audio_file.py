"""Audio files by PyAV: FLAC or 16-bit WAV, mono."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from mmaudio.errors import ConfigError
from mmaudio.media.local_files import create_media
from mmaudio.media.video import decode_frames, open_container
from mmaudio.utils.files import atomic_write

CODECS = {".flac": "flac", ".wav": "pcm_s16le"}
"""Encoder by suffix."""
_INT16_MAX = 32_767
_FRAME_SAMPLES = 4096


def write_audio(
    path: Path | str, waveform: npt.ArrayLike, sample_rate: int, tags: Mapping[str, str] | None = None
) -> None:
    """Write (samples,) within [-1, 1] at `sample_rate` Hz; louder samples are clipped. The suffix picks the format.

    The file is written to a temporary name and renamed. `tags` become metadata where the format has room for them.
    Raises ConfigError for another suffix than .flac and .wav, MMAudioError where nothing can be written there.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in CODECS:
        raise ConfigError(f"{target.name}: sound is written as {' or '.join(CODECS)}")
    samples = np.round(np.clip(np.asarray(waveform, np.float64), -1, 1) * _INT16_MAX).astype(np.int16)
    with atomic_write(target) as partial, create_media(partial, suffix[1:]) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(CODECS[suffix], rate=sample_rate, layout="mono")
        for start in range(0, len(samples), _FRAME_SAMPLES):
            block = np.ascontiguousarray(samples[None, start : start + _FRAME_SAMPLES])
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_audio_file(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """The samples (T,) of what `write_audio` wrote, and their rate in hertz; DataError where it cannot be read."""
    with open_container(path) as container:
        frames = list(decode_frames(container, container.streams.audio[0]))
        sample_rate: int = container.streams.audio[0].rate
    blocks = [frame.to_ndarray().reshape(-1).astype(np.float32) / _INT16_MAX for frame in frames]
    return np.concatenate(blocks), sample_rate
