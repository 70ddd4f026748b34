"""What a report plays of each clip: a small video, the picture before it plays, and the sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mmaudio.data.clips import Clip
from mmaudio.media.audio_file import write_sound
from mmaudio.media.audio_windows import read_sounds
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.model.spec import ModelSpec
from mmaudio.report.charts import image_uri

FPS = 25
SIDE = 480
"""Longest side of a report's video in pixels; smaller videos keep their size."""
CRF = 27
"""Its quality: x264's, lower is better."""
STILL = 55
"""Quality of a still, WebP's, higher is better."""


def original_sounds(root: Path, clips: Sequence[Clip], rate: int, samples: int) -> list[Tensor]:
    """The original sound (samples,) of each clip of one video as training hears it: mono, at `rate`, peak 0.95."""
    order = sorted(range(len(clips)), key=lambda index: clips[index].start)
    info = probe(root / clips[0].video, clips[0].track)
    sounds = read_sounds(info, [clips[index].start for index in order], rate, samples)
    return [sound for _, sound in sorted(zip(order, sounds, strict=True), key=lambda pair: pair[0])]


def write_pictures(
    root: Path, clips: Sequence[Clip], sounds: Sequence[Tensor], rate: int, paths: Sequence[Path]
) -> list[str]:
    """Write each clip of one video, with the sound given for it, as a small MP4; their first frames as data URIs."""
    info = probe(root / clips[0].video)
    grid = Grid(FPS, round((clips[0].end - clips[0].start) * FPS), _shrink)
    order = sorted(range(len(clips)), key=lambda index: clips[index].start)
    windows = read_windows(info, [clips[index].start for index in order], [grid])
    posters = [""] * len(clips)
    for index, window in zip(order, windows, strict=True):
        posters[index] = still(window.frames[0][0])
        frames = (frame.permute(1, 2, 0).contiguous().numpy() for frame in window.frames[0])
        write_video(paths[index], frames, FPS, sounds[index].numpy(), rate, CRF)
    return posters


def still(frame: Tensor) -> str:
    """An RGB frame (3, H, W), uint8, as a data URI."""
    return image_uri(Image.fromarray(frame.permute(1, 2, 0).numpy()), STILL)


def write_sounds(folder: Path, stem: str, sounds: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, str]:
    """Write each sound (samples,) as FLAC; their file names by the sounds' names."""
    names = {name: f"{stem}_{name}.flac" for name in sounds}
    for name, waveform in sounds.items():
        write_sound(folder / names[name], waveform.cpu().numpy(), spec.codec.rate)
    return names


def _shrink(frames: Tensor) -> Tensor:
    """RGB uint8 (1, 3, H, W) with no side above SIDE, both even."""
    height, width = frames.shape[-2:]
    scale = min(1.0, SIDE / max(height, width))
    size = [max(2, 2 * round(side * scale / 2)) for side in (height, width)]
    if size == [height, width]:
        return frames
    resized: Tensor = vision.resize(frames, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized
