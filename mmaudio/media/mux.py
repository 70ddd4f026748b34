"""Video files to write: frames and audio encoded as MP4, or new audio muxed with a copied video stream.

Both functions write to a temporary name beside the output and rename it, so that a file that exists is complete; the
same input gives the same bytes (one encoder thread, no dates).
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
from mmaudio.media.frame_times import DECODING, stamp_of
from mmaudio.media.local_files import create_media
from mmaudio.media.streams import DEFAULT_STREAMS, StreamChoice, video_stream
from mmaudio.media.video import VideoInfo, decode_frames, open_container, probe, read_packets
from mmaudio.utils.files import atomic_write

Frame = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
_LAYOUTS = {1: "mono", 2: "stereo"}
_BLOCK_SAMPLES = 1024
"""Samples of a frame for the audio encoder."""
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_CONTAINER_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")
"""Tags that describe the source's container and are not copied."""
_X264_OPTIONS = {"preset": "veryfast", "x264-params": "mbtree=0"}
"""With macroblock-tree rate control, x264 gives other bytes from one call to the next even on one thread."""


def write_video(
    path: Path | str,
    frames: Iterable[Frame],
    fps: Fraction | int | float,
    waveform: npt.ArrayLike | None = None,
    sample_rate: int = 44_100,
    crf: int = 18,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Encode frames and audio into an MP4 (H.264, AAC) at `path`.

    `frames`: RGB, each (H, W, 3) uint8 with even sides, at `fps`. `waveform`: (samples,) or (channels, samples)
    within [-1, 1] at `sample_rate` Hz; None: no audio. `crf`: x264's quality, lower is better. `tags` are metadata.
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
    with atomic_write(target) as partial, create_media(partial, "mp4") as container:
        container.metadata.update(tags or {})
        video = container.add_stream("libx264", rate=frame_rate, options={"crf": str(crf), **_X264_OPTIONS})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.thread_count = 1
        audio = _AudioEncoder(container, waveform, sample_rate, "aac") if waveform is not None else None
        for index, pixels in enumerate(chain([first], iterator)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(video.encode(frame))
            if audio is not None:
                audio.write_until((index + 1) / frame_rate)
        container.mux(video.encode(None))
        if audio is not None:
            audio.finish()


def mux_audio(
    video_path: Path | str,
    waveform: npt.ArrayLike,
    sample_rate: int,
    output: Path | str,
    tags: Mapping[str, str] | None = None,
    streams: StreamChoice = DEFAULT_STREAMS,
) -> None:
    """Mux the picture of `video_path`, copied without encoding, with `waveform` as the only audio into `output`.

    `waveform`: (samples,) or (channels, samples) at `sample_rate` Hz. The suffix of `output` is one of CONTAINERS.

    The first presented frame and the first sample are at time 0. Frames that an MP4 hides before its beginning, as
    after trimming, are hidden again in MP4 and MOV; the other formats show them first, in silence, and the audio stays
    in sync. Rotation and the file's tags are copied; `tags` are added. Raises DataError where the video cannot be read
    or `output` cannot hold its stream, MMAudioError where nothing can be written there.
    """
    info, target = probe(video_path, streams), Path(output)
    output_format = CONTAINERS.get(target.suffix.lower())
    if output_format is None:
        raise DataError(f"{target.name}: a video file ends in {', '.join(CONTAINERS)}")
    try:
        with (
            open_container(info.path) as source,
            atomic_write(target) as partial,
            create_media(partial, output_format.muxer) as container,
        ):
            stream = video_stream(source, info.path, info.video_track)
            container.metadata.update(_copied_tags(source) | dict(tags or {}))
            output_stream = container.add_stream_from_template(stream, opaque=True)
            audio = _AudioEncoder(container, waveform, sample_rate, output_format.audio_codec)
            for packet in _shift_packets(source, stream, info):
                packet.stream = output_stream
                audio.write_until(_decoding_time(packet))
                container.mux(packet)
            audio.finish()
    except (av.FFmpegError, ValueError) as error:
        raise DataError(f"{info.path.name}: its picture cannot be copied to {target.name} ({error})") from error


def _copied_tags(container: Any) -> dict[str, str]:
    """The tags of a file that do not describe its container, with lower-case names."""
    tags = {name.lower(): value for name, value in container.metadata.items()}
    return {name: value for name, value in tags.items() if name not in _CONTAINER_TAGS}


def _shift_packets(source: Any, stream: Any, info: VideoInfo) -> Iterator[Any]:
    """The stream's packets with times counted from its first frame; a truncated file ends without an error."""
    offset = round(info.start_time / stream.time_base)
    is_reordered = info.timing.source == DECODING and stream.codec_context.has_b_frames
    stamps = _presentation_stamps(info) if is_reordered else {}
    for packet in read_packets(source, stream):
        if not packet.size:
            continue
        if packet.pts is not None:
            packet.pts = stamps.get(packet.pts, packet.pts) - offset
        if packet.dts is not None:
            packet.dts -= offset + info.timing.lead
        yield packet


def _presentation_stamps(info: VideoInfo) -> dict[int, int]:
    """The presentation stamp of every packet of a file without right ones, by the one that it has; all is decoded."""
    stamps: dict[int, int] = {}
    with open_container(info.path) as container:
        frames = decode_frames(container, video_stream(container, info.path, info.video_track), deinterlace=False)
        last, interval = 0, 1
        for frame in frames:
            stamp = stamp_of(frame, info.timing)
            stamp = last + interval if stamp is None else stamp
            last, interval = stamp, stamp - last or interval
            stamps[frame.pts] = stamp
    return stamps


def _decoding_time(packet: Any) -> Fraction:
    """Decoding time of a packet in seconds; some files have only the presentation time."""
    timestamp = packet.dts if packet.dts is not None else packet.pts
    return (timestamp or 0) * (packet.time_base or Fraction(0))


class _AudioEncoder:
    """An audio stream that is encoded in step with the video packets."""

    def __init__(self, container: Any, waveform: npt.ArrayLike, sample_rate: int, codec: str) -> None:
        samples = np.atleast_2d(np.asarray(waveform, dtype=np.float32))
        if samples.ndim != 2 or samples.shape[0] not in _LAYOUTS:
            raise DataError(f"a sound of shape {samples.shape}; (samples,) or (1 or 2 channels, samples) is needed")
        self.samples: Samples = np.ascontiguousarray(samples.clip(-1.0, 1.0))
        self.container, self.sample_rate, self.position = container, sample_rate, 0
        self.layout = _LAYOUTS[samples.shape[0]]
        encoder_rate = 48_000 if codec == "libopus" and sample_rate not in _OPUS_RATES else sample_rate
        bit_rate = 96_000 * samples.shape[0]
        self.stream = container.add_stream(codec, rate=encoder_rate, layout=self.layout, bit_rate=bit_rate)

    def write_until(self, seconds: Fraction) -> None:
        """Encode the samples before `seconds`, in whole blocks."""
        while self.position < min(self.samples.shape[1], seconds * self.sample_rate):
            block = np.ascontiguousarray(self.samples[:, self.position : self.position + _BLOCK_SAMPLES])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self.layout)
            frame.sample_rate, frame.time_base = self.sample_rate, Fraction(1, self.sample_rate)
            frame.pts = self.position
            self.container.mux(self.stream.encode(frame))
            self.position += block.shape[1]

    def finish(self) -> None:
        """Encode the remaining samples."""
        self.write_until(Fraction(self.samples.shape[1], self.sample_rate))
        self.container.mux(self.stream.encode(None))
