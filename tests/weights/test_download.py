"""Downloads against a server on the loopback address: cut, changed, corrupt, absent, without room, two at once."""

import hashlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from file_server import serve_files

from mmaudio.errors import WeightsError
from mmaudio.weights.download import PartialFile, download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
OTHER = np.random.default_rng(1).bytes(2_500_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
AT_ONCE = (0.0, 0.0)
"""Two more tries, without a pause."""


@pytest.fixture
def site():
    with serve_files(files={"/w.pth": CONTENT}) as server:
        yield server


def fetch(site, folder, md5=MD5, retry_delays=AT_ONCE):
    download(f"{site.address}/w.pth", folder / "w.pth", md5, retry_delays)
    return (folder / "w.pth").read_bytes()


def names(folder):
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_file_is_downloaded_once_and_leaves_no_other_file(site, tmp_path):
    assert fetch(site, tmp_path / "a" / "b") == CONTENT
    assert fetch(site, tmp_path / "a" / "b") == CONTENT
    assert site.requests == [("/w.pth", None)] and names(tmp_path / "a" / "b") == {"w.pth"}


def test_a_cut_connection_is_resumed(site, tmp_path):
    site.cut_after = [1_000_000, 500_000]
    assert fetch(site, tmp_path) == CONTENT
    assert [byte_range for _, byte_range in site.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_command_resumes_the_download(site, tmp_path):
    site.cut_after = [1_000_000]
    with pytest.raises(WeightsError, match=r"w\.pth: cannot be fetched .*1 MB of 3 MB.*the same command goes on"):
        fetch(site, tmp_path, retry_delays=())
    assert not (tmp_path / "w.pth").exists()
    assert fetch(site, tmp_path) == CONTENT
    assert site.requests[-1][1] == "bytes=1000000-" and names(tmp_path) == {"w.pth"}


def test_a_complete_partial_file_is_not_downloaded_again(site, tmp_path):
    partial = PartialFile.of(tmp_path / "w.pth")
    partial.path.write_bytes(CONTENT)
    partial.tag.write_text(site.etag("/w.pth"))
    assert fetch(site, tmp_path) == CONTENT
    assert [byte_range for _, byte_range in site.requests] == ["bytes=3000000-"]


@pytest.mark.parametrize(
    "behaviour", [{}, {"supports_range": False}, {"supports_if_range": False}, {"sends_etag": False}], ids=str
)
def test_a_file_that_changed_meanwhile_is_downloaded_whole(site, tmp_path, behaviour):
    """By a server that knows If-Range, one that knows no Range, one that sends a range of the new file, one without
    ETags."""
    vars(site).update(behaviour, cut_after=[1_000_000])
    with pytest.raises(WeightsError):
        fetch(site, tmp_path, retry_delays=())
    site.files["/w.pth"] = OTHER
    assert fetch(site, tmp_path, hashlib.md5(OTHER).hexdigest()) == OTHER
    assert len(site.requests) <= 3


def test_a_file_that_became_shorter_is_downloaded_whole(site, tmp_path):
    vars(site).update(supports_if_range=False, cut_after=[2_000_000])
    with pytest.raises(WeightsError):
        fetch(site, tmp_path, retry_delays=())
    site.files["/w.pth"] = CONTENT[:100]
    assert fetch(site, tmp_path, md5=None) == CONTENT[:100]


def test_a_busy_server_is_retried(site, tmp_path):
    site.statuses = [503, 429]
    assert fetch(site, tmp_path) == CONTENT


def test_a_server_that_never_finishes_is_an_error(site, tmp_path):
    vars(site).update(supports_range=False, cut_after=[2_000_000] * 50)
    with pytest.raises(WeightsError, match="the connection was cut after 2 MB of 3 MB"):
        fetch(site, tmp_path)
    assert len(site.requests) <= 5


@pytest.mark.parametrize(("status", "words"), [(404, "not there"), (403, "refuses"), (500, "HTTP status 500")])
def test_an_http_error_is_one_line_with_the_address(site, tmp_path, status, words):
    site.statuses = [status] * 9
    with pytest.raises(WeightsError, match=words) as error:
        fetch(site, tmp_path)
    assert site.address in str(error.value) and "\n" not in str(error.value)
    assert len(site.requests) == (1 if status < 500 else 3) and not (tmp_path / "w.pth").exists()


def test_an_unreachable_server_is_one_line(tmp_path):
    with serve_files() as gone:
        pass
    with pytest.raises(WeightsError, match=r"cannot be fetched from http://127.*refused"):
        fetch(gone, tmp_path)


def test_a_file_with_a_wrong_checksum_is_moved_aside(site, tmp_path):
    site.files["/w.pth"] = OTHER
    corrupt_name = f"w.pth.corrupt-{hashlib.md5(OTHER).hexdigest()[:8]}"
    with pytest.raises(WeightsError, match=f"MD5 is not {MD5}; it is kept as .*{corrupt_name}"):
        fetch(site, tmp_path)
    assert names(tmp_path) == {corrupt_name} and (tmp_path / corrupt_name).read_bytes() == OTHER
    site.files["/w.pth"] = CONTENT
    assert fetch(site, tmp_path) == CONTENT and names(tmp_path) == {"w.pth", corrupt_name}


def test_a_corrupt_file_is_moved_aside_and_downloaded_again(site, tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(OTHER)
    assert fetch(site, tmp_path) == CONTENT
    assert "corrupt" in capsys.readouterr().out
    assert {(tmp_path / name).read_bytes() for name in names(tmp_path)} == {CONTENT, OTHER}


def test_too_little_disk_space_is_an_error_before_writing(site, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(WeightsError, match=r"no space left in .* for 3 MB more \(1 MB free\); make room"):
        fetch(site, tmp_path)
    assert not names(tmp_path)


def test_a_disk_that_fills_up_is_one_line_of_error(site, tmp_path):
    site.sends_length = False
    PartialFile.of(tmp_path / "w.pth").path.symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"w\.pth: no space left in .*make room"):
        fetch(site, tmp_path)
    assert not (tmp_path / "w.pth").exists()


SCRIPT = """
import sys
from pathlib import Path
from mmaudio import cli
from mmaudio.weights import stall_guard
from mmaudio.weights.download import download
stall_guard.TIMEOUT = stall_guard.STALL_SECONDS = 600  # one of two waits for the other one's start
cli.run(lambda arguments: download(arguments[0], Path(arguments[1]), arguments[2]))
"""


def command(site, target):
    return [sys.executable, "-c", SCRIPT, f"{site.address}/w.pth", str(target), MD5]


@pytest.mark.slow
def test_a_download_resumes_after_a_full_disk(site, tmp_path):
    site.sends_length = False
    mounted = "mount -t tmpfs -o size={} none {} && "
    probe = mounted.format("1m", tmp_path) + "true"
    if subprocess.run(["unshare", "-rm", "sh", "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    here = subprocess.list2cmdline(command(site, tmp_path / "w.pth")[3:])
    script = mounted.format("1m", tmp_path) + f'"$0" -c "$1" {here}; echo status $?; ls -la {tmp_path}; '
    script += f'mount -o remount,size=9m {tmp_path} && "$0" -c "$1" {here}; echo status $?; md5sum {tmp_path}/w.pth'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, SCRIPT], capture_output=True, text=True, check=False
    )
    assert "error: w.pth: no space left" in result.stderr and "Traceback" not in result.stderr
    assert "status 1" in result.stdout and "status 0" in result.stdout and MD5 in result.stdout
    assert site.requests[-1][1] not in (None, "bytes=0-")


@pytest.mark.slow
def test_two_processes_download_once(tmp_path):
    gate = threading.Event()
    with serve_files(files={"/w.pth": CONTENT}, gate=gate) as site:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command(site, tmp_path / "w.pth"), **pipes) for _ in range(2)]
        first = {}

        def read(process):
            first[process.pid] = process.stdout.readline()
            if "waiting" in first[process.pid]:
                gate.set()

        readers = [threading.Thread(target=read, args=(process,)) for process in processes]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(300)
        gate.set()
        ends = [process.wait(300) for process in processes]
        errors = [process.stderr.read() for process in processes]
        for process in processes:
            process.stdout.close()
            process.stderr.close()
    assert ends == [0, 0], errors
    assert sum("another process" in line for line in first.values()) == 1
    assert len(site.requests) == 1 and (tmp_path / "w.pth").read_bytes() == CONTENT
