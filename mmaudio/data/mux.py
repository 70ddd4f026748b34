"""Writing video files: frames and sound to H.264/AAC in MP4, and a new sound beside a copied picture.

Both functions write to a temporary name beside the output and rename it, so that a file that exists is whole; the same
input gives the same bytes (one encoder thread, no dates).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mmaudio.errors import DataError

Frame = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
_LAYOUTS = {1: "mono", 2: "stereo"}
_BLOCK = 1024
"""Samples of one AAC frame."""
_X264 = {"preset": "veryfast", "x264-params": "mbtree=0"}
"""With macroblock-tree rate control, x264 gives other bytes from one call to the next even on one thread."""


def write_video(
    path: Path | str,
    frames: Iterable[Frame],
    fps: Fraction | int | float,
    waveform: npt.ArrayLike | None = None,
    rate: int = 44_100,
    crf: int = 18,
) -> None:
    """Encode frames and sound into an MP4 at `path`.

    `frames`: RGB, each (H, W, 3) uint8 with even sides, shown at `fps`. `waveform`: (samples,) or (channels, samples)
    within [-1, 1] at `rate` Hz; None: no sound. `crf`: x264's quality, lower is better.
    Raises DataError where there is no frame or a side is odd.
    """
    target = Path(path)
    frame_rate = Fraction(fps).limit_denominator(65_535)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise DataError(f"{target.name}: no frame to write")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise DataError(f"{target.name}: frames of {width} x {height}; H.264 needs even sides")
    with _replacing(target) as part, av.open(str(part), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=frame_rate, options={"crf": str(crf), **_X264})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.thread_count = 1
        sound = _Sound(container, waveform, rate) if waveform is not None else None
        for index, pixels in enumerate(chain([first], iterator)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(video.encode(frame))
            if sound is not None:
                sound.write_until((index + 1) / frame_rate)
        container.mux(video.encode(None))
        if sound is not None:
            sound.finish()


def mux_audio(video_path: Path | str, waveform: npt.ArrayLike, rate: int, output: Path | str) -> None:
    """Write the picture of `video_path`, copied without encoding, with `waveform` ((samples,) or (channels, samples),
    at `rate` Hz) as its only sound into the MP4 `output`. The picture then starts at time 0, with the sound.

    Raises DataError where the video cannot be read, has no picture, or holds a codec that MP4 does not take.
    """
    source_path, target = Path(video_path), Path(output)
    try:
        with (
            av.open(str(source_path)) as source,
            _replacing(target) as part,
            av.open(str(part), "w", format="mp4") as container,
        ):
            if not source.streams.video:
                raise DataError(f"{source_path.name}: no picture")
            stream = source.streams.video[0]
            video = container.add_stream_from_template(stream)
            sound = _Sound(container, waveform, rate)
            offset = stream.start_time or 0
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue
                packet.stream = video
                packet.dts -= offset
                if packet.pts is not None:
                    packet.pts -= offset
                sound.write_until(packet.dts * (packet.time_base or Fraction(0)))
                container.mux(packet)
            sound.finish()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{source_path.name}: its picture cannot be copied to {target.name} ({error})") from error


class _Sound:
    """An AAC stream that is fed in step with the picture."""

    def __init__(self, container: Any, waveform: npt.ArrayLike, rate: int) -> None:
        samples = np.atleast_2d(np.asarray(waveform, dtype=np.float32))
        if samples.ndim != 2 or samples.shape[0] not in _LAYOUTS:
            raise DataError(f"a sound of shape {samples.shape}; (samples,) or (1 or 2 channels, samples) is needed")
        self.samples: Samples = np.ascontiguousarray(samples.clip(-1.0, 1.0))
        self.container, self.rate, self.position = container, rate, 0
        self.layout = _LAYOUTS[samples.shape[0]]
        self.stream = container.add_stream("aac", rate=rate, layout=self.layout, bit_rate=96_000 * samples.shape[0])

    def write_until(self, seconds: Fraction) -> None:
        """Encode the samples before `seconds`, in whole AAC frames."""
        while self.position < min(self.samples.shape[1], seconds * self.rate):
            block = np.ascontiguousarray(self.samples[:, self.position : self.position + _BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self.layout)
            frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
            frame.pts = self.position
            self.container.mux(self.stream.encode(frame))
            self.position += block.shape[1]

    def finish(self) -> None:
        """Encode what is left."""
        self.write_until(Fraction(self.samples.shape[1], self.rate))
        self.container.mux(self.stream.encode(None))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that becomes it when the block ends, and is removed when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
