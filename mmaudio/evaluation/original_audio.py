"""Original audio of clips, as training reads it: mono, at the codec's sample rate, at the loudness of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.video import probe


def read_original_audio(video_root: Path, clips: Sequence[Clip], sample_rate: int, length: int) -> list[Tensor]:
    """The audio (`length`,) of each clip of one video; the clips may be in any order."""
    order = sorted(range(len(clips)), key=lambda index: clips[index].start)
    info = probe(video_root / clips[0].video, clips[0].streams)
    starts, gains_db = [clips[index].start for index in order], [clips[index].gain_db for index in order]
    waveforms = read_audio_windows(info, starts, sample_rate, length, gains_db=gains_db)
    return [waveform for _, waveform in sorted(zip(order, waveforms, strict=True), key=lambda pair: pair[0])]
