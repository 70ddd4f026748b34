"""Writing video files: frames and sound to H.264/AAC in MP4, and a new sound beside a copied picture.

Both functions write to a temporary name beside the output and rename it, so that a file that exists is whole; the same
input gives the same bytes (one encoder thread, no dates of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mmaudio.errors import DataError
from mmaudio.media.containers import CONTAINERS
from mmaudio.media.video import opened, packets, picture_stream, probe
from mmaudio.utils.files import writing

Frame = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
_LAYOUTS = {1: "mono", 2: "stereo"}
_BLOCK = 1024
"""Samples that are given to the encoder at once."""
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")
"""A file's tags that are about the file itself."""
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
    Raises DataError where there is no frame or a side is odd, MMAudioError where nothing can be written there.
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
    with writing(target) as part, av.open(str(part), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=frame_rate, options={"crf": str(crf), **_X264})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.thread_count = 1
        sound = _Sound(container, waveform, rate, "aac") if waveform is not None else None
        for index, pixels in enumerate(chain([first], iterator)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(video.encode(frame))
            if sound is not None:
                sound.write_until((index + 1) / frame_rate)
        container.mux(video.encode(None))
        if sound is not None:
            sound.finish()


def mux_audio(
    video_path: Path | str,
    waveform: npt.ArrayLike,
    rate: int,
    output: Path | str,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write the picture of `video_path`, copied without encoding, with `waveform` ((samples,) or (channels, samples),
    at `rate` Hz) as its only sound into `output`, whose suffix is one of CONTAINERS.

    The first picture that is shown and the first sample are at time 0. What an MP4 hides before its beginning, as where
    it was trimmed, MP4 and MOV hide again; the other kinds show it first, in silence, and the sound keeps time with the
    picture all the same. Rotation and the file's tags stay; `tags` are added. Raises DataError where the video cannot
    be read or `output` does not take its picture, MMAudioError where nothing can be written there.
    """
    info, target = probe(video_path), Path(output)
    kind = CONTAINERS.get(target.suffix.lower())
    if kind is None:
        raise DataError(f"{target.name}: a video file ends in {', '.join(CONTAINERS)}")
    try:
        with (
            opened(info.path) as source,
            writing(target) as part,
            av.open(str(part), "w", format=kind.muxer) as container,
        ):
            stream = picture_stream(source, info.path)
            kept = {key.lower(): value for key, value in source.metadata.items() if key.lower() not in _OWN_TAGS}
            container.metadata.update(kept | dict(tags or {}))
            picture = container.add_stream_from_template(stream, opaque=True)
            sound = _Sound(container, waveform, rate, kind.sound)
            for packet in _from_zero(source, stream, info.origin):
                packet.stream = picture
                sound.write_until(_time(packet))
                container.mux(packet)
            sound.finish()
    except (av.FFmpegError, ValueError) as error:
        raise DataError(f"{info.path.name}: its picture cannot be copied to {target.name} ({error})") from error


def _from_zero(source: Any, stream: Any, origin: float) -> Iterator[Any]:
    """The stream's packets with their times counted from `origin`; a file that is cut off just ends."""
    offset = round(origin / stream.time_base)
    for packet in packets(source, stream):
        if not packet.size:
            continue
        if packet.pts is not None:
            packet.pts -= offset
        if packet.dts is not None:
            packet.dts -= offset
        yield packet


def _time(packet: Any) -> Fraction:
    """When a packet is decoded, in seconds; some files state only when it is shown."""
    stamp = packet.dts if packet.dts is not None else packet.pts
    return (stamp or 0) * (packet.time_base or Fraction(0))


class _Sound:
    """A sound stream that is fed in step with the picture."""

    def __init__(self, container: Any, waveform: npt.ArrayLike, rate: int, codec: str) -> None:
        samples = np.atleast_2d(np.asarray(waveform, dtype=np.float32))
        if samples.ndim != 2 or samples.shape[0] not in _LAYOUTS:
            raise DataError(f"a sound of shape {samples.shape}; (samples,) or (1 or 2 channels, samples) is needed")
        self.samples: Samples = np.ascontiguousarray(samples.clip(-1.0, 1.0))
        self.container, self.rate, self.position = container, rate, 0
        self.layout = _LAYOUTS[samples.shape[0]]
        encoded = 48_000 if codec == "libopus" and rate not in _OPUS_RATES else rate
        self.stream = container.add_stream(codec, rate=encoded, layout=self.layout, bit_rate=96_000 * samples.shape[0])

    def write_until(self, seconds: Fraction) -> None:
        """Encode the samples before `seconds`, in whole blocks."""
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
