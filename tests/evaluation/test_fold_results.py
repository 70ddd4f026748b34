"""Results of folds in files, and pooled: whose clips they are, how wide the interval is, what is averaged."""

import gzip
import math
from dataclasses import replace

import numpy as np
import pytest

from mmaudio.data.clips import Clip
from mmaudio.evaluation.fold_results import FoldResults, average_clip, pool_results, read_fold_results
from mmaudio.evaluation.results import ClipMeasurement, ClipMedia, ClipResult, Results
from mmaudio.metrics.statistics import compare

PRIMARY = "mel_l1_loud"


def make_clip(name, video, base, adapted, strengths=()):
    clip = Clip(name, video, 0.0, 8.0, "a sound", "test", -1.0, -20.0, 0.0)
    measurements = {sound: ClipMeasurement({PRIMARY: value}) for sound, value in (("base", base), ("adapted", adapted))}
    tried = {strength: ClipMeasurement({PRIMARY: (base + adapted) / 2}) for strength in strengths}
    return ClipResult(clip, measurements, tried, media=ClipMedia({"video": f"media/{name}.mp4"}))


def make_folds(num_folds=3, clips=2, general=True):
    rng = np.random.default_rng(1)
    folds = []
    for number in range(num_folds):
        held_out = [
            make_clip(f"{number}_{i}", f"{number}.mp4", rng.normal(2, 0.1), rng.normal(1, 0.1), (0.5,))
            for i in range(clips)
        ]
        sets = {"held-out": Results(held_out, not_computed={"fd": "one reason", "other": "not known here"})}
        if general:
            others = [make_clip(f"g{i}", f"g{i}.mp4", 1.0 + i, 2.0 + i + number, (0.5,)) for i in range(2)]
            sets["general"] = Results(others)
        folds.append(FoldResults(f"key {number}", sets, "", "some videos"))
    return folds


def order_of(folds):
    ids = sorted((clip.clip.id for fold in folds for clip in fold.sets["held-out"].clips), reverse=True)
    return {clip_id: index for index, clip_id in enumerate(ids)}


def test_all_videos_are_pooled_with_a_wider_interval():
    folds = make_folds()
    pooled = pool_results(folds, order_of(folds))["held-out"]
    assert [clip.clip.id for clip in pooled.clips] == list(order_of(folds))
    comparison = pooled.comparisons()[PRIMARY]
    assert (comparison.videos, comparison.clips) == (3, 6)
    values = [[clip.value(model, PRIMARY) for clip in pooled.clips] for model in ("base", "adapted")]
    alone = compare(*values, pooled.videos, "lower")
    widths = [c.interval[1] - c.interval[0] for c in (alone, comparison)]
    assert widths[1] == pytest.approx(math.sqrt(2.5) * widths[0]) and comparison.difference == alone.difference
    at_full = pooled.strengths[1.0][PRIMARY]
    assert at_full.interval == pytest.approx(comparison.interval), "strengths are compared on all folds' clips alike"
    assert set(pooled.strengths) == {0.0, 0.5, 1.0} and pooled.recommendation
    assert pooled.not_computed == {"fd": "one reason", "other": "not known here"}


def test_clips_of_the_base_domain_have_the_mean_of_the_folds_adapters():
    folds = make_folds()
    general = pool_results(folds, order_of(folds))["general"]
    assert [clip.value("base", PRIMARY) for clip in general.clips] == [1.0, 2.0]
    assert [clip.value("adapted", PRIMARY) for clip in general.clips] == [3.0, 4.0]
    assert general.num_folds == 0 and set(general.strengths) == {0.0, 0.5, 1.0}
    assert "general" not in pool_results(make_folds(general=False), order_of(folds))


def test_a_value_that_one_fold_does_not_have_is_none_of_the_mean():
    one, other = (make_clip("g", "g.mp4", 1.0, value) for value in (2.0, math.nan))
    assert math.isnan(average_clip([one, other]).value("adapted", PRIMARY))
    absent = replace(one, measurements={"base": one.measurements["base"], "adapted": ClipMeasurement({})})
    assert math.isnan(average_clip([one, absent]).value("adapted", PRIMARY))


def test_a_damaged_file_counts_as_none(tmp_path):
    path = tmp_path / "clips.json.gz"
    assert read_fold_results(path) is None
    for content in (b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b"{")):
        path.write_bytes(content)
        assert read_fold_results(path) is None
