"""Work that hangs or crashes costs one file, not the run."""

from __future__ import annotations

import pytest
from failing_worker import fail
from video_files import write_tone_video

from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan_store import ScanStore
from mmaudio.utils.subprocess_worker import SubprocessWorker, WorkerError


def test_a_failed_call_is_an_error_and_the_next_call_works():
    with SubprocessWorker(fail) as guarded:
        assert guarded(("fine",), 30.0) == "FINE"
        with pytest.raises(WorkerError, match=r"not finished after 0\.2 s"):
            guarded(("hang",), 0.2)
        assert guarded(("again",), 30.0) == "AGAIN"
        with pytest.raises(WorkerError, match=r"crashed the decoder \(SIGSEGV\)"):
            guarded(("crash",), 30.0)
        with pytest.raises(WorkerError, match="failed unexpectedly; --debug"):
            guarded(("raise",), 30.0)
        assert guarded(("end",), 30.0) == "END"


@pytest.mark.slow
def test_a_file_that_times_out_is_left_out_and_tried_again(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_tone_video(folder / name, 20)  # takes far longer than the limit, whichever process goes first
    store = ScanStore(tmp_path / "scans.jsonl")
    result = split_folder(folder, SplitSettings(timeout=0.001), store)
    reasons = {row.video: row.reason for row in result.left_out}
    assert reasons == dict.fromkeys(("a.mp4", "b.mp4"), "not finished after 0.001 s (--timeout-per-video)")
    again = split_folder(folder, SplitSettings(timeout=60), ScanStore(tmp_path / "scans.jsonl"))
    assert again.scanned_count == 2
    assert {clip.video for clip in again.clips} == {"a.mp4", "b.mp4"}
