"""The check for audio out of sync, on generated videos of which one has its audio a second late."""

import json

import numpy as np
import pytest
import torch
from evaluation_inputs import ENCODERS, evaluate_arguments, random_features, write_random_adapter
from random_model import MODEL, add_sync_classifier, write_random_weights
from video_files import write_jumps

import evaluate_lora
from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import Header, read_shard, shard_path, write_shard
from mmaudio.errors import DataError
from mmaudio.evaluation.original_audio import read_original_audio
from mmaudio.evaluation.sync_check import MAX_DISAGREEMENT, MIN_OFFSET, check_sync, envelopes
from mmaudio.features.desync import load_desync
from mmaudio.media.mux import write_video
from mmaudio.metrics.av_offset import (
    FPS,
    FRAME_SIZE,
    ClipEnvelopes,
    cross_correlation,
    envelope_at_frames,
    estimate_offsets,
    motion_envelope,
)
from mmaudio.model.spec import CLIP_SECONDS, codec_spec
from mmaudio.synthetic.demo import CASTS, EVENTS_PER_SECOND, SAMPLE_RATE
from mmaudio.synthetic.domains import DEMO
from mmaudio.synthetic.renderer import render_scene
from mmaudio.synthetic.scenes import build_scene, random_actor

VIDEOS = ("held.mp4", "a.mp4", "b.mp4", "late.mp4", "c.mp4", "d.mp4")
LATE = 1.0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory, nothing_ships, brief_vocoder):
    """Five training videos, one of them a second late, and one that is held out."""
    root = tmp_path_factory.mktemp("check")
    generator, clips = torch.Generator().manual_seed(2), []
    (root / "videos").mkdir()
    for seed, video in enumerate(VIDEOS):
        write_jumps(root / "videos" / video, seed, LATE if video == "late.mp4" else 0.0)
        split = "test" if video == "held.mp4" else "train"
        clips.append(Clip(f"{video[:-4]}_0", video, 0.0, CLIP_SECONDS, "", split, -1.0, -20.0, 0.0))
        header = Header(video, [clips[-1].id], [""], MODEL, CLIP_SECONDS, ENCODERS, "s", "p", "t")
        write_shard(shard_path(root / "features", video), header, random_features(1, generator, CLIP_SECONDS))
    write_clips(root / "clips.tsv", clips)
    write_random_weights(root / "weights", encoders=False)
    (root / "exp" / "lora_checkpoints").mkdir(parents=True)
    write_random_adapter(root / "exp" / "lora_checkpoints" / "best_lora.pt", root / "weights")
    return root


@pytest.mark.slow
def test_only_the_late_clip_is_listed(root, capsys):
    evaluate_lora.main(
        evaluate_arguments(root, "--check-data", "--metrics", "mel_l1", "--steps", "1", "--strengths", "")
    )
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("data: "))
    assert lines[first].startswith("data: 1 of 5 training clips has audio that is out of sync")
    assert lines[first + 1] == "  late.mp4, 0 to 8 s: the sound is about 1.0 s late"
    report = json.loads((root / "exp" / "metrics.json").read_text())["data_check"]
    assert [clip["video"] for clip in report["misfits"]] == ["late.mp4"]
    assert report["misfits"][0]["seconds"] == pytest.approx(LATE, abs=0.1)
    assert (report["clips"], report["unclear"]) == (5, 0)
    html = (root / "exp" / "report" / "index.html").read_text()
    assert "Is the audio in sync with the video?" in html and "the sound is about 1.0 s late" in html
    assert "--check-data" in html


@pytest.mark.slow
def test_a_missing_video_and_a_table_without_training_clips_are_errors(root, tmp_path):
    held = [Clip("held_0", "held.mp4", 0.0, CLIP_SECONDS, "", "test", -1.0, -20.0, 0.0)]
    write_clips(tmp_path / "clips.tsv", held)
    with pytest.raises(DataError, match="no clip to train on"):
        evaluate_lora.main(evaluate_arguments(root, "--check-data", "--clips", str(tmp_path / "clips.tsv")))
    (tmp_path / "held.mp4").symlink_to(root / "videos" / "held.mp4")
    with pytest.raises(DataError, match="5 training videos are not there"):
        evaluate_lora.main(evaluate_arguments(root, "--check-data", "--test_videos", str(tmp_path)))


