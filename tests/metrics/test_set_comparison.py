"""Metrics of whole sets, base against adapted: their values, the jackknife's interval, and what is too few."""

import numpy as np
import pytest

from mmaudio.metrics import distribution as sets
from mmaudio.metrics.pretrained_metrics import EMBEDDINGS, LOGITS
from mmaudio.metrics.set_comparison import compare_sets, jackknife
from mmaudio.metrics.set_statistics import SOUNDS, ModelOutputs, OutputRows, kad_statistic
from mmaudio.metrics.statistics import t_interval

DIMENSION, KINDS = 6, 5
SHIFTS = {"original": 0.0, "codec": 0.05, "base": 1.2, "adapted": 0.3}


def collect(
    videos: int, clips: int, samples: int = 1, seed: int = 0, **shifts: float
) -> tuple[ModelOutputs, list[str]]:
    """Rows of `videos` videos of `clips` clips; those of one video are alike."""
    rng, outputs = np.random.default_rng(seed), ModelOutputs()
    for _ in range(videos):
        center = 0.7 * rng.normal(size=DIMENSION)
        for _ in range(clips):
            outputs.add(
                {
                    sound: {
                        EMBEDDINGS: (center + shift + rng.normal(size=(samples, DIMENSION))).astype(np.float32),
                        LOGITS: rng.uniform(0, 1, (samples, KINDS)).astype(np.float32),
                    }
                    for sound, shift in (SHIFTS | shifts).items()
                }
            )
    return outputs, [f"{video}.mp4" for video in range(videos) for _ in range(clips)]


def test_set_metrics_use_all_audio_of_the_set():
    outputs, videos = collect(4, 5, samples=2)
    comparisons, reasons = compare_sets(outputs, videos, ("kad", "fd", "isc"))
    features = {sound: outputs.get(sound, EMBEDDINGS).values for sound in SOUNDS}
    assert features["base"].shape == (40, DIMENSION)
    kad = comparisons["kad"]
    for sound in ("codec", "base", "adapted"):
        clip_indices = np.arange(20).repeat(2)
        assert getattr(kad, sound) == pytest.approx(sets.kad(features[sound], features["original"], clip_indices))
    logits = outputs.get("original", LOGITS).values
    assert comparisons["isc"].deviations is not None and comparisons["kad"].deviations is None
    assert comparisons["isc"].original == pytest.approx(
        sets.inception_scores(logits, sets.inception_splits(len(logits))).mean()
    )
    assert kad.difference == pytest.approx(kad.adapted - kad.base) and kad.original is None
    assert kad.interval[0] < kad.difference < kad.interval[1] < 0
    assert (kad.verdict, kad.clips, kad.videos, kad.share_better) == ("better", 20, 4, None)
    assert reasons == dict.fromkeys(("fd", "fd_passt"), "20 clips: below 513 a Frechet distance is mostly bias")


