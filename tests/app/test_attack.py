"""An attack on the running page: nothing leaves its folders, nothing runs, nothing is fetched."""

import socket
import threading

import pytest
from page_server import copy_checkout, serve_page

from mmaudio.synthetic.demo import plan_demo_videos, write_demo_video

pytestmark = pytest.mark.slow
LOOK = {"videos": 0, "name": 1, "model": 2}
UPLOAD, VIDEO = 0, 1


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack")
    (folder / "secret.mp4").write_bytes(b"the secret")
    write_demo_video(plan_demo_videos(folder / "videos", 1, 2.0, 1)[0])
    (folder / "videos" / "out").symlink_to(folder)
    (folder / "output").mkdir()
    (folder / "output" / "link.mp4").symlink_to(folder / "secret.mp4")
    with serve_page(copy_checkout(tmp_path_factory.mktemp("checkout")), folder, "--max-upload", "1") as server:
        server.folder = folder
        yield server


def test_files_outside_are_not_served(page):
    names = [
        "/etc/passwd",
        f"{page.folder}/secret.mp4",
        f"{page.folder}/output/../secret.mp4",
        f"{page.folder}/output/link.mp4",
        f"{page.folder}/videos/demo_1_00.mp4",
        f"{page.folder}/output/%2e%2e/secret.mp4",
        "http://127.0.0.1:1/a.mp4",
    ]
    answers = [page.get(f"gradio_api/file={name}") for name in names]
    assert [status for status, _ in answers] == [403] * len(names)
    assert not any(b"secret" in body or b"root:" in body for _, body in answers)


def test_another_host_name_is_refused(page):
    assert page.get("", "evil.example")[0] == 403 and page.get("")[0] == 200


def test_a_huge_upload_is_refused_and_leaves_nothing(page):
    before = set((page.folder / "output").rglob("*"))
    assert page.upload("big.mp4", bytes(2_000_000))[0] == 413
    assert {path for path in (page.folder / "output").rglob("*") if path.is_file()} <= before


@pytest.mark.parametrize("name", ["false.mp4", "page.html", "<img src=x onerror=alert(1)>.mp4"])
def test_a_false_upload_is_not_used_and_not_shown_as_a_page(page, name):
    status, body = page.upload(name, b"<script>alert(1)</script>")
    assert status == 200
    path = body.decode().strip('[]"')
    answer = page.call("generate", {UPLOAD: {"path": path, "meta": {"_type": "gradio.FileData"}}})
    assert '"success":false' in answer and "<script>" not in answer and "<img" not in answer
    if name.endswith(".html"):
        assert page.get(f"gradio_api/file={path}")[0] == 403
    assert not (page.folder / "output" / "generated").exists()


def test_a_file_of_the_server_is_no_upload(page):
    for path in (f"{page.folder}/secret.mp4", "/etc/passwd", f"{page.folder}/output/link.mp4"):
        answer = page.call("generate", {UPLOAD: {"path": path, "meta": {"_type": "gradio.FileData"}}})
        assert '"success":false' in answer and "the secret" not in answer
    assert not list((page.folder / "output" / ".uploads").rglob("secret.mp4"))


def test_an_address_in_place_of_an_upload_is_not_fetched(page):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.mp4"
        for field in ("path", "url"):
            value = {"path": "a.mp4", "meta": {"_type": "gradio.FileData"}} | {field: address}
            assert '"success":false' in page.call("generate", {UPLOAD: value})
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("name", ["../secret.mp4", "out/secret.mp4", "/etc/passwd", "a\0b", "<b>x</b>"])
def test_no_field_of_a_path_leads_out(page, name):
    before = {path for path in page.folder.rglob("*") if path.name != "page.log"}
    answers = [page.call("generate", {VIDEO: name}), page.call("look", {LOOK["videos"]: name, LOOK["name"]: "x"})]
    answers += [page.call("look", {LOOK["videos"]: ".", LOOK["name"]: name}), page.call("stop", {0: name})]
    answers += [page.call("continue", {0: name}), page.call("export", {0: name}), page.call("merge", {0: name})]
    assert all('"success":false' in answer and "<b>" not in answer for answer in answers), answers
    assert {path for path in page.folder.rglob("*") if path.name != "page.log"} == before


def test_two_browsers_that_ask_at_once_are_both_answered(page):
    answers = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: page.call("stop", {0: "none"})})) for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2 and all("no training of this page" in answer for answer in answers.values())
