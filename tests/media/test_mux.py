"""Video files that are written: readable, in sync, and with the same bytes for the same input."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import RATE, grey_frames, grey_level, tone, write_tone_video

from mmaudio.errors import DataError
from mmaudio.media.mux import mux_audio, write_video


def decode(path):
    """Times and mean levels of the frames, the audio (channels, samples) and its sample rate."""
    with av.open(str(path)) as container:
        levels = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
    audio = np.concatenate([block.to_ndarray() for block in blocks], axis=1)
    return levels, audio, blocks[0].sample_rate


@pytest.mark.parametrize("fps", [24, 25, Fraction(30_000, 1001)])
def test_every_frame_is_decoded_at_its_time_with_the_audio(tmp_path, fps):
    sound = tone(2)
    sound[:RATE] = 0
    write_video(tmp_path / "a.mp4", grey_frames(48), fps, sound, RATE)
    levels, audio, rate = decode(tmp_path / "a.mp4")
    assert len(levels) == 48
    assert rate == RATE
    for index, (time, mean) in enumerate(levels):
        assert time == pytest.approx(index / float(fps), abs=1e-4)
        assert mean == pytest.approx(grey_level(index), abs=4)
    onset = np.flatnonzero(np.abs(audio[0]) > 0.25)[0]
    assert onset == pytest.approx(RATE, abs=32)
    assert np.abs(audio[0, RATE : 2 * RATE] - sound[RATE:]).mean() < 0.02


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path):
    contents = {write_tone_video(tmp_path / f"{n}.mp4", 2).read_bytes() for n in range(6)}
    assert len(contents) == 1


@pytest.mark.slow
def test_new_audio_leaves_the_frames_unchanged(tmp_path):
    source = write_tone_video(tmp_path / "a.mp4", 2)
    mux_audio(source, np.stack([tone(2, 44_100)] * 2), 44_100, tmp_path / "b.mp4")
    before, after = decode(source), decode(tmp_path / "b.mp4")
    assert before[0] == after[0]
    assert after[1].shape[0] == 2
    assert after[2] == 44_100


def test_audio_can_be_added_to_a_silent_video(tmp_path):
    source = write_tone_video(tmp_path / "a.mp4", 1, sound=False)
    mux_audio(source, tone(1), RATE, tmp_path / "b.mp4")
    audio = decode(tmp_path / "b.mp4")[1][0, RATE // 4 : RATE // 2]
    assert np.abs(audio).mean() == pytest.approx(0.5 * 2 / np.pi, abs=0.01)


@pytest.mark.parametrize(("suffix", "hidden"), [(".mp4", 0.0), (".mov", 0.0), (".mkv", 0.32)])
def test_a_trimmed_video_stays_in_sync(tmp_path, suffix, hidden):
    """What was trimmed off is in the file up to the key frame before: an MP4 hides it, a Matroska file cannot."""
    write_tone_video(tmp_path / "a.mp4", 2, sound=False)
    with av.open(str(tmp_path / "a.mp4")) as old, av.open(str(tmp_path / "trimmed.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux():
            if packet.size:
                packet.pts -= round(0.32 / packet.time_base)
                packet.dts -= round(0.32 / packet.time_base)
                packet.stream = stream
                new.mux(packet)
    click = np.zeros(RATE, np.float32)
    click[RATE // 2 :][:200] = 0.9
    mux_audio(tmp_path / "trimmed.mp4", click, RATE, tmp_path / f"b{suffix}")
    levels, audio, rate = decode(tmp_path / f"b{suffix}")
    assert next(mean for time, mean in levels if time >= hidden - 1e-3) == pytest.approx(grey_level(8), abs=4)
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        first = next(container.decode(audio=0)).time
    assert first + np.abs(audio[0]).argmax() / rate == pytest.approx(hidden + 0.5, abs=0.02)


def test_a_failed_write_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="no frame"):
        write_video(tmp_path / "a.mp4", [], 25)
    with pytest.raises(DataError, match="even sides"):
        write_video(tmp_path / "a.mp4", [np.zeros((63, 64, 3), np.uint8)], 25)
    with pytest.raises(DataError, match="1 or 2 channels"):
        write_video(tmp_path / "a.mp4", grey_frames(2), 25, np.zeros((3, 100), np.float32))
    (tmp_path / "junk.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"junk\.mp4"):
        mux_audio(tmp_path / "junk.mp4", tone(1), RATE, tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["junk.mp4"]
