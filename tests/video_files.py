"""Videos for tests: a moving square with a tone, written as real files in a fraction of a second."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.torch import save_file

from mmaudio.features.clip import build_clip
from mmaudio.features.synchformer import build_synchformer
from mmaudio.features.vae import build_vae
from mmaudio.media.mux import write_video
from mmaudio.model.spec import CLIP_SECONDS, SYNC_FPS

RATE = 16_000


def grey_level(index):
    """The grey level of frame number `index`: it tells neighbouring frames apart after H.264."""
    return (index * 40) % 200 + 20


def grey_frames(count, side=64):
    """`count` even grey frames, each of its own level."""
    for index in range(count):
        yield np.full((side, side, 3), grey_level(index), np.uint8)


def tone(seconds, rate=RATE, amplitude=0.5):
    """A 440 Hz tone (samples,)."""
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_tone_video(path, seconds=8.0, fps=25, amplitude=0.5, sound=True, side=64):
    """A video with a tone of `amplitude`; `sound=False`: without a sound track."""
    waveform = tone(seconds, amplitude=amplitude) if sound else None
    write_video(path, grey_frames(round(seconds * fps), side), fps, waveform, RATE)
    return path


def truncate_mp4(source, target, share=0.5):
    """The first `share` of a file whose index is moved to its head first, as downloads have it."""
    moved = Path(target).with_name(f"moved.{Path(target).name}")
    head = {"movflags": "+faststart"} if moved.suffix == ".mp4" else {}
    with av.open(str(source)) as old, av.open(str(moved), "w", options=head) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    content = moved.read_bytes()
    moved.unlink()
    Path(target).write_bytes(content[: round(len(content) * share)])
    return target


def write_variable_rate_video(path, stamps):
    """A video without sound whose frame number i is shown at `stamps[i]` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for pixels, stamp in zip(grey_frames(len(stamps)), stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(stamp * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_encoded_video(path, muxer, encoder, seconds=2, first=0, pixels="yuv420p", **options):
    """A silent video by any muxer and encoder of FFmpeg, 25 fps; frame number 0 is shown at `first` seconds."""
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(grey_frames(round(seconds * 25))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = index + round(first * 25), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotated_video(path, degrees=90):
    """Write a quarter turn into an MP4's header, as phones do; the picture's bytes stay as they are."""
    content = Path(path).read_bytes()
    matrix = {90: (0, 1 << 16, -1 << 16, 0), 270: (0, -1 << 16, 1 << 16, 0)}[degrees]
    a, b, c, d = (value.to_bytes(4, "big", signed=True) for value in matrix)
    zero = bytes(4)
    start = content.index(b"tkhd") + 4 + 40  # the matrix of a version 0 header
    assert content[start : start + 4] == (1 << 16).to_bytes(4, "big")
    new = a + b + zero + c + d + zero + content[start + 24 : start + 36]
    Path(path).write_bytes(content[:start] + new + content[start + 36 :])
    return path


def random_encoders(folder):
    """Weights files of tiny_16k's encoders with random values, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        states = {
            "vae": build_vae("tiny_16k").state_dict(),
            "clip": build_clip("tiny_16k").model.state_dict(),
            "synchformer": build_synchformer("tiny_16k").state_dict(),
        }
    for name, state in states.items():
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return folder


def put_nan(path, name, row):
    """Write a NaN into a row of a shard, where it lies."""
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + size])[name]
    start, end = entry["data_offsets"]
    offset = 8 + size + start + (end - start) // entry["shape"][0] * row + 8
    content[offset : offset + 4] = torch.tensor([torch.nan]).numpy().tobytes()
    path.write_bytes(content)


def write_blocks(path, blocks, rate=16_000):
    """A Matroska file of a second of video and sound (start in seconds, samples) at `rate`, as its stamps say."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start, samples in blocks:
            packet = av.Packet(samples.astype("<i2").tobytes())
            packet.pts = packet.dts = round(start * 1000)
            packet.time_base, packet.stream = Fraction(1, 1000), sound
            container.mux_one(packet)
    return path


def write_jumps(path, seed: int, late: float = 0.0, seconds: float = CLIP_SECONDS + 0.2) -> None:
    """A square that jumps at irregular times, with a click at each, `late` seconds after it."""
    rng, count = np.random.default_rng(seed), round(seconds * SYNC_FPS)
    times = np.cumsum(rng.uniform(0.3, 1.4, 20))
    sound = 0.002 * rng.normal(size=count * 16_000 // SYNC_FPS)
    for time in times + late:
        sound[round(time * 16_000) :][:800] += 0.5 * rng.normal(size=len(sound[round(time * 16_000) :][:800]))
    corners = rng.integers(0, 40, (len(times) + 1, 2))
    frames = np.full((count, 64, 64, 3), 60, np.uint8)
    for index, frame in enumerate(frames):
        x, y = corners[(times <= index / SYNC_FPS).sum()]
        frame[y : y + 20, x : x + 20] = 220
    write_video(path, iter(frames), SYNC_FPS, sound.clip(-1, 1), 16_000)


def read_audio(path):
    """The samples of a file's sound, as they are stored."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def read_comment(path):
    """The JSON in the comment of a generated file."""
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}  # WebM writes them large
    return json.loads(tags["comment"])
