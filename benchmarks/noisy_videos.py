"""Videos for benchmarks: moving and noisy pictures, so that decoding costs as much as that of filmed ones.

A few seconds of picture are encoded and repeated as packets, so that long videos are made fast; the sound is new
throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mmaudio.media.local_files import create_media
from mmaudio.utils.files import atomic_write

FPS = 25
SAMPLE_RATE = 48_000
LOOP_SECONDS = 10.0
"""Seconds of picture that are encoded and repeated."""
NOISE_LEVELS, NOISE_FIELDS = 12, 7
"""Amplitude of the noise of a frame, of 255, and how many different fields of it there are."""
CHUNK_SECONDS = 1
Picture = npt.NDArray[np.uint8]


def write_noisy_video(path: Path, seconds: float, side: int = 720, seed: int = 0) -> None:
    """Write an MP4 (H.264, AAC) of `seconds` with pictures 16:9 of the height `side`."""
    width = side * 16 // 18 * 2
    with atomic_write(path) as partial, create_media(partial, "mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast", "bf": "2"})
        video.width, video.height, video.pix_fmt = width, side, "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        total, loop = round(seconds * FPS), round(min(seconds, LOOP_SECONDS) * FPS)
        packets = _encode_pictures(video, _draw_pictures(loop, width, side, seed))
        blocks = _draw_sound(seconds, seed)
        for first in range(0, total, loop):
            for packet in packets:
                container.mux(_shifted_packet(packet, first, video))
            for block in (block for _, block in zip(range(round(LOOP_SECONDS)), blocks, strict=False)):
                container.mux(sound.encode(block))
        container.mux([packet for block in blocks for packet in sound.encode(block)])
        container.mux(sound.encode(None))


def _encode_pictures(stream: Any, pictures: Iterator[Picture]) -> list[tuple[bytes, int, int, bool]]:
    """Content, presentation and decoding number, and whether it is a key frame, of every packet."""
    packets = []
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        packets += stream.encode(frame)
    return [(bytes(p), _number(p, p.pts), _number(p, p.dts), p.is_keyframe) for p in packets + stream.encode(None)]


def _number(packet: Any, stamp: int) -> int:
    return round(float(stamp * packet.time_base) * FPS)


def _shifted_packet(content: tuple[bytes, int, int, bool], first: int, stream: Any) -> Any:
    """The packet of the loop that begins at frame number `first`."""
    packet = av.Packet(content[0])
    packet.stream, packet.time_base = stream, Fraction(1, FPS)
    packet.pts, packet.dts, packet.is_keyframe = content[1] + first, content[2] + first, content[3]
    packet.duration = 1
    return packet


def _draw_pictures(count: int, width: int, height: int, seed: int) -> Iterator[Picture]:
    """A texture that moves in a circle, with new noise on every picture."""
    generator = np.random.default_rng(seed)
    margin = height // 8
    coarse = generator.integers(0, 256 - NOISE_LEVELS, (height // 8 + 40, width // 8 + 60, 3), np.uint8)
    texture = coarse.repeat(8, 0).repeat(8, 1)
    noise = generator.integers(0, NOISE_LEVELS, (NOISE_FIELDS, height, width, 3), np.uint8)
    for number in range(count):
        angle = 2 * np.pi * number / count
        x, y = (round(margin * (1 + value)) for value in (np.cos(angle), np.sin(angle)))
        yield texture[y : y + height, x : x + width] + noise[number % NOISE_FIELDS]


def _draw_sound(seconds: float, seed: int) -> Iterator[Any]:
    """Bursts of noise, a second at a time."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    for first in range(0, samples, CHUNK_SECONDS * SAMPLE_RATE):
        count = min(CHUNK_SECONDS * SAMPLE_RATE, samples - first)
        decay = np.exp(-4 * np.arange(count) / SAMPLE_RATE)
        waveform = (0.1 * generator.standard_normal(count) * decay).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
        yield frame
