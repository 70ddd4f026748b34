"""A training of the page is a process of its own: found again, stopped, continued, and never two at once."""

import json
import os
import signal
import time

import pytest
from helpers import ROOT

from mmaudio.app.detached_job import (
    CUT_OFF,
    DONE,
    FAILED,
    GPU_LOCK,
    RUNNING,
    STATE_FOLDER,
    STOPPED,
    STOPPING,
    DetachedJob,
)
from mmaudio.app.folders import UPLOADS
from mmaudio.errors import ConfigError
from mmaudio.utils.locks import FileLocks

AT_ONCE = ["--setup-only", "--parse-only"]
"""Arguments of a job that ends at once."""
LIMIT = 600


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return DetachedJob(tmp_path / "output" / "dogs")


def wait_until(job, *states):
    end = time.monotonic() + LIMIT
    while job.state() not in states:
        assert time.monotonic() < end, (job.state(), job.log_lines())
        time.sleep(0.02)
    return job.state()


def process_number(job):
    return json.loads((job.root / STATE_FOLDER / "process.json").read_text())["pid"]


@pytest.mark.slow
def test_a_job_waits_for_the_gpu_is_stopped_and_continued(job):
    with FileLocks(job.root.parent / UPLOADS) as locks:
        assert locks.acquire(GPU_LOCK)
        job.start(AT_ONCE)
        again = DetachedJob(job.root)  # as another app sees it
        assert again.state() == RUNNING and again.arguments() == AT_ONCE
        with pytest.raises(ConfigError, match="running already"):
            again.start(AT_ONCE)
        while not any("another run uses the GPU" in line for line in job.log_lines()):
            time.sleep(0.02)
        again.stop()
        assert wait_until(job, STOPPING, STOPPED)
        assert wait_until(job, STOPPED) and "continues from here" in job.log_lines()[-1]
        with pytest.raises(ConfigError, match="does not run"):
            job.stop()
    job.start(job.arguments())
    assert wait_until(job, DONE, FAILED) == DONE


@pytest.mark.slow
def test_a_failure_and_a_kill_are_told_apart(job, tmp_path):
    job.start([str(tmp_path / "absent")])
    assert wait_until(job, DONE, FAILED) == FAILED and "a folder of videos is expected" in job.log_lines()[-1]
    with FileLocks(job.root.parent / UPLOADS) as locks:
        assert locks.acquire(GPU_LOCK)
        job.start(AT_ONCE)
        os.kill(process_number(job), signal.SIGKILL)
        assert wait_until(job, CUT_OFF)


def test_another_process_of_the_same_number_is_not_the_job(job):
    folder = job.root / STATE_FOLDER
    folder.mkdir(parents=True)
    assert job.state() == ""
    (folder / "job.json").write_text('{"arguments": []}')
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "command": ["python"]}))
    assert job.state() == CUT_OFF
    for broken in ("", "[]", "{", '{"pid": "x"}', '{"pid": -1, "command": []}'):
        (folder / "process.json").write_text(broken)
        assert job.state() == CUT_OFF
