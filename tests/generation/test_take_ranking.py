"""The best of several takes: by which metrics, what is written and said, and what is refused before any work."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_clap import write_random_clap
from random_model import MODEL, add_sync_classifier, write_noise_video, write_random_weights
from video_files import read_audio, read_comment, write_jumps

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import load_encoders
from mmaudio.generation import __main__ as command
from mmaudio.generation.generate import GenerationRequest
from mmaudio.generation.prompt_table import TimedPrompt
from mmaudio.generation.take_ranking import RANKINGS, Ranking, TakeScorer, plan_ranking, prompt_at, rank_takes
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.video import probe
from mmaudio.metrics.motion_agreement import motion_agreement, motion_times
from mmaudio.metrics.pretrained_metrics import ModelSearch
from mmaudio.model.spec import model_spec

RATE = model_spec(MODEL).codec.sample_rate


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_random_weights(folder)
    write_jumps(folder / "clip.mp4", 0, seconds=1.52)
    write_noise_video(folder / "long.mp4", 0, 9)
    return folder


@pytest.fixture(scope="module")
def jumps(tmp_path_factory):
    path = tmp_path_factory.mktemp("jumps") / "jumps.mp4"
    write_jumps(path, 0, seconds=12.0)
    return path


def run_command(weights, output, *flags):
    arguments = ["--model", MODEL, "--weights", weights, "--steps", "1", "--device", "cpu", "--output", output, *flags]
    return command.main(list(map(str, arguments)))


def read_table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def shift(waveform, seconds):
    return torch.roll(waveform, round(seconds * RATE))


def test_every_metric_without_an_original_and_for_one_sound_is_offered():
    assert RANKINGS == ("consensus", "motion", "desync", "clap")


@pytest.mark.slow
def test_a_sound_in_time_with_the_motion_scores_highest_in_every_window(jumps, encoders):
    original = next(read_audio_windows(probe(jumps), [0.0], RATE, 12 * RATE))
    takes = torch.stack([shift(original, 0.7), original, shift(original, -0.9), torch.zeros(12 * RATE)])
    scorer = TakeScorer(Ranking("motion"), model_spec(MODEL), encoders)
    late, in_time, early, silent = scorer.score(GenerationRequest(jumps), 12.0, takes)
    assert in_time > 0.5 > max(late, early) and silent == 0
    half = torch.cat([original[: 6 * RATE], shift(original, 0.7)[6 * RATE :]])
    assert max(late, early) < scorer.score(GenerationRequest(jumps), 12.0, half[None])[0] < in_time, "as a whole"
    later = scorer.score(GenerationRequest(jumps, start=2.0), 8.0, original[None, 2 * RATE : 10 * RATE])
    assert later[0] > 0.5, "the motion is that from the start on"


def test_the_sound_that_most_others_agree_with_scores_highest(encoders):
    clicks = torch.zeros(8 * RATE)
    clicks[:: 2 * RATE] = 1.0
    takes = torch.stack([shift(clicks, 0.5), shift(clicks, 1.0), shift(clicks, 0.5), torch.zeros(8 * RATE)])
    scorer = TakeScorer(Ranking("consensus"), model_spec(MODEL), encoders)
    request = GenerationRequest(None, "clicks", seconds=8.0)
    assert scorer.score(request, 8.0, takes) == pytest.approx([1 / 3, 0, 1 / 3, 0])
    assert math.isnan(scorer.score(request, 8.0, takes[:1])[0]), "there is no other"


def test_better_is_higher_or_lower_as_the_metric_says_and_no_value_is_last():
    scores = [0.2, math.nan, 0.5, 0.2]
    assert [take.index for take in rank_takes(scores, Ranking("motion")).takes] == [2, 0, 3, 1]
    assert [take.index for take in rank_takes(scores, Ranking("desync")).takes] == [0, 3, 2, 1]
    note = rank_takes([0.0, 0.0], Ranking("motion")).lines("a.mp4", 5)
    assert note[0] == "a.mp4: motion 0.000 (seed 5), 0.000 (seed 6)" and "not told apart by motion" in note[1]


def test_a_prompt_over_time_is_the_one_that_holds():
    request = GenerationRequest(None, prompts=(TimedPrompt(0, 4, "rain"), TimedPrompt(4, math.inf, "a dog")))
    assert [prompt_at(request, seconds) for seconds in (0, 3.9, 4)] == ["rain", "rain", "a dog"]
    assert prompt_at(GenerationRequest(None, "rain"), 3) == "rain"


@pytest.mark.slow
def test_the_best_take_is_written_with_its_score_and_a_table_of_all(weights, tmp_path, capsys):
    video = ["--video", weights / "clip.mp4", "--prompt", "a ball", "--seed", "4", "--samples", "3"]
    assert run_command(weights, tmp_path / "all", *video) == 0
    assert run_command(weights, tmp_path / "best", *video, "--rank_by", "motion", "--keep", "1") == 0
    rows = read_table(tmp_path / "best" / "clip.takes.tsv")
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["clip.flac", "clip.mp4", "clip.takes.tsv"]
    assert sorted(row["seed"] for row in rows) == ["4", "5", "6"] and [row["rank"] for row in rows] == ["1", "2", "3"]
    scores = [float(row["motion"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and [row["file"] for row in rows] == ["clip.flac", "", ""]
    printed = capsys.readouterr().out
    assert f"clip.mp4: motion {scores[0]:.3f} (seed {rows[0]['seed']}), {scores[1]:.3f}" in printed
    for name in ("clip.flac", "clip.mp4"):
        comment = read_comment(tmp_path / "best" / name)
        ranking = {"metric": "motion", "score": pytest.approx(scores[0], abs=1e-5), "rank": 1, "of": 3}
        assert comment["ranking"] == ranking and comment["seed"] == int(rows[0]["seed"])
    same = tmp_path / "all" / f"clip_seed{rows[0]['seed']}.flac"
    assert np.array_equal(read_audio(tmp_path / "best" / "clip.flac"), read_audio(same))


@pytest.mark.slow
def test_a_folder_keeps_several_of_each_video_and_continues(weights, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_noise_video(tmp_path / "in" / "a.mp4", 0, 1.2)
    flags = ["--folder", tmp_path / "in", "--samples", "3", "--rank-by", "motion", "--keep", "2", "--prompt", "rain"]
    assert run_command(weights, tmp_path / "out", *flags) == 0
    names = ["a.takes.tsv", "a_best1.flac", "a_best1.mp4", "a_best2.flac", "a_best2.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "generation.tsv"]
    rows = read_table(tmp_path / "out" / "a.takes.tsv")
    assert [row["file"] for row in rows] == ["a_best1.flac", "a_best2.flac", ""]
    assert run_command(weights, tmp_path / "out", *flags) == 0
    assert capsys.readouterr().out.endswith("found 1 files = 0 made + 1 already there + 0 left out\n")


@pytest.mark.slow
def test_takes_are_ranked_by_clap_where_it_is_also_without_a_video(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("mmaudio.weights.store.FOLDERS", (str(tmp_path),))
    write_random_clap(tmp_path / "clap")
    flags = ["--prompt", "a dog barks", "--seconds", "1", "--samples", "3", "--rank-by", "clap"]
    assert run_command(weights, tmp_path / "text.flac", *flags) == 0
    scores = [float(row["clap"]) for row in read_table(tmp_path / "text.takes.tsv")]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert read_comment(tmp_path / "text.flac")["ranking"]["metric"] == "clap"


@pytest.mark.slow
def test_desync_of_a_long_take_is_the_mean_over_its_windows(weights, tmp_path):
    folder = tmp_path / "weights"
    write_random_weights(folder)
    add_sync_classifier(folder)
    ranking = plan_ranking("desync", ModelSearch(MODEL, folder))
    scorer = TakeScorer(ranking, model_spec(MODEL), load_encoders(MODEL, folder, names=("sync", "clip")))
    takes, video = torch.randn(2, 9 * RATE, generator=torch.Generator().manual_seed(0)), weights / "long.mp4"
    whole = scorer.score(GenerationRequest(video), 9.0, takes)
    windows = [
        scorer.score(GenerationRequest(video, start=start), 8.0, takes[:, start * RATE : (start + 8) * RATE])
        for start in (0, 1)
    ]
    assert whole == pytest.approx(np.mean(windows, axis=0).tolist(), abs=1e-5) and max(whole) <= 2


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (["--rank-by", "motion"], ConfigError, r"--rank-by motion: it compares with the picture.*no video"),
        (
            ["--rank-by", "desync"],
            WeightsError,
            r"--rank-by desync: .*no offset classifier; --rank-by consensus needs no",
        ),
        (["--rank-by", "clap"], WeightsError, r"--rank-by clap: needs .*"),
        (["--rank-by", "motion", "--samples", "1"], ConfigError, "take more --samples"),
        (["--rank-by", "motion", "--keep", "5"], ConfigError, "to keep 5 of them"),
        (
            ["--keep", "1"],
            ConfigError,
            r"--keep 1: the best by what\? Name a metric with --rank-by \(consensus, motion, ",
        ),
    ],
)
def test_a_ranking_that_cannot_be_is_one_line_before_any_work(weights, tmp_path, monkeypatch, flags, error, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(error, match=words) as refusal:
        run_command(weights, tmp_path / "out", "--prompt", "rain", "--samples", "2", *flags)
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_a_video_that_the_metric_cannot_judge_is_refused_before_any_work(weights, tmp_path):
    request = GenerationRequest(weights / "clip.mp4")
    with pytest.raises(DataError, match=r"clip\.mp4: 1\.52 s, and --rank-by desync needs 8; take motion"):
        command.plan_job(request, tmp_path, 1, metric="desync")
    with pytest.raises(DataError, match=r"clip\.mp4: no prompt, which --rank-by clap compares with"):
        command.plan_job(request, tmp_path, 1, metric="clap")
    assert command.plan_job(replace(request, prompt="rain"), tmp_path, 1, metric="clap").outputs.table is not None
    with pytest.raises(ConfigError, match="did you mean"):
        plan_ranking("desink", ModelSearch(MODEL))


def test_motion_has_its_events_and_none_has_no_score():
    motion = np.zeros(200)
    motion[[20, 60, 61, 150]] = [1.0, 0.5, 0.4, 0.05]
    assert motion_times(motion) == pytest.approx([20.5 / 25, 60.5 / 25]) and len(motion_times(np.zeros(9))) == 0
    mel = torch.zeros(2, 80, 500)
    assert np.isnan(motion_agreement(mel, np.zeros(200), model_spec(MODEL).codec)).all()
