"""The benchmark of long videos: joins, onsets by their distance from them, steps, and a small run of the whole."""

import numpy as np
import pytest
import torch

from benchmarks.long_videos import compare_seams, distances_to, find_joins, main, measure_steps, onset_counts
from mmaudio.model.spec import model_spec

SPEC = model_spec("tiny_16k")


def test_joins_are_the_middles_of_overlaps_and_the_ends_of_passes():
    assert find_joins(SPEC, "whole", 8.0) == []
    assert find_joins(SPEC, "whole", 14.0) == [7.0]
    assert find_joins(SPEC, "clips of 8 s", 20.0) == [8.0, 16.0]
    assert find_joins(SPEC, "passes of 30 s", 60.0) == [30.0]


def test_onsets_count_in_the_row_of_their_distance():
    times, reference = np.array([7.2, 9.5]), np.array([7.25, 12.0])
    counts = onset_counts(times, reference, [7.0])
    assert counts.tolist() == [[2, 2], [0, 0], [0, 0], [0, 1]], "12 s is further away than the last row"
    assert distances_to([7.0, 13.0], [8.0, 12.5]).tolist() == [1.0, 0.5]


def noise(seconds, level):
    return level * torch.randn(round(seconds * SPEC.codec.sample_rate), generator=torch.Generator().manual_seed(0))


def test_a_step_of_the_level_is_seen_where_it_is():
    waveform = torch.cat([noise(8, 0.01), noise(8, 0.1)])
    steps = measure_steps(waveform, SPEC, [4.0, 8.0])
    assert steps[0, 0] < 3 and abs(steps[1, 0] - 20) < 3
    assert steps[0, 1] < 0.3 and abs(steps[1, 1] - 1) < 0.3
    share, at_join, inside, limit = compare_seams([waveform], SPEC, "clips of 8 s", 16.0)[:4]
    assert share == 1 and at_join > limit > inside
    assert compare_seams([noise(16, 0.1)], SPEC, "clips of 8 s", 16.0)[0] == 0


@pytest.mark.slow
def test_the_tables_have_a_row_per_kind_and_way(tmp_path, capsys):
    main([f"--output={tmp_path}", "--videos=1", "--seconds=10", "--steps=1", "--kinds", "sparse", "texture"])
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    ways = ["whole", "clips of 8 s", "passes of 30 s"]
    assert rows[1:7] == [[f"| {kind}", way] for kind in ("sparse", "texture") for way in ways]
    assert rows[8:] == [[f"| {kind}", way] for kind in ("sparse", "texture") for way in ways[:2]]
    assert len(list(tmp_path.glob("*.flac"))) == 6