@pytest.mark.slow
def test_an_offset_counts_where_both_desync_estimates_agree(root, tmp_path):
    add_sync_classifier(tmp_path)
    judge = load_desync(MODEL, tmp_path)
    codec = codec_spec("tiny_16k")
    clips = [Clip(f"{v[:-4]}_0", v, 0.0, CLIP_SECONDS, "", "train", -1.0, -20.0, 0.0) for v in sorted(VIDEOS)]
    report = check_sync(clips, root / "videos", root / "features", codec, judge, CPU)
    expected, undecided = {}, 0
    for clip in clips:
        (sound,) = read_original_audio(root / "videos", [clip], 16_000, 128_000)
        _, rows = read_shard(shard_path(root / "features", clip.video))
        first, last = judge.predict_offsets(rows.sync_features[0], sound[None], 16_000)[0].tolist()
        if abs(first - last) > MAX_DISAGREEMENT + 1e-6:
            undecided += 1
        elif abs(first + last) / 2 > MIN_OFFSET - 1e-6:
            expected[clip.video] = abs(first + last) / 2
    assert {clip.video: clip.seconds for clip in report.out_of_sync} == pytest.approx(expected)
    assert (report.num_clips, report.undecided) == (6, undecided) and "DeSync" in report.method
    assert [clip.seconds for clip in report.out_of_sync] == sorted(expected.values(), reverse=True)


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
def test_a_shift_is_measured_with_its_sign(late):
    clips = [ClipEnvelopes(str(n), *events(n, late if n == 3 else 0.0)) for n in range(8)]
    offsets = estimate_offsets(clips)
    assert offsets[3].seconds == pytest.approx(late, abs=1.5 / FPS)
    assert [shift.seconds for n, shift in enumerate(offsets) if n != 3] == [None] * 7
    assert all(shift.in_sync for n, shift in enumerate(offsets) if n != 3)


def test_steady_audio_still_frames_and_a_single_video_give_no_estimate():
    clips = [ClipEnvelopes(str(n), *events(n)) for n in range(6)]
    steady = ClipEnvelopes("steady", clips[0].motion, np.full(200, 0.3))
    still = ClipEnvelopes("still", np.zeros(200), clips[0].onsets)
    for shift in estimate_offsets([*clips, steady, still])[-2:]:
        assert shift.seconds is None and not shift.in_sync
    alone = estimate_offsets([ClipEnvelopes("one", *events(n, 1.0)) for n in range(4)])
    assert all(shift.seconds is None and not shift.in_sync for shift in alone)


def test_clips_without_an_estimate_get_that_of_their_video():
    rng = np.random.default_rng(0)
    clips = [ClipEnvelopes(f"{n // 6}", *events(n, 1.0 if n // 6 == 2 else 0.0)) for n in range(48)]
    blurred = [ClipEnvelopes(c.video, c.motion, c.onsets + 2 * rng.uniform(0, 1, 200)) for c in clips]
    offsets = estimate_offsets(blurred)
    late = [shift for shift, clip in zip(offsets, blurred, strict=True) if clip.video == "2"]
    assert all(shift.seconds is not None for shift in late) and any(shift.by_video for shift in late)
    assert all(abs(shift.seconds - 1) < 0.1 for shift in late if shift.seconds is not None)
    assert all(shift.seconds is None for shift, clip in zip(offsets, blurred, strict=True) if clip.video != "2")


def test_motion_onsets_are_jumps_and_stops_not_glides():
    frames = torch.full((100, FRAME_SIZE, FRAME_SIZE), 50.0)
    for index, frame in enumerate(frames):
        x = min(index, 40) // 2  # glides for 40 frames, then stands; jumps at 70
        frame[8:20, x : x + 8] = 200.0
        if index >= 70:
            frame[30:40, 30:40] = 150.0
    envelope = motion_envelope(frames)
    assert envelope.shape == (100,) and abs(int(envelope.argmax()) - 70) <= 1
    assert envelope[45:68].max() == 0


def test_onsets_are_assigned_to_the_frame_shown_at_their_time():
    envelope = torch.zeros(500)  # 62.5 per second
    envelope[125], envelope[499] = 1.0, 0.5
    out = envelope_at_frames(envelope, 0.016, 200)
    assert np.flatnonzero(out).tolist() == [50, 199]
    shifted = cross_correlation(np.roll(out, 10), out)
    assert shifted.argmax() - len(shifted) // 2 == 10


@pytest.mark.slow
def test_only_sample_videos_with_late_audio_are_listed(tmp_path):
    """Of sample videos whose sound is late most are listed, at the right lag; none is listed otherwise."""
    measured: dict[str, list[ClipEnvelopes]] = {}
    for number, cast in enumerate(CASTS[:6]):
        rng = np.random.default_rng((0, number))
        actors = [random_actor(DEMO.kinds[kind], EVENTS_PER_SECOND / len(cast) ** 0.5, 24.2, rng) for kind in cast]
        scene = render_scene(build_scene(DEMO, actors, 24.2, rng), FPS, 96, SAMPLE_RATE, rng)
        frames = list(scene.frames)
        for name, shift in ((f"{number}.mp4", 0), (f"late {number}.mp4", SAMPLE_RATE)):
            write_video(tmp_path / name, iter(frames), FPS, np.roll(scene.waveform, shift), SAMPLE_RATE)
            clips = [Clip(f"{n}", name, 8.0 * n, 8.0 * n + 8, "", "train", 0, 0, 0) for n in range(3)]
            measured[name] = list(envelopes(clips, tmp_path, codec_spec("16k"), CPU))
    right = [clip for number in range(6) for clip in measured[f"{number}.mp4"]]
    assert not any(shift.seconds for shift in estimate_offsets(right))
    listed = 0
    for number in range(6):
        others = [clip for clip in right if clip.video != f"{number}.mp4"]
        offsets = estimate_offsets([*others, *measured[f"late {number}.mp4"]])
        assert not any(shift.seconds for shift in offsets[:-3])
        listed += sum(shift.seconds is not None and abs(shift.seconds - 1) < 0.15 for shift in offsets[-3:])
    assert listed >= 10  # of 18
