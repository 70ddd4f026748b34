"""Media of a report's clips: small videos with a poster, audio files, mel spectrograms."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.evaluation.results import ClipMedia
from mmaudio.media.audio_file import write_audio
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.metrics.metric_inputs import ORIGINAL
from mmaudio.model.spec import CodecSpec
from mmaudio.report.images import image_uri, mel_image

MEDIA_FOLDER = "media"
"""Folder of the videos and audio files, beside the report."""
FPS = 25
MAX_SIDE = 480
"""Longest side of a video in pixels; smaller videos keep their size."""
CRF = 27
"""Quality of a video: x264's, lower is better."""
POSTER_QUALITY = 55
"""Quality of a poster: WebP's, higher is better."""


class ClipMediaWriter:
    """Writes the media of a report's clips while they are decoded; implements `evaluation.clip_writer.ClipWriter`."""

    def __init__(self, report_path: Path) -> None:
        self.folder = report_path.parent / MEDIA_FOLDER

    def clear(self) -> None:
        """Remove the media of an earlier report."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_audio(
        self, row: int, waveforms: Mapping[str, Tensor], mels: Mapping[str, Tensor], codec: CodecSpec
    ) -> ClipMedia:
        """Write waveforms (T,) as FLAC and draw mel spectrograms (M, F), all with the original's range of colours."""
        stem = clip_stem(row)
        files = {name: f"{stem}_{name}.flac" for name in waveforms}
        for name, waveform in waveforms.items():
            write_audio(self.folder / files[name], waveform.cpu().numpy(), codec.sample_rate)
        log10_max = float(mels[ORIGINAL].max()) * (math.log(codec.log_base) / math.log(10))
        return ClipMedia(
            files={name: f"{MEDIA_FOLDER}/{file}" for name, file in {**files, "video": f"{stem}.mp4"}.items()},
            mel_images={name: mel_image(mel, codec.log_base, log10_max) for name, mel in mels.items()},
        )

    def remove_audio(self, row: int) -> None:
        """Remove the FLAC files of the clip `row`."""
        for path in self.folder.glob(f"{clip_stem(row)}_*.flac"):
            path.unlink()

    def write_videos(
        self,
        video_root: Path,
        clips: Sequence[Clip],
        rows: Sequence[int],
        originals: Sequence[Tensor],
        codec: CodecSpec,
    ) -> list[str]:
        """Write each clip of one video with its original audio (T,) as a small MP4; the first frames as data URIs."""
        paths = [self.folder / f"{clip_stem(row)}.mp4" for row in rows]
        return write_videos(video_root, clips, originals, codec.sample_rate, paths)


def clip_stem(row: int) -> str:
    """The stem of a clip's files."""
    return f"{row + 1:03d}"


def write_videos(
    video_root: Path, clips: Sequence[Clip], waveforms: Sequence[Tensor], sample_rate: int, paths: Sequence[Path]
) -> list[str]:
    """Write each clip of one video with an audio track (T,) as a small MP4; the first frames as data URIs."""
    info = probe(video_root / clips[0].video, clips[0].streams)
    grid = FrameGrid(FPS, round((clips[0].end - clips[0].start) * FPS), _shrink)
    order = sorted(range(len(clips)), key=lambda index: clips[index].start)
    windows = read_frame_windows(info, [clips[index].start for index in order], [grid])
    posters = [""] * len(clips)
    for index, window in zip(order, windows, strict=True):
        posters[index] = frame_uri(window.frames[0][0])
        frames = (frame.permute(1, 2, 0).contiguous().numpy() for frame in window.frames[0])
        write_video(paths[index], frames, FPS, waveforms[index].numpy(), sample_rate, CRF)
    return posters


def frame_uri(frame: Tensor) -> str:
    """An RGB frame (3, H, W), uint8, as a data URI."""
    return image_uri(Image.fromarray(frame.permute(1, 2, 0).numpy()), POSTER_QUALITY)


def _shrink(frames: Tensor) -> Tensor:
    """RGB uint8 (1, 3, H, W) with no side above MAX_SIDE, both even."""
    height, width = frames.shape[-2:]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = [max(2, 2 * round(side * scale / 2)) for side in (height, width)]
    if size == [height, width]:
        return frames
    from torchvision.transforms.v2 import InterpolationMode  # slow to import
    from torchvision.transforms.v2 import functional as vision

    resized: Tensor = vision.resize(frames, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized
