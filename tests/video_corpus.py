"""A folder of awkward videos, each with what splitting has to say of it. Run as a script, it writes one to look at:

python tests/video_corpus.py FOLDER
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from video_files import rotated_video

SECONDS = 8.2
FPS = 10
BLOCK = 1024
QUICK = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
    "libvpx": {"cpu-used": "8", "deadline": "realtime"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "aac": {"aac_coder": "fast"},
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
        formats = [f.name for f in context.codec.audio_formats or []] or ["fltp"]
        converter = av.AudioResampler(format="fltp" if "fltp" in formats else formats[0], layout=LAYOUTS[self.channels])
        packets = []
        for at in range(0, self.wave.shape[1], BLOCK):
            block = np.ascontiguousarray(self.wave[:, at : at + BLOCK].astype(np.float32).T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=LAYOUTS[self.channels])
            late = 0 if self.hole is None or at < self.hole[0] * self.rate else self.hole[1]
            frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
            frame.pts = at + round((self.first + late) * self.rate)
            for converted in converter.resample(frame):
                packets += stream.encode(converted)
        return packets + stream.encode(None)


def add_video_stream(container, codec, rate, size, pixels, pixel, hdr, options):
    """A stream for pictures of `size`; `pixel`: width over height; `hdr`: the transfer characteristic."""
    stream = container.add_stream(codec, rate=rate, options=QUICK.get(codec, {}) | (options or {}))
    stream.width, stream.height = size
    stream.pix_fmt = pixels
    stream.codec_context.thread_count = 1
    if pixel:
        stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = pixel
    if hdr:
        stream.codec_context.color_trc, stream.codec_context.color_primaries = hdr, ColorPrimaries.BT2020
        stream.codec_context.colorspace = Colorspace.BT2020
    return stream


def add_audio_streams(container, sounds, titles):
    """A stream per sound, with its language from `titles`."""
    streams = [
        container.add_stream(
            sound.codec, rate=sound.rate, options=QUICK.get(sound.codec), layout=LAYOUTS[sound.channels]
        )
        for sound in sounds
    ]
    for stream, title in zip(streams, titles or [], strict=bool(titles)):
        stream.metadata["language"] = title
    return streams


def video_packets(stream, draw, size, pixels, times, unit):
    """The encoded pictures, each shown at its time in seconds; `unit`: the time base."""
    packets: list[av.Packet] = []
    for index, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(draw(index, *size), format="rgb24").reformat(format=pixels)
        frame.pts, frame.time_base = round(time / unit), unit
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def decoding_time(packet):
    """Seconds from the start, or the presentation time where there is no decoding time."""
    return float((packet.dts if packet.dts is not None else packet.pts or 0) * packet.time_base)


def write(
    path,
    video="libx264",
    sounds=(),
    seconds=SECONDS,
    fps=FPS,
    size=(64, 48),
    pixels="yuv420p",
    draw=moving,
    muxer=None,
    first=0.0,
    stamps=None,
    pixel=None,
    options=None,
    hdr=None,
    titles=None,
    head=None,
):
    """Write a video. `stamps`: when each picture is shown; `pixel`: width over height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=muxer, options=head or {}) as container:
        packets: list[av.Packet] = []
        if video:
            rate = 1000 if stamps else fps
            picture = add_video_stream(container, video, rate, size, pixels, pixel, hdr, options)
        streams = add_audio_streams(container, sounds, titles)
        if video:
            times = stamps or [first + index / fps for index in range(round(seconds * fps))]
            packets += video_packets(picture, draw, size, pixels, times, 1 / Fraction(rate))
        for sound, stream in zip(sounds, streams, strict=True):
            packets += sound.packets(container, stream)
        for packet in sorted(packets, key=decoding_time):
            container.mux(packet)
    return path


def loud(channels=1, rate=16_000):
    """A sound that was far too loud for its recorder."""
    return np.clip(6 * bell(SECONDS, rate, channels), -1, 1)


