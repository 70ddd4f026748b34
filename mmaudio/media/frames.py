"""What a decoded frame looks like on a screen: upright, with square pixels, without combing, in standard colours.

An ordinary frame is converted to RGB and nothing else. Only a file that says so is turned (phones), stretched (DV,
DVD), deinterlaced (cameras, television) or tone-mapped (HDR), so that all of them look alike to the encoders.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

SQUARE = Fraction(1)
WIDEST = 4
"""Pixels that are said to be wider, or higher, than so many times their other side are taken as square."""
PQ, HLG = 16, 18
"""Transfer functions of HDR pictures, by their numbers in H.273."""
HDR_SIDE = 540
"""HDR pictures whose shorter side is above this are made smaller first; the encoders take at most 384."""
WHITE = 203.0
"""Light of a white page in cd/m2, which becomes the standard picture's white (ITU-R BT.2408)."""
KNEE = 0.75
"""Linear light above which highlights are compressed instead of clipped."""
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear RGB to linear RGB (ITU-R BT.2087)."""
Levels = npt.NDArray[np.float32]


def to_rgb(frame: Any, reformatter: VideoReformatter | None = None, pixel: Fraction = SQUARE) -> Tensor:
    """A decoded frame as it is meant to be seen: RGB uint8 (3, H, W).

    `pixel`: a pixel's width over its height. `reformatter` keeps its tables from frame to frame.
    """
    reformatter = reformatter or VideoReformatter()
    size = shown_size(frame.width, frame.height, pixel)
    hdr = frame.color_trc in (PQ, HLG)
    if hdr:
        shrink = min(1.0, HDR_SIDE / min(size))
        size = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
    changed = {} if size == (frame.width, frame.height) else {"width": size[0], "height": size[1]}
    array: Any = reformatter.reformat(frame, format="rgb48le" if hdr else "rgb24", **changed).to_ndarray()
    rgb = torch.from_numpy(tone_mapped(array, frame.color_trc) if hdr else array)
    turns = round(frame.rotation / 90) % 4
    if turns:
        rgb = torch.rot90(rgb, turns)
    return rgb.permute(2, 0, 1)


def shown_size(width: int, height: int, pixel: Fraction) -> tuple[int, int]:
    """Width and height of a picture with square pixels, before it is turned; no detail is lost."""
    if pixel == SQUARE or not Fraction(1, WIDEST) <= pixel <= WIDEST:
        return width, height
    return (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))


def tone_mapped(pixels: npt.NDArray[np.uint16], transfer: int) -> npt.NDArray[np.uint8]:
    """BT.2020 RGB (H, W, 3) of an HDR picture, 16 bits, as standard RGB (H, W, 3), 8 bits.

    What is as bright as a white page becomes nearly white, brighter light is compressed into the rest.
    """
    light = _light(transfer)[pixels] @ BT2020_TO_BT709.T
    compressed = KNEE + (1 - KNEE) * (1 - np.exp((KNEE - light) / (1 - KNEE)))
    linear = np.where(light < KNEE, light, compressed).clip(0, 1)
    mapped: npt.NDArray[np.uint8] = _standard()[(linear * 4095 + 0.5).astype(np.int32)]
    return mapped


@functools.cache
def _light(transfer: int) -> Levels:
    """Linear light of every 16-bit level, 1 being a white page (SMPTE ST 2084, ARIB STD-B67 on 1000 cd/m2)."""
    level = np.linspace(0, 1, 65_536)
    if transfer == PQ:
        root = level ** (1 / 78.84375)
        light = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = 1000 * np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12) ** 1.2
    return (light / WHITE).astype(np.float32)


@functools.cache
def _standard() -> npt.NDArray[np.uint8]:
    """8-bit sRGB level of linear light in steps of 1/4095."""
    light = np.linspace(0, 1, 4096)
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (level * 255 + 0.5).astype(np.uint8)


class Deinterlacer:
    """Passes frames through; from the first interlaced one on, each is made of whole lines, at its own time."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._shape: tuple[object, ...] = ()

    def push(self, frame: Any) -> Iterator[Any]:
        """The frames that are ready once `frame` is known; the filter needs the one after each."""
        shape = (frame.width, frame.height, frame.format.name, frame.time_base)
        if self._graph is not None and shape != self._shape:
            yield from self.flush()
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self._graph, self._shape = _deinterlacing(frame), shape
        self._graph.vpush(frame)
        yield from self._ready()

    def flush(self) -> Iterator[Any]:
        """What the filter still holds."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._ready()
            self._graph = None

    def _ready(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return


def _deinterlacing(frame: Any) -> Any:
    """A filter graph for frames like `frame`: bwdif, one frame for one, only those that are interlaced."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph
