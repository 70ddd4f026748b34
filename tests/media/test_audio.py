"""Audio of a video: on the time axis of the frames, resampled, cut to the exact sample."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from video_corpus import Sound, write
from video_files import RATE, tone, write_blocks, write_tone_video

from mmaudio.errors import DataError
from mmaudio.media.audio import cut_audio_window, decode_audio, read_audio, resample_audio
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe


@pytest.mark.slow
def test_all_channels_are_averaged(tmp_path):
    sound = np.stack([tone(2), np.zeros(2 * RATE, np.float32)])
    write_video(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 50, 25, sound, RATE)
    waveform, rate = read_audio(tmp_path / "a.mp4")
    assert rate == RATE
    assert waveform.dtype == torch.float32
    assert float(waveform[RATE // 2 : RATE].abs().max()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.75])
def test_sample_zero_is_at_the_first_frame(tmp_path, shift):
    """A click 1 s after the first frame is read there, wherever the two streams begin."""
    clicks = np.zeros(3 * RATE, np.int16)
    clicks[round((1 - shift) * RATE) :][:200] = 20_000
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = 25 + index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(clicks[None], format="s16", layout="mono")
        block.sample_rate, block.time_base, block.pts = RATE, Fraction(1, RATE), round((1 + shift) * RATE)
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    waveform, _ = read_audio(tmp_path / "a.mkv")
    assert int(waveform.abs().argmax()) == pytest.approx(RATE, abs=RATE // 500)


def write_stream_segment(path, first, sound):
    """A segment of a transport stream: a second of video from `first` seconds on, `sound` (samples,) at 48 kHz."""
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("mp2", rate=48_000, layout="mono")
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = 25 * first + index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, len(sound) - 1151, 1152):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1152], format="s16", layout="mono")
            block.sample_rate, block.time_base, block.pts = 48_000, Fraction(1, 48_000), 48_000 * first + start
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return path.read_bytes()


def test_overlapping_audio_delays_nothing_after_it(tmp_path):
    """Concatenated segments of a transport stream, each with more audio than video."""
    sound = np.zeros(round(1.25 * 48_000), np.int16)
    segments = [write_stream_segment(tmp_path / "segment.ts", number, sound) for number in range(3)]
    sound[24_000:][:200] = 20_000
    segments.append(write_stream_segment(tmp_path / "segment.ts", 3, sound))
    (tmp_path / "a.ts").write_bytes(b"".join(segments))
    waveform, rate = read_audio(tmp_path / "a.ts")
    assert int(waveform.abs().argmax()) / rate == pytest.approx(3.5, abs=0.05)


def test_a_video_without_audio_is_refused(tmp_path):
    path = write_tone_video(tmp_path / "a.mp4", 1, sound=False)
    with pytest.raises(DataError, match=r"a\.mp4: no sound"):
        read_audio(path, probe(path))


def test_resampling_preserves_a_tone_and_its_time():
    sound = torch.from_numpy(tone(1, 44_100))
    resampled = resample_audio(sound, 44_100, RATE)
    assert resampled.shape == (RATE,)
    torch.testing.assert_close(resampled[800:-800], torch.from_numpy(tone(1))[800:-800], atol=1e-3, rtol=0)
    assert resample_audio(sound, 44_100, 44_100) is sound


def test_a_window_has_the_exact_samples_and_peak():
    ramp = torch.arange(100, dtype=torch.float32)
    assert cut_audio_window(ramp, 10, 2.0, 5, peak=None).tolist() == [20, 21, 22, 23, 24]
    assert cut_audio_window(ramp, 10, 2.04, 5, peak=None)[0] == 20
    end = cut_audio_window(ramp, 10, 9.8, 5)
    assert end.tolist() == pytest.approx([0.95 * 98 / 99, 0.95, 0, 0, 0])
    assert cut_audio_window(torch.zeros(100), 10, 0.0, 5).tolist() == [0] * 5


@pytest.mark.parametrize("overlap", [0.2, 0.25, 0.29])
def test_after_an_overlap_nothing_is_left_over(tmp_path, overlap):
    """A click in a segment of a transport stream stands where it does without the segments before it."""
    sound = np.zeros(round((1 + overlap) * 48_000), np.int16)
    sound[24_000:][:200] = 20_000
    segments = [write_stream_segment(tmp_path / "segment.ts", number, sound) for number in range(1, 5)]
    (tmp_path / "a.ts").write_bytes(b"".join(segments))
    waveform, rate = read_audio(tmp_path / "a.ts")
    first, last = (int(waveform[start * rate : (start + 1) * rate].abs().argmax()) for start in (0, 3))
    assert (last - first) / rate == pytest.approx(0, abs=0.003)


def test_sound_after_a_gap_of_many_minutes_is_there(tmp_path):
    second = np.full(RATE, 9000, np.int16)
    path = write_blocks(tmp_path / "a.mkv", [(0, second), (1500, second)])
    waveform, _ = read_audio(path)
    assert len(waveform) == 1501 * RATE
    assert waveform[RATE:-RATE].abs().max() == 0 and waveform[-RATE:].min() > 0.2


@pytest.mark.parametrize(("encoder", "channels"), [("aac", 1), ("aac", 2), ("aac", 6), ("flac", 2)])
def test_sound_comes_in_blocks_of_a_second_whatever_the_codec_packs(tmp_path, encoder, channels):
    generator = np.random.default_rng(0)
    noise = generator.uniform(-0.5, 0.5, (channels, round(2.5 * RATE))).astype(np.float32)
    path = write(tmp_path / "a.mkv", seconds=2.5, sounds=[Sound(encoder, channels=channels, wave=noise)])
    info = probe(path)
    chunks = list(decode_audio(info))
    assert len(chunks) <= 6 and all(len(chunk.waveform) <= RATE for chunk in chunks)
    expected, resampler = [], av.AudioResampler(format="flt", rate=RATE)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            expected += [block.to_ndarray().reshape(-1, channels).T for block in resampler.resample(frame)]
    shift = round(info.start_time * RATE)
    assert len(expected) > 10
    decoded = torch.from_numpy(np.concatenate(expected, axis=1)).mean(0)[shift:]
    assert torch.equal(torch.cat([chunk.waveform for chunk in chunks]), decoded)
