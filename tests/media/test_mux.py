"""Writing videos: what is written can be read, at the right times, and the same input gives the same bytes."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from media import RATE, frames, level, make_video, tone

from mmaudio.errors import DataError
from mmaudio.media.mux import mux_audio, write_video


def decoded(path):
    """Times and mean levels of the picture, the sound (channels, samples) and its rate."""
    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
    sound = np.concatenate([block.to_ndarray() for block in blocks], axis=1)
    return pictures, sound, blocks[0].sample_rate


@pytest.mark.parametrize("fps", [24, 25, Fraction(30_000, 1001)])
def test_every_frame_comes_back_at_its_time_with_the_sound(tmp_path, fps):
    sound = tone(2)
    sound[:RATE] = 0
    write_video(tmp_path / "a.mp4", frames(48), fps, sound, RATE)
    pictures, heard, rate = decoded(tmp_path / "a.mp4")
    assert len(pictures) == 48
    assert rate == RATE
    for index, (time, mean) in enumerate(pictures):
        assert time == pytest.approx(index / float(fps), abs=1e-4)
        assert mean == pytest.approx(level(index), abs=4)
    onset = np.flatnonzero(np.abs(heard[0]) > 0.25)[0]
    assert onset == pytest.approx(RATE, abs=32)
    assert np.abs(heard[0, RATE : 2 * RATE] - sound[RATE:]).mean() < 0.02


def test_the_same_input_gives_the_same_bytes(tmp_path):
    contents = {make_video(tmp_path / f"{n}.mp4", 2).read_bytes() for n in range(6)}
    assert len(contents) == 1


def test_a_new_sound_leaves_the_picture_as_it_is(tmp_path):
    source = make_video(tmp_path / "a.mp4", 2)
    mux_audio(source, np.stack([tone(2, 44_100)] * 2), 44_100, tmp_path / "b.mp4")
    before, after = decoded(source), decoded(tmp_path / "b.mp4")
    assert before[0] == after[0]
    assert after[1].shape[0] == 2
    assert after[2] == 44_100


def test_a_sound_can_be_put_beside_a_silent_picture(tmp_path):
    source = make_video(tmp_path / "a.mp4", 1, sound=False)
    mux_audio(source, tone(1), RATE, tmp_path / "b.mp4")
    heard = decoded(tmp_path / "b.mp4")[1][0, RATE // 4 : RATE // 2]
    assert np.abs(heard).mean() == pytest.approx(0.5 * 2 / np.pi, abs=0.01)


@pytest.mark.parametrize(("suffix", "hidden"), [(".mp4", 0.0), (".mov", 0.0), (".mkv", 0.32)])
def test_a_trimmed_picture_keeps_time_with_its_sound(tmp_path, suffix, hidden):
    """What was trimmed off is in the file up to the key frame before: an MP4 hides it, a Matroska file cannot."""
    make_video(tmp_path / "a.mp4", 2, sound=False)
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
    pictures, heard, rate = decoded(tmp_path / f"b{suffix}")
    assert next(mean for time, mean in pictures if time >= hidden - 1e-3) == pytest.approx(level(8), abs=4)
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        first = next(container.decode(audio=0)).time
    assert first + np.abs(heard[0]).argmax() / rate == pytest.approx(hidden + 0.5, abs=0.02)


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no frame"):
        write_video(tmp_path / "a.mp4", [], 25)
    with pytest.raises(DataError, match="even sides"):
        write_video(tmp_path / "a.mp4", [np.zeros((63, 64, 3), np.uint8)], 25)
    with pytest.raises(DataError, match="1 or 2 channels"):
        write_video(tmp_path / "a.mp4", frames(2), 25, np.zeros((3, 100), np.float32))
    (tmp_path / "junk.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"junk\.mp4"):
        mux_audio(tmp_path / "junk.mp4", tone(1), RATE, tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["junk.mp4"]
