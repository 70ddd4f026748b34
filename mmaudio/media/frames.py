"""Conversion of decoded frames to RGB: upright, square pixels, deinterlaced, standard dynamic range.

Most frames are only converted to RGB. By the metadata of its file, a frame is rotated (phones), scaled (DV, DVD),
deinterlaced (cameras, television) or tone-mapped (HDR), as a video player would show it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

if TYPE_CHECKING:
    from torch import Tensor

SQUARE_PIXEL = Fraction(1)
MAX_PIXEL_ASPECT = 4
"""A more extreme aspect ratio of the pixels, to either side, is ignored: it is an error in the file."""
PQ, HLG = 16, 18
"""Transfer functions of HDR video, by their numbers in H.273."""
HDR_SHORT_SIDE = 540
"""HDR frames whose shorter side is above this are scaled down first; the encoders use at most 384 pixels."""
REFERENCE_WHITE = 203.0
"""Luminance in cd/m2 that becomes white in standard dynamic range (ITU-R BT.2408)."""
HIGHLIGHT_KNEE = 0.75
"""Linear light above which highlights are compressed instead of clipped."""
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear RGB to linear RGB (ITU-R BT.2087)."""
FloatArray = npt.NDArray[np.float32]


def to_rgb(frame: Any, reformatter: VideoReformatter | None = None, pixel_aspect: Fraction = SQUARE_PIXEL) -> Tensor:
    """Convert a decoded frame for display: RGB uint8 (3, H, W).

    `pixel_aspect`: a pixel's width over its height. `reformatter` caches its tables from frame to frame.
    """
    import torch  # slow to import, and not needed by those that only read files

    reformatter = reformatter or VideoReformatter()
    size = display_size(frame.width, frame.height, pixel_aspect)
    is_hdr = frame.color_trc in (PQ, HLG)
    if is_hdr:
        scale = min(1.0, HDR_SHORT_SIDE / min(size))
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    resize = {} if size == (frame.width, frame.height) else {"width": size[0], "height": size[1]}
    pixel_format = "rgb48le" if is_hdr else "rgb24"
    pixels: Any = reformatter.reformat(frame, format=pixel_format, threads=1, **resize).to_ndarray()  # callers thread
    rgb = torch.from_numpy(tone_map(pixels, frame.color_trc) if is_hdr else pixels)
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns:
        rgb = torch.rot90(rgb, quarter_turns)
    return rgb.permute(2, 0, 1)


def display_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Width and height of a frame with square pixels, before it is rotated; no detail is lost."""
    if pixel_aspect == SQUARE_PIXEL or not Fraction(1, MAX_PIXEL_ASPECT) <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return width, height
    return (round(width * pixel_aspect), height) if pixel_aspect > 1 else (width, round(height / pixel_aspect))


def tone_map(pixels: npt.NDArray[np.uint16], transfer: int) -> npt.NDArray[np.uint8]:
    """Map BT.2020 HDR pixels (H, W, 3), 16 bits, to standard RGB (H, W, 3), 8 bits.

    Reference white becomes nearly white; brighter light is compressed into the remaining range.
    """
    light = _linear_light_table(transfer)[pixels] @ BT2020_TO_BT709.T
    compressed = HIGHLIGHT_KNEE + (1 - HIGHLIGHT_KNEE) * (1 - np.exp((HIGHLIGHT_KNEE - light) / (1 - HIGHLIGHT_KNEE)))
    linear = np.where(light < HIGHLIGHT_KNEE, light, compressed).clip(0, 1)
    mapped: npt.NDArray[np.uint8] = _srgb_table()[(linear * 4095 + 0.5).astype(np.int32)]
    return mapped


@functools.cache
def _linear_light_table(transfer: int) -> FloatArray:
    """Linear light of every 16-bit level, 1 being reference white (SMPTE ST 2084, ARIB STD-B67 at 1000 cd/m2)."""
    level = np.linspace(0, 1, 65_536)
    if transfer == PQ:
        root = level ** (1 / 78.84375)
        light = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = 1000 * np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12) ** 1.2
    return (light / REFERENCE_WHITE).astype(np.float32)


@functools.cache
def _srgb_table() -> npt.NDArray[np.uint8]:
    """8-bit sRGB level of linear light in steps of 1/4095."""
    light = np.linspace(0, 1, 4096)
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (level * 255 + 0.5).astype(np.uint8)


class Deinterlacer:
    """Deinterlacing filter for a stream: passes frames through until the first interlaced one, then filters each."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._frame_format: tuple[object, ...] = ()

    def push(self, frame: Any) -> Iterator[Any]:
        """Add `frame`; returns the frames that are finished, as the filter needs each frame's successor."""
        frame_format = (frame.width, frame.height, frame.format.name, frame.time_base)
        if self._graph is not None and frame_format != self._frame_format:
            yield from self.flush()
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self._graph, self._frame_format = _deinterlacing_graph(frame), frame_format
        self._graph.vpush(frame)
        yield from self._pull_frames()

    def flush(self) -> Iterator[Any]:
        """The frames that the filter still buffers."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pull_frames()
            self._graph = None

    def _pull_frames(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return


def deinterlace_frames(frames: Iterable[Any]) -> Iterator[Any]:
    """Frames of a stream, the interlaced ones deinterlaced."""
    deinterlacer = Deinterlacer()
    for frame in frames:
        yield from deinterlacer.push(frame)
    yield from deinterlacer.flush()


def _deinterlacing_graph(frame: Any) -> Any:
    """A filter graph for frames like `frame`: bwdif, frame by frame, interlaced ones only."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph
