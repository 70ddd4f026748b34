"""Videos with the number of every picture in it and a sound that never repeats, and what of them is read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition
from video_corpus import Sound, add_audio_streams, decoding_time, write

from mmaudio.media.audio import resample_audio
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.video import probe

SIZE = (96, 64)
BLOCK = 16
COLUMNS, BITS = SIZE[0] // BLOCK, 12
RATE = 16_000
"""At which sounds are read back."""
WINDOW = 2.0
"""Seconds."""
VOP, USER_DATA, GROUP_OF_VOP = b"\0\0\1\xb6", b"\0\0\1\xb2", b"\0\0\1\xb3"
"""Start codes of MPEG-4."""
B_FRAME = 2
SKIPPED = VOP + bytes([0x51, 0])
"""A packet of nothing."""
GRID_FPS = 250
"""Every picture of a window is one of so many a second."""
SEARCH = 0.4
"""Seconds by which the sound is searched for, each way."""


def numbered(index, width=SIZE[0], height=SIZE[1]):
    """Picture `index`: its number in twelve black or white blocks, and the opposite of them below (H, W, 3)."""
    bits = [index >> bit & 1 for bit in range(BITS)]
    blocks = np.array(bits + [1 - bit for bit in bits], np.uint8).reshape(-1, COLUMNS)
    levels = np.kron(40 + 175 * blocks, np.ones((BLOCK, BLOCK), np.uint8))
    return np.repeat(levels[:height, :width, None], 3, 2)


def read_number(frames):
    """The number in a picture (1, 3, H, W), -1 where it is none: (1,)."""
    levels = frames.float().mean(1)[0].unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)[..., 4:-4, 4:-4].mean((2, 3))
    ones, zeros = levels.flatten().reshape(2, BITS)
    number = sum(1 << bit for bit in range(BITS) if ones[bit] > zeros[bit])
    return torch.tensor([number if float((ones - zeros).abs().min()) > 40 else -1])


def rustle(seconds, rate, seed=0):
    """Noise below about 2 kHz: no stretch of it is like another one (samples,)."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    kernel = np.hanning(max(3, rate // 2000))
    smooth = np.convolve(noise, kernel, "same")
    return (0.3 * smooth / np.abs(smooth).max()).astype(np.float32)


@dataclass
class Reading:
    """What is read of a file's windows."""

    numbers: list[int]
    """Of all pictures in the order of their times."""
    late: list[float]
    """Seconds by which a picture stands later than it was written, after the first one."""
    offsets: list[float]
    """By window, seconds by which the sound is later than the picture, against what was written."""


@dataclass
class TimedVideo:
    """A video to be written, with pictures by number and a sound that never repeats."""

    video: str = "libx264"
    audio: str = "pcm_s16le"
    rate: int = 48_000
    fps: Fraction | int = 25
    seconds: float = 6.0
    muxer: str | None = None
    options: dict[str, str] | None = None
    pixels: str = "yuv420p"
    first: float = 0.0
    """At which picture and sound begin, in seconds."""
    stamps: list[float] | None = None
    """When each picture is shown, where the rate varies."""

    @property
    def shown(self) -> list[float]:
        """When each picture is shown, in seconds."""
        return self.stamps or [self.first + index / float(self.fps) for index in range(round(self.seconds * self.fps))]

    def write(self, path: Path) -> Path:
        """Write the file."""
        sound = Sound(self.audio, self.rate, first=self.first, wave=rustle(self.seconds, self.rate))
        write(
            path,
            self.video,
            [sound],
            self.seconds,
            self.fps,
            SIZE,
            self.pixels,
            numbered,
            self.muxer,
            self.first,
            self.stamps,
            options=self.options,
        )
        return path

    def read(self, path: Path) -> Reading:
        """Read all windows back."""
        return read_back(path, self.shown, rustle(self.seconds, self.rate), self.rate, self.seconds)


def several(path, lengths, default=None, first=0, sound=None):
    """A video whose streams have so many pictures at 10 a second, from `first`, 100 more, ... on."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in lengths]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            if default is not None:
                stream.disposition = Disposition.default if number == default else Disposition(0)
        sound = sound or Sound(seconds=3)
        (audio,) = add_audio_streams(container, [sound], None)
        packets = []
        for number, (stream, length) in enumerate(zip(streams, lengths, strict=True)):
            for index in range(length):
                frame = av.VideoFrame.from_ndarray(numbered(first + 100 * number + index), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in [*packets, *sound.packets(container, audio)]:
            container.mux(packet)
    return path


def copied(source: Path, path: Path) -> Path:
    """The packets of a file in another container."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
        for packet in read.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                written.mux(packet)
    return path


def packed(source: Path, path: Path) -> Path:
    """An AVI of MPEG-4 with packed B-frames, as DivX writes: each lies beside its successor, then an empty packet."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
        packets = [packet for packet in read.demux() if packet.size]
        sound = [packet for packet in packets if packet.stream.type == "audio"]
        groups: list[list[bytes]] = []
        for content in (bytes(packet) for packet in packets if packet.stream.type == "video"):
            if content[content.index(VOP) + 4] >> 6 == B_FRAME:
                groups[-1].append(content)
            else:
                groups.append([content])
        groups[0][0] = _with_user_data(groups[0][0], b"DivX503b1393p")
        contents = [
            content
            for first, *others in groups
            for content in ([first + others[0], *others[1:], SKIPPED] if others else [first])
        ]
        for packet in sound:
            packet.stream = streams[packet.stream_index]
        video = next(stream for stream in streams.values() if stream.type == "video")
        pictures = []
        for index, content in enumerate(contents):
            packet = av.Packet(content)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), video, index == 0
            pictures.append(packet)
        for packet in sorted([*pictures, *sound], key=decoding_time):
            written.mux(packet)
    return path


def _with_user_data(content: bytes, text: bytes) -> bytes:
    """The first packet of MPEG-4 with another name of its encoder."""
    start = content.index(USER_DATA)
    return content[:start] + USER_DATA + text + content[content.index(GROUP_OF_VOP) :]


def from_key_picture(source: Path, path: Path, number: int) -> Path:
    """The packets of a file from key picture `number` on, with the sound from there, in another container."""
    with av.open(str(source)) as read:
        packets = [packet for packet in read.demux() if packet.size]
        keys = [packet for packet in packets if packet.stream.type == "video" and packet.is_keyframe]
        start = keys[number].pts * keys[number].time_base
        with av.open(str(path), "w") as written:
            streams = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
            pictures = [packet for packet in packets if packet.stream.type == "video"]
            after = pictures[pictures.index(keys[number]) :]
            for packet in packets:
                is_sound = packet.stream.type == "audio" and packet.pts * packet.time_base >= start
                if is_sound or packet in after:
                    packet.stream = streams[packet.stream_index]
                    written.mux(packet)
    return path


def with_edits(path: Path, edits: list[tuple[float, float | None]]) -> Path:
    """An MP4 whose tracks all have another edit list: seconds of each edit, and where it begins in the track."""
    content = path.read_bytes()
    start, end = next((start, end) for kind, start, end in _boxes(content) if kind == b"moov")
    assert end == len(content), "the offsets of the packets stay as they are"
    header = content[start:end]
    scale = int.from_bytes(header[header.index(b"mvhd") + 16 :][:4], "big")
    parts = [_edited_track(header[a:b], scale, edits) if k == b"trak" else header[a:b] for k, a, b in _boxes(header, 8)]
    path.write_bytes(content[:start] + _box(b"moov", b"".join(parts)))
    return path


def _boxes(content: bytes, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the boxes of an MP4 from `start` on."""
    while start < len(content):
        end = start + int.from_bytes(content[start : start + 4], "big")
        yield content[start + 4 : start + 8], start, end
        start = end


def _box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def _edited_track(track: bytes, movie_scale: int, edits: list[tuple[float, float | None]]) -> bytes:
    """A track's box with another edit list; its own says where its first packet begins."""
    scale = int.from_bytes(track[track.index(b"mdhd") + 16 :][:4], "big")
    first = int.from_bytes(track[track.index(b"elst") + 16 :][:4], "big")
    entries = b"".join(
        struct.pack(">IiHH", round(s * movie_scale), -1 if at is None else first + round(at * scale), 1, 0)
        for s, at in edits
    )
    edit_list = _box(b"edts", _box(b"elst", struct.pack(">II", 0, len(edits)) + entries))
    parts = [edit_list if kind == b"edts" else track[a:b] for kind, a, b in _boxes(track, 8)]
    return _box(b"trak", b"".join(parts))


def read_back(path: Path, shown: list[float], wave: np.ndarray, rate: int, seconds: float) -> Reading:
    """Read all windows: pictures written for the times `shown`, sound `wave` (samples,) from the first of them on."""
    info = probe(path)
    starts = [WINDOW * index for index in range(int(seconds / WINDOW))]
    grid = FrameGrid(GRID_FPS, round(WINDOW * GRID_FPS), read_number)
    truth = resample_audio(torch.from_numpy(wave), rate, RATE)
    times: dict[int, float] = {}
    offsets = []
    sounds = read_audio_windows(info, starts, RATE, round(WINDOW * RATE), peak=None)
    for window, sound in zip(read_frame_windows(info, starts, [grid]), sounds, strict=True):
        pairs = {time: int(number) for time, number in zip(window.presentation_times[0], window.frames[0], strict=True)}
        times |= {number: time for time, number in pairs.items()}
        late = [time - (shown[number] - shown[0]) for time, number in pairs.items() if 0 <= number < len(shown)]
        offsets.append(sound_delay(sound, truth, window.start) - float(np.median(late)))
    ordered = sorted(times.items(), key=lambda item: item[1])
    numbers = [number for number, _ in ordered]
    return Reading(numbers, [t - (shown[n] - shown[0]) for n, t in ordered if 0 <= n < len(shown)], offsets)


def sound_delay(sound, truth, start):
    """Seconds by which `sound` (T,) is later than the stretch of `truth` that begins at `start` seconds."""
    margin = round(SEARCH * RATE)
    first = round(start * RATE) - margin
    padded = torch.nn.functional.pad(truth, (margin, margin + len(sound)))
    stretch = padded[first + margin :][: len(sound) + 2 * margin]
    size = 2 * len(stretch)
    product = torch.fft.irfft(torch.fft.rfft(stretch, size) * torch.fft.rfft(sound, size).conj(), size)
    return (margin - int(product[: 2 * margin].argmax())) / RATE