def shortened(path, share):
    """The same file without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path


def two_parts(path, gap_at, gap, seconds, **options):
    """A video whose pictures have a gap; its sound has none."""
    stamps = [index / FPS + (gap if index >= gap_at * FPS else 0) for index in range(round((seconds - gap) * FPS))]
    return write(path, stamps=stamps, sounds=[Sound(seconds=seconds)], **options)


def wobbling():
    """Time stamps of a picture whose rate varies."""
    generator = np.random.default_rng(1)
    return sorted({0.0, 8.15, *(round(float(at), 3) for at in generator.uniform(0, 8.15, 150))})


def with_text(path, text):
    """A file of text."""
    path.write_text(text)
    return path


FASTSTART = {"movflags": "+faststart"}
FIELDS = {"flags": "+ildct+ilme"}
USED = {
    "plain.mp4": lambda p: write(p, sounds=[Sound()]),
    "UPPER CASE.MP4": lambda p: write(p, sounds=[Sound()], muxer="mp4"),
    'it\'s "quoted" & spaced.mkv': lambda p: write(p, sounds=[Sound("flac", 44_100, 2)]),
    "Ünïcödé 视频 🎬.mov": lambda p: write(p, sounds=[Sound("pcm_s16le", 48_000)]),
    "sub/deeper/below.m4v": lambda p: write(p, sounds=[Sound("aac", 22_050)], muxer="mp4"),
    "vp9.webm": lambda p: write(p, "libvpx-vp9", [Sound("libopus", 48_000)]),
    "vp8.webm": lambda p: write(p, "libvpx", [Sound("libopus", 48_000, 2)]),
    "mpeg4.avi": lambda p: write(p, "mpeg4", [Sound("libmp3lame", 44_100, 2)]),
    "motion jpeg.avi": lambda p: write(p, "mjpeg", [Sound("pcm_s16le", 11_025)], pixels="yuvj420p"),
    "stream.ts": lambda p: write(p, sounds=[Sound("aac", 48_000, 2)], muxer="mpegts"),
    "starts at 5 s.ts": lambda p: write(p, sounds=[Sound(first=5.0)], first=5.0, muxer="mpegts"),
    "starts at 3 s.mkv": lambda p: write(p, sounds=[Sound(first=3.0)], first=3.0),
    "av1.mp4": lambda p: write(p, "libsvtav1", [Sound()]),
    "hevc.mp4": lambda p: write(p, "libx265", [Sound()]),
    "hdr pq.mp4": lambda p: write(p, "libx265", [Sound()], pixels="yuv420p10le", hdr=ColorTrc.SMPTE2084),
    "hdr hlg.mov": lambda p: write(p, "libx265", [Sound()], pixels="yuv420p10le", hdr=ColorTrc.ARIB_STD_B67),
    "ten bits.mkv": lambda p: write(p, sounds=[Sound("flac")], pixels="yuv422p10le"),
    "prores.mov": lambda p: write(p, "prores_ks", [Sound("pcm_s16le", 192_000)], pixels="yuv422p10le"),
    "odd sides.mkv": lambda p: write(p, "ffv1", [Sound("flac")], size=(63, 47), pixels="yuv444p"),
    "turned.mp4": lambda p: rotated_video(write(p, sounds=[Sound()])),
    "wide pixels.mp4": lambda p: write(p, sounds=[Sound()], pixel=Fraction(64, 45)),
    "narrow pixels.mkv": lambda p: write(p, sounds=[Sound()], pixel=Fraction(8, 9)),
    "interlaced.mp4": lambda p: write(p, sounds=[Sound()], options={**FIELDS, "x264-params": "tff=1"}),
    "interlaced.mpg": lambda p: write(p, "mpeg2video", [Sound("mp2", 44_100)], fps=25, options=FIELDS),
    "variable rate.mkv": lambda p: write(p, stamps=wobbling(), sounds=[Sound()]),
    "variable rate.mp4": lambda p: write(p, stamps=wobbling(), sounds=[Sound()]),
    "60 per second.mp4": lambda p: write(p, fps=60, sounds=[Sound()]),
    "ntsc.mp4": lambda p: write(p, fps=Fraction(30_000, 1001), sounds=[Sound()]),
    "two tracks.mkv": lambda p: write(p, sounds=[Sound(), Sound("libopus", 48_000, 2)], titles=["eng", "deu"]),
    "8 kHz.mkv": lambda p: write(p, sounds=[Sound("pcm_u8", 8_000)]),
    "192 kHz.mkv": lambda p: write(p, sounds=[Sound("flac", 192_000)]),
    "five and one.mp4": lambda p: write(p, sounds=[Sound("aac", 48_000, 6)]),
    "seven and one.webm": lambda p: write(p, "libvpx", [Sound("libopus", 48_000, 8)]),
    "dolby.mp4": lambda p: write(p, sounds=[Sound("ac3", 48_000, 2)]),
    "sound before the picture.mkv": lambda p: write(p, first=1.0, sounds=[Sound(seconds=9.3)]),
    "gap, then enough.mp4": lambda p: two_parts(p, 2.0, 3.0, 13.5),
    "gap, then enough.mkv": lambda p: two_parts(p, 2.0, 3.0, 13.5),
    "cut off, but long.ts": lambda p: shortened(write(p, seconds=24, sounds=[Sound(seconds=24)], muxer="mpegts"), 0.5),
}
"""Files that are used."""
LEFT_OUT = {
    "late sound.mp4": ("sound missing: for 0.9", lambda p: write(p, sounds=[Sound(first=1.0, seconds=7.2)])),
    "sound ends early.mkv": ("sound missing: for 3.9", lambda p: write(p, sounds=[Sound(seconds=4)])),
    "hole in the sound.mkv": ("sound missing: for 2", lambda p: write(p, sounds=[Sound("flac", hole=(3.0, 2.0))])),
    "silent.mp4": ("silent: peak", lambda p: write(p, sounds=[Sound(wave=np.zeros(round(SECONDS * 16_000)))])),
    "faint.mkv": ("faint: ", lambda p: write(p, sounds=[Sound("flac", wave=bell(SECONDS, 16_000, 1, 0.0012))])),
    "clipped.mov": ("clipped sound: ", lambda p: write(p, sounds=[Sound("pcm_s16le", wave=loud())])),
    "black.mp4": ("black picture: 100%", lambda p: write(p, sounds=[Sound()], draw=black)),
    "frozen.mp4": ("frozen picture: ", lambda p: write(p, sounds=[Sound()], draw=still)),
    "frozen.webm": ("frozen picture: ", lambda p: write(p, "libvpx-vp9", [Sound("libopus", 48_000)], draw=still)),
    "no sound.mp4": ("no sound", lambda p: write(p)),
    "no picture.mp4": ("no picture in it", lambda p: write(p, None, [Sound()])),
    "short.mp4": ("5.00 s long, shorter than a clip", lambda p: write(p, seconds=5, sounds=[Sound(seconds=5)])),
    "gap.mp4": ("without a gap in its time stamps", lambda p: two_parts(p, 4.0, 3.0, 13.0)),
    "gap.mkv": ("without a gap in its time stamps", lambda p: two_parts(p, 4.0, 3.0, 13.0)),
    "half.mp4": ("cut off: the index", lambda p: shortened(write(p, sounds=[Sound()]), 0.5)),
    "half.mkv": ("cut off: 8.", lambda p: shortened(write(p, sounds=[Sound()]), 0.5)),
    "half, index first.mp4": ("cut off: 8.", lambda p: shortened(write(p, sounds=[Sound()], head=FASTSTART), 0.6)),
    "nothing.mp4": ("an empty file", lambda p: with_text(p, "")),
    "notes.mov": ("no video", lambda p: with_text(p, "these are notes, no video\n" * 50)),
    "picture.jpg": ("no video file (.jpg)", lambda p: with_text(p, "not even a picture")),
    "README": ("no video file (no suffix)", lambda p: with_text(p, "about these videos")),
    "zeros.avi": ("no video", lambda p: with_text(p, "\0" * 5000)),
}
"""Files that are not, with a part of the reason."""


def make_corpus(folder):
    """Write all files into `folder`."""
    for name, make in USED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)
    for name, (_, make) in LEFT_OUT.items():
        make(folder / name)


if __name__ == "__main__":
    make_corpus(Path(sys.argv[1]))
