"""A folder of awkward videos, each with what splitting has to say of it. Run as a script, it writes one to look at:

python tests/corpus.py FOLDER
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace

SECONDS = 8.2
FPS = 10
BLOCK = 1024
QUICK = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
    "libvpx": {"cpu-used": "8", "deadline": "realtime"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}
"""Options that make an encoder fast."""


def moving(index, width, height):
    """Picture number `index`: a bright bar that wanders over a coloured ground (H, W, 3)."""
    picture = np.full((height, width, 3), (40, 90, 60), np.uint8)
    picture[:, :, 0] += np.linspace(0, 60, width, dtype=np.uint8)
    left = index * 3 % width
    picture[:, left : left + max(2, width // 8)] = (230, 200, 40)
    return picture


def still(index, width, height):
    """The same picture at all times."""
    return moving(5, width, height)


def black(index, width, height):
    """Nothing to see."""
    return np.zeros((height, width, 3), np.uint8)


def two_shots(index, width, height):
    """Two seconds of one place, then another one."""
    picture = moving(index, width, height)
    return picture if index < 2 * FPS else np.ascontiguousarray(255 - picture[::-1])


def bell(seconds, rate, channels=1, amplitude=0.5):
    """A tone that is struck every half second (channels, samples)."""
    time = np.arange(round(seconds * rate)) / rate
    wave = amplitude * np.sin(2 * np.pi * 440 * time) * np.exp(-4 * (time % 0.5))
    return np.tile(wave.astype(np.float32), (channels, 1))


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


class Sound:
    """One sound track to be written."""

    def __init__(self, codec="aac", rate=16_000, channels=1, first=0.0, wave=None, seconds=SECONDS, hole=None):
        self.codec, self.rate, self.channels, self.first, self.hole = codec, rate, channels, first, hole
        self.wave = bell(seconds, rate, channels) if wave is None else np.atleast_2d(wave)

    def packets(self, container, stream):
        """Encode everything; a `hole` (at, length) moves what follows it to a later time."""
        context = stream.codec_context
        wanted = [f.name for f in context.codec.audio_formats or []] or ["fltp"]
        converter = av.AudioResampler(format="fltp" if "fltp" in wanted else wanted[0], layout=LAYOUTS[self.channels])
        made = []
        for at in range(0, self.wave.shape[1], BLOCK):
            part = np.ascontiguousarray(self.wave[:, at : at + BLOCK].astype(np.float32).T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=LAYOUTS[self.channels])
            late = 0 if self.hole is None or at < self.hole[0] * self.rate else self.hole[1]
            frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
            frame.pts = at + round((self.first + late) * self.rate)
            for converted in converter.resample(frame):
                made += stream.encode(converted)
        return made + stream.encode(None)


def write(
    path, video="libx264", sounds=(), seconds=SECONDS, fps=FPS, size=(64, 48), pixels="yuv420p", draw=moving,
    muxer=None, first=0.0, stamps=None, pixel=None, options=None, hdr=None, context=None, titles=None,
):  # fmt: skip
    """Write a video. `stamps`: when each picture is shown; `pixel`: width over height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=muxer) as container:
        streams = []
        for number, sound in enumerate(sounds):
            stream = container.add_stream(sound.codec, rate=sound.rate, layout=LAYOUTS[sound.channels])
            if titles:
                stream.metadata["language"] = titles[number]
            streams.append(stream)
        made = []
        if video:
            picture = container.add_stream(
                video, rate=1000 if stamps else fps, options=QUICK.get(video, {}) | (options or {})
            )
            picture.width, picture.height = size
            picture.pix_fmt = pixels
            picture.codec_context.thread_count = 1
            if pixel:
                picture.sample_aspect_ratio = picture.codec_context.sample_aspect_ratio = pixel
            for name, value in (context or {}).items():
                setattr(picture.codec_context, name, value)
            if hdr:
                picture.codec_context.color_trc, picture.codec_context.color_primaries = hdr, ColorPrimaries.BT2020
                picture.codec_context.colorspace = Colorspace.BT2020
            shown = stamps or [first + index / fps for index in range(round(seconds * fps))]
            for index, stamp in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(draw(index, *size), format="rgb24").reformat(format=pixels)
                unit = Fraction(1, 1000) if stamps else 1 / Fraction(fps)
                frame.pts, frame.time_base = round(stamp / unit), unit
                made += picture.encode(frame)
            made += picture.encode(None)
        for sound, stream in zip(sounds, streams, strict=True):
            made += sound.packets(container, stream)
        made.sort(
            key=lambda packet: float((packet.dts if packet.dts is not None else packet.pts or 0) * packet.time_base)
        )
        for packet in made:
            container.mux(packet)
    return path
