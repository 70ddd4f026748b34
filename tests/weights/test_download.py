"""Downloads against a server on the loopback address: cut, changed, corrupt, absent, without room, two at once."""

import hashlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from web import serving

from mmaudio.errors import WeightsError
from mmaudio.weights.download import Part, download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
OTHER = np.random.default_rng(1).bytes(2_500_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
AT_ONCE = (0.0, 0.0)
"""Two more tries, without a pause."""


@pytest.fixture
def site():
    with serving(files={"/w.pth": CONTENT}) as made:
        yield made


def fetch(site, folder, md5=MD5, pauses=AT_ONCE):
    download(f"{site.address}/w.pth", folder / "w.pth", md5, pauses)
    return (folder / "w.pth").read_bytes()


def names(folder):
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_file_is_fetched_once_and_nothing_else_stays(site, tmp_path):
    assert fetch(site, tmp_path / "a" / "b") == CONTENT
    assert fetch(site, tmp_path / "a" / "b") == CONTENT
    assert site.asked == [("/w.pth", None)] and names(tmp_path / "a" / "b") == {"w.pth"}


def test_a_cut_connection_is_resumed(site, tmp_path):
    site.cuts = [1_000_000, 500_000]
    assert fetch(site, tmp_path) == CONTENT
    assert [asked for _, asked in site.asked] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_command_goes_on_where_the_last_one_stopped(site, tmp_path):
    site.cuts = [1_000_000]
    with pytest.raises(WeightsError, match=r"w\.pth: cannot be fetched .*1 MB of 3 MB.*the same command goes on"):
        fetch(site, tmp_path, pauses=())
    assert not (tmp_path / "w.pth").exists()
    assert fetch(site, tmp_path) == CONTENT
    assert site.asked[-1][1] == "bytes=1000000-" and names(tmp_path) == {"w.pth"}


def test_what_was_complete_before_a_kill_is_not_fetched_again(site, tmp_path):
    part = Part.of(tmp_path / "w.pth")
    part.path.write_bytes(CONTENT)
    part.tag.write_text(site.tag("/w.pth"))
    assert fetch(site, tmp_path) == CONTENT
    assert [asked for _, asked in site.asked] == ["bytes=3000000-"]


@pytest.mark.parametrize("behaviour", [{}, {"ranges": False}, {"checks": False}, {"tags": False}], ids=str)
def test_a_file_that_changed_meanwhile_is_fetched_whole(site, tmp_path, behaviour):
    """By a server that knows If-Range, one that knows no Range, one that sends a range of the new file, one without
    ETags."""
    vars(site).update(behaviour, cuts=[1_000_000])
    with pytest.raises(WeightsError):
        fetch(site, tmp_path, pauses=())
    site.files["/w.pth"] = OTHER
    assert fetch(site, tmp_path, hashlib.md5(OTHER).hexdigest()) == OTHER
    assert len(site.asked) <= 3


def test_a_file_that_became_shorter_is_fetched_whole(site, tmp_path):
    vars(site).update(checks=False, cuts=[2_000_000])
    with pytest.raises(WeightsError):
        fetch(site, tmp_path, pauses=())
    site.files["/w.pth"] = CONTENT[:100]
    assert fetch(site, tmp_path, md5=None) == CONTENT[:100]


def test_a_busy_server_is_asked_again(site, tmp_path):
    site.statuses = [503, 429]
    assert fetch(site, tmp_path) == CONTENT


def test_a_server_that_never_gets_far_is_given_up(site, tmp_path):
    vars(site).update(ranges=False, cuts=[2_000_000] * 50)
    with pytest.raises(WeightsError, match="the connection was cut after 2 MB of 3 MB"):
        fetch(site, tmp_path)
    assert len(site.asked) <= 5


@pytest.mark.parametrize(("status", "words"), [(404, "not there"), (403, "refuses"), (500, "HTTP status 500")])
def test_a_refusal_is_one_line_with_the_address(site, tmp_path, status, words):
    site.statuses = [status] * 9
    with pytest.raises(WeightsError, match=words) as error:
        fetch(site, tmp_path)
    assert site.address in str(error.value) and "\n" not in str(error.value)
    assert len(site.asked) == (1 if status < 500 else 3) and not (tmp_path / "w.pth").exists()


def test_nobody_there_is_one_line(tmp_path):
    with serving() as gone:
        pass
    with pytest.raises(WeightsError, match=r"cannot be fetched from http://127.*refused"):
        fetch(gone, tmp_path)


def test_a_wrong_checksum_is_kept_aside_and_not_used(site, tmp_path):
    site.files["/w.pth"] = OTHER
    kept = f"w.pth.corrupt-{hashlib.md5(OTHER).hexdigest()[:8]}"
    with pytest.raises(WeightsError, match=f"MD5 is not {MD5}; it is kept as .*{kept}"):
        fetch(site, tmp_path)
    assert names(tmp_path) == {kept} and (tmp_path / kept).read_bytes() == OTHER
    site.files["/w.pth"] = CONTENT
    assert fetch(site, tmp_path) == CONTENT and names(tmp_path) == {"w.pth", kept}


def test_a_file_that_went_bad_is_kept_aside_and_fetched_again(site, tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(OTHER)
    assert fetch(site, tmp_path) == CONTENT
    assert "corrupt" in capsys.readouterr().out
    assert {(tmp_path / name).read_bytes() for name in names(tmp_path)} == {CONTENT, OTHER}


def test_no_room_is_said_before_anything_is_written(site, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(WeightsError, match=r"no space left in .* for 3 MB more \(1 MB free\); make room"):
        fetch(site, tmp_path)
    assert not names(tmp_path)


def test_a_disk_that_fills_up_is_one_line(site, tmp_path):
    site.lengths = False
    Part.of(tmp_path / "w.pth").path.symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"w\.pth: no space left in .*make room"):
        fetch(site, tmp_path)
    assert not (tmp_path / "w.pth").exists()


SCRIPT = """
import sys
from pathlib import Path
from mmaudio import cli
from mmaudio.download import download
cli.run(lambda arguments: download(arguments[0], Path(arguments[1]), arguments[2]))
"""


def command(site, target):
    return [sys.executable, "-c", SCRIPT, f"{site.address}/w.pth", str(target), MD5]


def test_a_full_disk_keeps_what_is_there_and_more_room_ends_it(site, tmp_path):
    site.lengths = False
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
    assert site.asked[-1][1] not in (None, "bytes=0-")


def test_two_processes_at_once_fetch_once(tmp_path):
    gate = threading.Event()
    with serving(files={"/w.pth": CONTENT}, gate=gate) as site:
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
            reader.join(60)
        gate.set()
        ends = [process.wait(60) for process in processes]
        said = [process.stderr.read() for process in processes]
        for process in processes:
            process.stdout.close()
            process.stderr.close()
    assert ends == [0, 0], said
    assert sum("another process" in line for line in first.values()) == 1
    assert len(site.asked) == 1 and (tmp_path / "w.pth").read_bytes() == CONTENT
