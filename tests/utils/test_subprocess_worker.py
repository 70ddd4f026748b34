"""Work that hangs or crashes costs one file, not the run."""

from __future__ import annotations

import pytest
from media import make_video
from misbehaving import misbehave

from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan import ScanStore
from mmaudio.utils.subprocess_worker import Guarded, Lost


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


@pytest.mark.slow
def test_a_file_that_takes_too_long_is_left_out_and_looked_at_again(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, 20)  # takes far longer than the limit, whichever process goes first
    store = ScanStore(tmp_path / "scans.jsonl")
    result = split_folder(folder, SplitSettings(timeout=0.001), store)
    reasons = {row.video: row.reason for row in result.left_out}
    assert reasons == dict.fromkeys(("a.mp4", "b.mp4"), "not through after 0.001 s (--timeout-per-video)")
    again = split_folder(folder, SplitSettings(timeout=60), ScanStore(tmp_path / "scans.jsonl"))
    assert again.scanned == 2
    assert {clip.video for clip in again.clips} == {"a.mp4", "b.mp4"}
