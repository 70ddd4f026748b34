"""Interface of what writes a clip's media while the clip is decoded, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.evaluation.results import ClipMedia
from mmaudio.model.spec import CodecSpec


class ClipWriter(Protocol):
    """Writes the audio, the spectrograms and the video of each clip of a set."""

    def clear(self) -> None:
        """Remove the media of an earlier evaluation."""
        ...

    def write_audio(
        self, row: int, waveforms: Mapping[str, Tensor], mels: Mapping[str, Tensor], codec: CodecSpec
    ) -> ClipMedia:
        """Write waveforms (T,) and draw mel spectrograms (M, F) of the clip `row`, by the name of the sound."""
        ...

    def remove_audio(self, row: int) -> None:
        """Remove what `write_audio` has written of the clip `row`."""
        ...

    def write_videos(
        self,
        video_root: Path,
        clips: Sequence[Clip],
        rows: Sequence[int],
        originals: Sequence[Tensor],
        codec: CodecSpec,
    ) -> list[str]:
        """Write the clips of one video with their original audio (T,); the first frames as data URIs."""
        ...
