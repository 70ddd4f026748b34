"""Training clips whose sound does not fit the picture: on generated videos of which one has its sound a second late."""

import json

import numpy as np
import pytest
import torch
from random_base import MODEL, add_classifier, make_base
from test_evaluate import ENCODERS, command, make_adapter, random_features

import evaluate_lora
from mmaudio.data.clips import Clip, write_clips
from mmaudio.data.feature_store import Header, read_shard, shard_path, write_shard
from mmaudio.errors import DataError
from mmaudio.evaluation.sync_check import AGREE, NOTICED, check_data, envelopes
from mmaudio.features.desync import load_desync
from mmaudio.media.mux import write_video
from mmaudio.metrics.av_offset import FPS, SIDE, Envelopes, at_frames, correlation, motion_envelope, shifts
from mmaudio.model.spec import SECONDS, codec_spec
from mmaudio.report import clip_media as media
from mmaudio.synthetic.demo import CASTS, EVENTS_PER_SECOND, RATE
from mmaudio.synthetic.domains import DEMO
from mmaudio.synthetic.renderer import render
from mmaudio.synthetic.scenes import actor_of, stage

VIDEOS = ("held.mp4", "a.mp4", "b.mp4", "late.mp4", "c.mp4", "d.mp4")
LATE = 1.0
CPU = torch.device("cpu")


def write_jumps(path, seed: int, late: float = 0.0) -> None:
    """A square that jumps at irregular times, with a click at each, `late` seconds after it; 8.2 s."""
    rng, count = np.random.default_rng(seed), round((SECONDS + 0.2) * FPS)
    times = np.cumsum(rng.uniform(0.3, 1.4, 20))
    sound = 0.002 * rng.normal(size=count * 16_000 // FPS)
    for time in times + late:
        sound[round(time * 16_000) :][:800] += 0.5 * rng.normal(size=len(sound[round(time * 16_000) :][:800]))
    corners = rng.integers(0, 40, (len(times) + 1, 2))
    frames = np.full((count, 64, 64, 3), 60, np.uint8)
    for index, frame in enumerate(frames):
        x, y = corners[(times <= index / FPS).sum()]
        frame[y : y + 20, x : x + 20] = 220
    write_video(path, iter(frames), FPS, sound.clip(-1, 1), 16_000)


@pytest.fixture(scope="module")
def place(tmp_path_factory, nothing_ships):
    """Five training videos, one of them a second late, and one that is held out."""
    root = tmp_path_factory.mktemp("check")
    generator, clips = torch.Generator().manual_seed(2), []
    (root / "videos").mkdir()
    for seed, video in enumerate(VIDEOS):
        write_jumps(root / "videos" / video, seed, LATE if video == "late.mp4" else 0.0)
        split = "test" if video == "held.mp4" else "train"
        clips.append(Clip(f"{video[:-4]}_0", video, 0.0, SECONDS, "", split, -1.0, -20.0, 0.0))
        header = Header(video, [clips[-1].id], [""], MODEL, SECONDS, ENCODERS, "s", "p", "t")
        write_shard(shard_path(root / "features", video), header, random_features(1, generator, SECONDS))
    write_clips(root / "clips.tsv", clips)
    make_base(root / "weights", encoders=False)
    (root / "exp" / "lora_checkpoints").mkdir(parents=True)
    make_adapter(root / "exp" / "lora_checkpoints" / "best_lora.pt", root / "weights")
    return root


@pytest.mark.slow
def test_the_late_sound_is_listed_and_the_others_are_not(place, capsys):
    evaluate_lora.main(command(place, "--check-data", "--metrics", "mel_l1", "--steps", "1", "--strengths", ""))
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("data: "))
    assert lines[first].startswith("data: 1 of 5 training clips has a sound that does not fit the picture")
    assert lines[first + 1] == "  late.mp4, 0 to 8 s: the sound is about 1.0 s late"
    found = json.loads((place / "exp" / "metrics.json").read_text())["data_check"]
    assert [one["video"] for one in found["misfits"]] == ["late.mp4"]
    assert found["misfits"][0]["seconds"] == pytest.approx(LATE, abs=0.1)
    assert (found["clips"], found["unclear"]) == (5, 0)
    html = (place / "exp" / "report" / "index.html").read_text()
    assert "Does the sound fit the picture?" in html and "the sound is about 1.0 s late" in html
    assert "--check-data" in html


def test_a_video_that_is_away_and_a_table_without_training_clips_are_named(place, tmp_path):
    held = [Clip("held_0", "held.mp4", 0.0, SECONDS, "", "test", -1.0, -20.0, 0.0)]
    write_clips(tmp_path / "clips.tsv", held)
    with pytest.raises(DataError, match="no clip to train on"):
        evaluate_lora.main(command(place, "--check-data", "--clips", str(tmp_path / "clips.tsv")))
    (tmp_path / "held.mp4").symlink_to(place / "videos" / "held.mp4")
    with pytest.raises(DataError, match="5 training videos are not there"):
        evaluate_lora.main(command(place, "--check-data", "--test_videos", str(tmp_path)))


@pytest.mark.slow
def test_desync_s_two_offsets_have_to_agree_far_from_zero(place, tmp_path):
    add_classifier(tmp_path)
    judge = load_desync(MODEL, tmp_path)
    codec = codec_spec("tiny_16k")
    clips = [Clip(f"{v[:-4]}_0", v, 0.0, SECONDS, "", "train", -1.0, -20.0, 0.0) for v in sorted(VIDEOS)]
    found = check_data(clips, place / "videos", place / "features", codec, judge, CPU)
    expected, unclear = {}, 0
    for clip in clips:
        (sound,) = media.original_sounds(place / "videos", [clip], 16_000, 128_000)
        _, rows = read_shard(shard_path(place / "features", clip.video))
        first, last = judge.offsets(rows.sync_features[0], sound[None], 16_000)[0].tolist()
        if abs(first - last) > AGREE + 1e-6:
            unclear += 1
        elif abs(first + last) / 2 > NOTICED - 1e-6:
            expected[clip.video] = abs(first + last) / 2
    assert {one.video: one.seconds for one in found.misfits} == pytest.approx(expected)
    assert (found.clips, found.unclear) == (6, unclear) and "DeSync" in found.way
    assert [one.seconds for one in found.misfits] == sorted(expected.values(), reverse=True)