def test_every_video_counts_the_same_in_the_kernel_audio_distance():
    outputs, _ = collect(1, 5)
    value = compare_sets(outputs, ["a", "a", "a", "b", "c"], ("kad",))[0]["kad"].base
    x, y = (outputs.get(sound, EMBEDDINGS).values for sound in ("base", "original"))
    weights, bandwidth = np.array([1 / 3, 1 / 3, 1 / 3, 1, 1]), sets.median_distance(y)
    pairs = [(i, j, weights[i] * weights[j]) for i in range(5) for j in range(5) if i != j]

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        kernel = [weight * np.exp(-((a[i] - b[j]) ** 2).sum() / (2 * bandwidth**2)) for i, j, weight in pairs]
        return sum(kernel) / sum(weight for *_, weight in pairs)

    assert value == pytest.approx(sets.SCALE * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


def test_the_frechet_distance_needs_513_clips_and_has_no_interval():
    outputs, videos = collect(171, 3)
    comparisons, reasons = compare_sets(outputs, videos, ("fd",))
    values = [outputs.get(sound, EMBEDDINGS).values for sound in ("base", "original")]
    assert comparisons["fd"].base == pytest.approx(sets.frechet_distance(*values)) and not reasons
    assert (comparisons["fd"].interval, comparisons["fd"].verdict) == (None, "cannot tell")


def test_an_empty_set_is_a_reason():
    outputs, videos = collect(1, 1)
    assert compare_sets(outputs, videos, ("kad",)) == (
        {},
        {"kad": "needs two clips or more whose originals differ"} | few(1),
    )
    assert compare_sets(ModelOutputs(), ["a"] * 35, ("kad", "fd")) == ({}, few(35))


def few(clips: int) -> dict[str, str]:
    reasons = dict.fromkeys(("fd", "fd_passt"), f"{clips} clips: below 513 a Frechet distance is mostly bias")
    return reasons | ({} if clips >= 20 else {"isc": f"{clips} clips: the mean of 10 splits needs 20"})


def test_the_jackknife_of_a_mean_is_student_s_interval_over_the_videos():
    values = np.random.default_rng(0).normal(size=(7, 4))
    videos = [str(video) for video in range(7) for _ in range(4)]
    interval = jackknife(lambda mask: float(values.ravel()[mask].mean()), videos)
    assert interval == pytest.approx(t_interval(values.mean(1)))
    assert jackknife(lambda mask: float(mask.sum()), ["a", "b"]) is None


def test_many_videos_are_left_out_in_groups():
    values = np.random.default_rng(0).normal(size=200)
    calls = []

    def mean(mask: np.ndarray) -> float:
        calls.append(mask.sum())
        return float(values[mask].mean())

    interval = jackknife(mean, [str(video) for video in range(200)])
    assert sorted(set(calls)) == [190, 200] and len(calls) == 21
    whole = t_interval(values)
    assert interval[1] - interval[0] == pytest.approx(whole[1] - whole[0], rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 5, 10])
def test_the_kad_interval_covers_and_equal_models_get_no_verdict(videos):
    """500 repeats: 95 % intervals cover the true difference at their rate, within 3 points, or more often."""

    def difference(count: int, seed: int, base: float) -> tuple[OutputRows, ...]:
        outputs, names = collect(count, 6, seed=seed, base=base)
        rows = {sound: outputs.get(sound, EMBEDDINGS) for sound in SOUNDS}
        statistics = {sound: kad_statistic(rows[sound], rows["original"]) for sound in ("base", "adapted")}
        return (lambda mask: statistics["adapted"](mask) - statistics["base"](mask)), names

    large_sets = [difference(200, 1000 + seed, 0.6) for seed in range(5)]
    truth = np.mean([statistic(np.ones(len(names), bool)) for statistic, names in large_sets])
    covered = decided = 0
    for seed in range(500):
        low, high = jackknife(*difference(videos, seed, 0.6))
        covered += low <= truth <= high
        low, high = jackknife(*difference(videos, 5000 + seed, 0.3))
        decided += low > 0 or high < 0
    assert covered / 500 >= 0.92
    assert decided / 500 <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(40, *[2] * 9), (40, 2, 2)])
def test_equal_models_get_no_verdict_by_kad_where_videos_have_very_different_numbers_of_clips(sizes):
    """200 repeats; what a model makes of a video differs from what another does: its clips are alike."""
    videos, decided = [str(video) for video, count in enumerate(sizes) for _ in range(count)], 0
    for seed in range(200):
        rng, outputs = np.random.default_rng(seed), ModelOutputs()
        for count in sizes:
            center, taste = 0.7 * rng.normal(size=DIMENSION), 0.6 * rng.normal(size=(3, DIMENSION))
            shifts = (0.0, *(taste + 0.3))
            for _ in range(count):
                rows = [(center + shift + rng.normal(size=(1, DIMENSION))).astype(np.float32) for shift in shifts]
                outputs.add({sound: {EMBEDDINGS: row} for sound, row in zip(SOUNDS, rows, strict=True)})
        decided += compare_sets(outputs, videos, ("kad",))[0]["kad"].verdict != "cannot tell"
    assert decided / 200 <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 5, 10])
def test_the_jackknife_covers_where_videos_have_different_numbers_of_clips(videos):
    """500 repeats of a mean of 2 to 11 clips a video: within 3 points of 95 %."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(500):
        video = np.repeat(np.arange(videos), rng.integers(2, 12, videos))
        values = 0.7 * rng.normal(size=videos)[video] + rng.normal(size=len(video))
        low, high = jackknife(lambda mask, values=values: float(values[mask].mean()), [str(index) for index in video])
        covered += low <= 0 <= high
    assert covered / 500 == pytest.approx(0.95, abs=0.03)
