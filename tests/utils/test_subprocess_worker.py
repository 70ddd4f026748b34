"""Work that hangs or crashes costs one file, not the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from failing_worker import fail
from helpers import ROOT, TESTS
from video_files import write_tone_video

from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan_store import ScanStore
from mmaudio.utils.subprocess_worker import SubprocessWorker, WorkerError

LIMIT = 600.0
"""Seconds that a call may take where it is not to fail by that: the start of its process counts."""


@pytest.mark.slow
def test_a_failed_call_is_an_error_and_the_next_call_works():
    with SubprocessWorker(fail) as guarded:
        assert guarded(("fine",), LIMIT) == "FINE"
        with pytest.raises(WorkerError, match=r"not finished after 0\.2 s"):
            guarded(("hang",), 0.2)
        assert guarded(("again",), LIMIT) == "AGAIN"
        with pytest.raises(WorkerError, match=r"crashed the decoder \(SIGSEGV\)"):
            guarded(("crash",), LIMIT)
        with pytest.raises(WorkerError, match="failed unexpectedly; --debug"):
            guarded(("raise",), LIMIT)
        assert guarded(("end",), LIMIT) == "END"


def start(arguments):
    """A Python process of its own group."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{ROOT}"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        pipesize=4096,  # it cannot run far ahead of who reads its output
    )


SCRIPT = """
import sys
from failing_worker import fail
from mmaudio import cli
from mmaudio.utils.subprocess_worker import SubprocessWorker
def call(_):
    with SubprocessWorker(fail) as guarded:
        print(guarded(("fine",), 600.0), flush=True)
        guarded(("hang",), 1e5)
print("start", file=sys.stderr, flush=True)
cli.run(call)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_not_run_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with start([str(tmp_path / "script.py")]) as process:
        assert process.stdout.readline() == "FINE\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", "start\nstopped by SIGTERM; the same command continues from here\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_come_from_the_process_that_has_imported_for_them(number):
    """No signal of the terminal ends it."""
    script = """
import os, psutil, sys
from failing_worker import fail
from mmaudio.utils.subprocess_worker import SubprocessWorker, import_for_workers
import_for_workers("failing_worker")
children = psutil.Process().children()
for child in children:
    os.kill(child.pid, int(sys.argv[1]))
with SubprocessWorker(fail) as guarded:
    print(guarded(("fine",), 600.0), psutil.Process(guarded.pid).parent() in children)
"""
    with start(["-c", script, str(int(number))]) as process:
        assert process.communicate() == ("FINE True\n", "")


@pytest.mark.slow
def test_nothing_is_left_of_a_killed_script():
    with start(["-c", SCRIPT]) as process:
        assert process.stdout.readline() == "FINE\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2, "the worker and what it was forked from"
        process.kill()
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_while_the_worker_starts_is_one_line(number, processes):
    """After the first process has imported what it needs to start another, and after that one has, too."""
    with start(["-X", "importtime", "-c", SCRIPT]) as process:
        assert any(line == "start\n" for line in process.stderr)
        for _ in range(processes):
            assert any("multiprocessing.forkserver" in line for line in process.stderr)
        os.killpg(process.pid, number)
        lines = [line for line in process.stderr if not line.startswith("import time:")]
        assert len(lines) == 1 and lines[0].endswith("the same command continues from here\n"), "".join(lines)
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_process_that_tracks_resources_gets_no_signal_of_the_terminal(number):
    """Killed, multiprocessing would start it again with a warning between the lines of the command."""
    script = """
import os, sys
from multiprocessing import resource_tracker
from mmaudio.utils.subprocess_worker import isolated_start
with isolated_start():
    pass
tracker = resource_tracker._resource_tracker
os.kill(tracker._pid, int(sys.argv[1]))
os.close(tracker._fd)  # it ends when nobody holds the other end of its pipe
sys.exit(os.waitpid(tracker._pid, 0)[1])
"""
    with start(["-c", script, str(int(number))]) as process:
        assert process.communicate() == ("", "")
    assert process.returncode == 0


@pytest.mark.slow
def test_a_file_that_times_out_is_left_out_and_tried_again(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_tone_video(folder / name, 9)
    begin = SubprocessWorker.begin

    def begin_and_hang(worker, arguments, limit):
        worker._ensure_started()
        os.kill(worker.pid, signal.SIGSTOP)
        begin(worker, arguments, limit)

    with monkeypatch.context() as patch:
        patch.setattr(SubprocessWorker, "begin", begin_and_hang)
        result = split_folder(folder, SplitSettings(timeout=0.001), ScanStore(tmp_path / "scans.jsonl"))
    reasons = {row.video: row.reason for row in result.left_out}
    assert reasons == dict.fromkeys(("a.mp4", "b.mp4"), "not finished after 0.001 s (--timeout-per-video)")
    again = split_folder(folder, SplitSettings(timeout=LIMIT), ScanStore(tmp_path / "scans.jsonl"))
    assert again.scanned_count == 2
    assert {clip.video for clip in again.clips} == {"a.mp4", "b.mp4"}
