"""The benchmark of memory and time of long audio, run small."""

import re

import pytest

from benchmarks.long_generation import main


@pytest.mark.slow
@pytest.mark.parametrize("video", [[], ["--video"]])
def test_every_duration_has_its_time_and_peak(video, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main(["--seconds", "1", "2", "--steps", "1", *video])
    rows = re.findall(
        r"min: +([\d.]+) s of processor time, ([\d.]+) per second of audio, peak (\d+) MiB", capfd.readouterr().out
    )
    assert len(rows) == 2 and all(float(row[1]) > 0 and int(row[2]) > 50 for row in rows)
