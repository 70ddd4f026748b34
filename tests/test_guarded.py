"""Work that hangs or crashes costs one file, not the run."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mmaudio.data.guarded import Guarded, Lost
from mmaudio.data.scanning import ScanStore
from mmaudio.data.splitting import SplitSettings, split_folder


def misbehave(how):
    """What a decoder may do."""
    if how == "hang":
        time.sleep(60)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "raise":
        raise ValueError(how)
    return how.upper()


def test_what_does_not_come_back_is_lost_and_the_next_is_not():
    with Guarded(misbehave) as guarded:
        assert guarded(("fine",), 30.0) == "FINE"
        with pytest.raises(Lost, match=r"not through after 0\.2 s"):
            guarded(("hang",), 0.2)
        assert guarded(("again",), 30.0) == "AGAIN"
        with pytest.raises(Lost, match=r"crashed the decoder \(SIGSEGV\)"):
            guarded(("crash",), 30.0)
        with pytest.raises(Lost, match="failed unexpectedly; --debug"):
            guarded(("raise",), 30.0)
        assert guarded(("end",), 30.0) == "END"


def test_a_file_that_takes_too_long_is_left_out_and_looked_at_again(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "notes.mp4").write_text("no video")
    (folder / "real.mp4").write_bytes(b"x")
    store = ScanStore(tmp_path / "scans.jsonl")
    result = split_folder(folder, SplitSettings(timeout=0.001), store)
    reasons = {row.video: row.reason for row in result.left_out}
    assert reasons == dict.fromkeys(("notes.mp4", "real.mp4"), "not through after 0.001 s (--timeout-per-video)")
    again = split_folder(folder, SplitSettings(timeout=60), ScanStore(tmp_path / "scans.jsonl"))
    assert again.scanned == 2
    assert {row.reason for row in again.left_out} == {"no video"}
