"""Requests that the page does not make are refused before Gradio sees them."""

import pytest

from mmaudio.app.folders import Folders
from mmaudio.app.request_guard import RequestGuard

LOCAL = ("127.0.0.1", "localhost")


@pytest.fixture
def guard(tmp_path):
    folders = Folders.create(tmp_path / "videos", tmp_path / "output")
    (tmp_path / "secret.mp4").write_text("secret")
    (folders.output / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    return RequestGuard(None, folders, LOCAL)


def ask(guard, path, host="127.0.0.1:7860", kind="http"):
    return guard.is_allowed({"type": kind, "path": path, "headers": [(b"host", host.encode())]})


@pytest.mark.parametrize(
    ("name", "is_served"),
    [
        ("output/generated/1/a.mp4", True),
        ("output/dogs/report/index.html", True),
        ("output/dogs/lora_checkpoints/dogs_lora.safetensors", True),
        ("output/.uploads/ab/a.mp4", True),
        ("output/.uploads/ab/evil.html", False),
        ("output/.uploads/report/evil.html", False),
        ("output/.uploads/ab/evil.svg", False),
        ("output/dogs/page_job/job.json", False),
        ("output/dogs/lora_checkpoints/best_lora.pt", False),
        ("output/link.mp4", False),
        ("output/../secret.mp4", False),
        ("secret.mp4", False),
        ("videos/a.mp4", False),
    ],
)
def test_media_reports_and_adapters_are_served(guard, tmp_path, name, is_served):
    assert ask(guard, f"/gradio_api/file={tmp_path}/{name}") is is_served


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=http://other.host/a.mp4", "/file=a.mp4", "/gradio_api/file=a\0.mp4", "/gradio_api/proxy=x"],
)
def test_no_address_and_no_other_route_is_fetched(guard, path):
    assert not ask(guard, path)


def test_another_host_name_is_refused_as_after_dns_rebinding(guard):
    assert ask(guard, "/", "localhost:7860") and ask(guard, "/", "127.0.0.1")
    assert not ask(guard, "/", "evil.example:7860") and not ask(guard, "/", "127.0.0.1.evil.example")
    assert RequestGuard(None, guard.folders, None).is_allowed({"type": "http", "path": "/", "headers": []})
