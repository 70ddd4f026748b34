"""Audio windows in one pass: equal to those of the whole file resampled, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from video_files import RATE, write_blocks, write_tone_video

from mmaudio.errors import DataError
from mmaudio.media.audio import cut_audio_window, read_audio, resample_audio
from mmaudio.media.audio_windows import read_audio_windows, resample_chunks
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe

RATES = [(44_100, 16_000), (48_000, 16_000), (48_000, 44_100), (8_000, 16_000), (11_025, 44_100), (192_000, 44_100)]


def noise(samples):
    return torch.rand(samples, generator=torch.Generator().manual_seed(samples)) * 2 - 1


def noisy_video(path, seconds, rate=44_100):
    frames = [np.zeros((64, 64, 3), np.uint8)] * round(seconds * 25)
    write_video(path, frames, 25, noise(round(seconds * rate)).numpy(), rate)
    return path


@pytest.mark.parametrize(("orig_rate", "new_rate"), RATES)
@pytest.mark.parametrize("length", [1, 700, 300_001])
def test_chunks_resample_like_the_whole(orig_rate, new_rate, length):
    sound = noise(length)
    joined = torch.cat(list(resample_chunks(sound.split(1024), orig_rate, new_rate)))
    expected = resample_audio(sound, orig_rate, new_rate)
    assert joined.shape == expected.shape
    torch.testing.assert_close(joined, expected, atol=2e-6, rtol=0)


def test_without_a_change_of_rate_the_chunks_are_returned():
    chunks = list(noise(5000).split(999))
    assert all(a is b for a, b in zip(resample_chunks(chunks, 16_000, 16_000), chunks, strict=True))


@pytest.mark.slow
def test_windows_are_those_of_the_whole_file(tmp_path):
    info = probe(noisy_video(tmp_path / "a.mp4", 9))
    waveform, rate = read_audio(info.path, info)
    waveform = resample_audio(waveform, rate, 16_000)
    starts = [0.0, 0.7, 0.7, 5.31, 8.2, 30.0]
    windows = list(read_audio_windows(info, starts, 16_000, 32_000))
    for start, window in zip(starts, windows, strict=True):
        torch.testing.assert_close(window, cut_audio_window(waveform, 16_000, start, 32_000), atol=5e-6, rtol=0)
    assert windows[0].abs().max() == pytest.approx(0.95)
    assert windows[4][16_000:].abs().max() == 0  # past the file's end
    assert windows[5].abs().max() == 0
    (quiet,) = read_audio_windows(info, [2.0], 16_000, 16_000, peak=None)
    torch.testing.assert_close(quiet, waveform[32_000:48_000], atol=5e-6, rtol=0)


def test_resampling_reads_little_ahead():
    """The output lags little behind the input, so that an hour of audio is never buffered."""
    samples_in = samples_out = 0

    def chunks():
        nonlocal samples_in
        for _ in range(60 * 43):
            samples_in += 1024
            yield torch.zeros(1024)

    for chunk in resample_chunks(chunks(), 44_100, 16_000):
        samples_out += len(chunk)
        assert samples_in / 44_100 - samples_out / 16_000 < 0.1
        assert len(chunk) < 1.1 * 16_000


def test_a_wrong_time_stamp_takes_no_memory(tmp_path):
    """A hole of eleven days in the audio is not filled: the audio ends there."""
    second = np.full(RATE, 9000, np.int16)
    write_blocks(tmp_path / "a.mkv", [(0, second), (1_000_000, second)], RATE)
    first, second = read_audio_windows(probe(tmp_path / "a.mkv"), [0.0, 4.0], RATE, 2 * RATE)
    assert (float(first[8_000]), float(first[24_000])) == (pytest.approx(0.95), 0.0)
    assert second.abs().max() == 0


def test_a_video_without_audio_is_refused(tmp_path):
    info = probe(write_tone_video(tmp_path / "a.mp4", 1, sound=False))
    with pytest.raises(DataError, match=r"a\.mp4: no sound"):
        next(read_audio_windows(info, [0.0], 16_000, 16_000))
