"""Downloads from servers that send nonsense, too much, too little or too slowly: one line, and nothing is kept."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import count, repeat

import pytest
from helpers import ROOT

from mmaudio.errors import WeightsError
from mmaudio.weights import stall_guard
from mmaudio.weights.download import PartialFile, download

CONTENT = bytes(range(256)) * 400
SIZE = len(CONTENT)
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % SIZE


@contextmanager
def serve_bytes(pieces, pause=0.0):
    """A server that answers every request with `pieces`, with a pause after each; yields address and requests."""
    listener, end, requests = socket.create_server(("127.0.0.1", 0)), threading.Event(), []

    def answer(connection):
        with connection, suppress(OSError):
            requests.append(connection.recv(65536))
            for piece in pieces:
                connection.sendall(piece)
                if end.wait(pause):
                    break

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/w.pth", requests
    finally:
        end.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def refuse(tmp_path, pieces, words, pause=0.0, size=SIZE):
    """Check that such a download is one line of error with `words`, and leaves nothing; the requests."""
    with serve_bytes(pieces, pause) as (url, requests), pytest.raises(WeightsError, match=words) as refused:
        download(url, tmp_path / "w.pth", None, (0.0,), size)
    text = str(refused.value)
    assert url in text and text.isprintable() and len(text) < 500
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
    return requests


@pytest.mark.parametrize(
    "length", [b"many", b"-5", b"1e3", b"0x10", b"9" * 40, b"3, 4", b"", b"5\r\nContent-Length: 6"], ids=repr
)
@pytest.mark.parametrize("size", [0, SIZE])
def test_a_length_that_is_no_number_is_refused(tmp_path, length, size):
    head = OK + b"Content-Length: " + length + b"\r\n\r\n"
    requests = refuse(tmp_path, [head, CONTENT], "the server says that the file is '.*' bytes long", size=size)
    assert len(requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\x1b[31m garbage\r\n\r\n",
        b"<html>" * 20_000,
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 503 \x1b[31mred\x07\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::nowhere\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"",
    ],
    ids=["bytes", "page", "status", "many headers", "long header", "escape", "redirection", "204", "chunks", "nothing"],
)
def test_an_answer_that_is_none_is_one_line(tmp_path, answer):
    refuse(tmp_path, [answer], r"w\.pth: cannot be fetched from http")


@pytest.mark.parametrize("etag", [b'"a\r\n b"', b'"\xff"', b'"' + b"a" * 5000 + b'"'], ids=["folded", "latin", "long"])
def test_an_etag_that_no_header_can_send_back_is_not_used(tmp_path, etag):
    head = OK + b"ETag: " + etag + b"\r\n" + LENGTH + b"\r\n"
    requests = refuse(tmp_path, [head, CONTENT[:5000]], "the connection was cut after 5 kB of 102 kB")
    assert len(requests) == 2 and not any(b"If-Range" in request for request in requests)


def test_a_body_without_a_length_is_bounded(tmp_path):
    head = OK + b'ETag: "a"\r\n\r\n'
    refuse(tmp_path, [head, *repeat(CONTENT, 1000)], "the server sends more than 105 kB")
    refuse(tmp_path, [OK + b"\r\n", CONTENT[:50_000]], "the server sent 50 kB of about 102 kB")
    with serve_bytes([head, CONTENT]) as (url, _):
        download(url, tmp_path / "w.pth", None, (), SIZE)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_another_file_is_refused_before_it_is_read(tmp_path):
    page = OK + b"Content-Length: 2000\r\n\r\n"
    requests = refuse(tmp_path, [page, b"<html>" * 500], "sends 2 kB, about 102 kB are expected; it is not kept")
    assert len(requests) == 1
    refuse(tmp_path, [OK + b"Content-Length: 900000000000\r\n\r\n"], r"sends 900\.0 GB, about 102 kB")


def test_a_whole_partial_file_of_another_size_is_not_taken(tmp_path):
    partial = PartialFile.of(tmp_path / "w.pth")
    partial.path.write_bytes(b"page")
    partial.tag.write_text('"a"')
    answer = b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */4\r\nContent-Length: 0\r\n\r\n"
    refuse(tmp_path, [answer], "sends 4 bytes, about 102 kB are expected")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "the server took more than 0.3 s for its answer"),
        (OK + b"X: ", "the server took more than 0.3 s for its answer"),
        (OK + LENGTH + b"\r\n", "less than 64 kB came in 0.3 s"),
        (OK + b"\r\n", "less than 64 kB came in 0.3 s"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", "less than 64 kB came in 0.3 s"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "Connection refused"),
    ],
    ids=["status", "header", "length", "no length", "chunks", "redirection"],
)
def test_a_drip_is_given_up(tmp_path, monkeypatch, head, words):
    """A guard of whole headers waits long, each other one 0.3 s."""
    is_whole, start, num_guards = head.endswith(b"\r\n\r\n"), stall_guard.StallGuard.start, count()

    def start_guard(guard):
        is_of_body = next(num_guards) % 2
        monkeypatch.setattr(stall_guard, "STALL_SECONDS", 600.0 if is_whole and not is_of_body else 0.3)
        start(guard)

    monkeypatch.setattr(stall_guard.StallGuard, "start", start_guard)
    refuse(tmp_path, [head, *repeat(b"1", 10_000)], words, pause=0.01)


def test_a_slow_download_that_goes_on_is_not_given_up(monkeypatch):
    monkeypatch.setattr(stall_guard, "STALL_BYTES", 10)
    amounts = iter([10, 11, 9, 10])
    here, there = socket.socketpair()
    with here, there:
        guard = stall_guard.StallGuard(here)

        def end_of_window(_):
            guard.num_bytes += next(amounts)

        monkeypatch.setattr(guard._end, "wait", end_of_window)
        guard._watch()
        assert guard.is_cut and list(amounts) == [10] and there.recv(1) == b""


def test_the_body_has_its_whole_time_after_late_headers(monkeypatch):
    guards = []
    monkeypatch.setattr(stall_guard.StallGuard, "start", lambda guard: guards.append(guard))
    here, there = socket.socketpair()
    with here, there:
        there.sendall(OK + LENGTH + b"\r\n")
        response = stall_guard.GuardedResponse(here)
        response.begin()
        of_head, of_body = guards
        assert of_head._end.is_set() and response.guard is of_body and not of_body._end.is_set()
        response.close()
        assert of_body._end.is_set()


def test_a_python_without_ssl_downloads_from_http_and_names_https():
    code = """
import sys
sys.modules["_ssl"] = None
from urllib.error import URLError
from urllib.request import Request
from mmaudio.weights.stall_guard import open_guarded
try:
    open_guarded(Request("https://127.0.0.1:1/a"))
except URLError as error:
    print(error.reason)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout == "unknown url type: https\n", result.stderr