def events(seed: int, late: float = 0.0, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Motion and onsets of the same irregular events, the sound `late` seconds after the picture."""
    rng = np.random.default_rng(seed)
    motion, onsets = (0.01 * rng.uniform(0, 1, count) for _ in range(2))
    frames = np.flatnonzero(rng.uniform(0, 1, count) < 0.06)
    motion[frames] += rng.uniform(0.5, 1, len(frames))
    heard = frames + round(late * FPS)
    onsets[heard[(heard >= 0) & (heard < count)]] += 1
    return motion, onsets


@pytest.mark.parametrize("late", [-1.2, -0.4, 0.6, 1.6])
def test_a_shift_and_its_side_are_found(late):
    clips = [Envelopes(str(n), *events(n, late if n == 3 else 0.0)) for n in range(8)]
    found = shifts(clips)
    assert found[3].seconds == pytest.approx(late, abs=1.5 / FPS)
    assert [shift.seconds for n, shift in enumerate(found) if n != 3] == [None] * 7
    assert all(shift.together for n, shift in enumerate(found) if n != 3)


def test_nothing_is_told_of_steady_sounds_still_pictures_and_a_single_video():
    clips = [Envelopes(str(n), *events(n)) for n in range(6)]
    steady = Envelopes("steady", clips[0].motion, np.full(200, 0.3))
    still = Envelopes("still", np.zeros(200), clips[0].onsets)
    for shift in shifts([*clips, steady, still])[-2:]:
        assert shift.seconds is None and not shift.together
    alone = shifts([Envelopes("one", *events(n, 1.0)) for n in range(4)])
    assert all(shift.seconds is None and not shift.together for shift in alone)


def test_clips_that_tell_nothing_alone_are_told_by_their_video():
    rng = np.random.default_rng(0)
    clips = [Envelopes(f"{n // 6}", *events(n, 1.0 if n // 6 == 2 else 0.0)) for n in range(48)]
    blurred = [Envelopes(c.video, c.motion, c.onsets + 2 * rng.uniform(0, 1, 200)) for c in clips]
    found = shifts(blurred)
    late = [shift for shift, clip in zip(found, blurred, strict=True) if clip.video == "2"]
    assert all(shift.seconds is not None for shift in late) and any(shift.by_video for shift in late)
    assert all(abs(shift.seconds - 1) < 0.1 for shift in late if shift.seconds is not None)
    assert all(shift.seconds is None for shift, clip in zip(found, blurred, strict=True) if clip.video != "2")


def test_motion_is_sudden_where_a_thing_jumps_or_stops_and_not_where_it_glides():
    frames = torch.full((100, SIDE, SIDE), 50.0)
    for index, frame in enumerate(frames):
        x = min(index, 40) // 2  # glides for 40 frames, then stands; jumps at 70
        frame[8:20, x : x + 8] = 200.0
        if index >= 70:
            frame[30:40, 30:40] = 150.0
    envelope = motion_envelope(frames)
    assert envelope.shape == (100,) and abs(int(envelope.argmax()) - 70) <= 1
    assert envelope[45:68].max() == 0


def test_onsets_are_put_to_the_frame_that_is_shown_then():
    envelope = torch.zeros(500)  # 62.5 per second
    envelope[125], envelope[499] = 1.0, 0.5
    out = at_frames(envelope, 0.016, 200)
    assert np.flatnonzero(out).tolist() == [50, 199]
    shifted = correlation(np.roll(out, 10), out)
    assert shifted.argmax() - len(shifted) // 2 == 10


@pytest.mark.slow
def test_sample_videos_a_second_late_are_listed_and_the_others_never(tmp_path):
    """Of sample videos whose sound is late most are listed, at the right lag; none is listed otherwise."""
    measured: dict[str, list[Envelopes]] = {}
    for number, cast in enumerate(CASTS[:6]):
        rng = np.random.default_rng((0, number))
        actors = [actor_of(DEMO.kinds[kind], EVENTS_PER_SECOND / len(cast) ** 0.5, 24.2, rng) for kind in cast]
        made = render(stage(DEMO, actors, 24.2, rng), FPS, 96, RATE, rng)
        frames = list(made.frames)
        for name, shift in ((f"{number}.mp4", 0), (f"late {number}.mp4", RATE)):
            write_video(tmp_path / name, iter(frames), FPS, np.roll(made.waveform, shift), RATE)
            clips = [Clip(f"{n}", name, 8.0 * n, 8.0 * n + 8, "", "train", 0, 0, 0) for n in range(3)]
            measured[name] = list(envelopes(clips, tmp_path, codec_spec("16k"), CPU))
    right = [clip for number in range(6) for clip in measured[f"{number}.mp4"]]
    assert not any(shift.seconds for shift in shifts(right))
    listed = 0
    for number in range(6):
        others = [clip for clip in right if clip.video != f"{number}.mp4"]
        found = shifts([*others, *measured[f"late {number}.mp4"]])
        assert not any(shift.seconds for shift in found[:-3])
        listed += sum(shift.seconds is not None and abs(shift.seconds - 1) < 0.15 for shift in found[-3:])
    assert listed >= 10  # of 18
