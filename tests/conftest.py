"""Fixtures and hooks for every test."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from mmaudio.utils import heartbeat
from mmaudio.weights import store

LONGEST = ("pipeline/test_demo.py", "pipeline/test_run.py")
"""Files that begin first, so that no worker is left alone with one of them at the end."""


HOME = Path(tempfile.mkdtemp(prefix="mmaudio_tests_"))
"""Stands for the user's caches. Named to the packages before any test module imports them: they look once."""
os.environ |= {
    "HF_HOME": str(HOME),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_ETAG_TIMEOUT": "600",  # a machine may stand still for longer than the usual 10 s
    "HF_HUB_DOWNLOAD_TIMEOUT": "600",
    "WANDB__SERVICE_WAIT": "600",
    "WANDB_MODE": "offline",
    "TRACKIO_DIR": str(HOME / "trackio"),
    "MMAUDIO_QUIET_SECONDS": "3600",  # of the commands under test, as quiet_heartbeat of the tests themselves
}
for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_ENDPOINT"):
    os.environ.pop(name, None)


def pytest_unconfigure() -> None:
    """Remove the caches of the tests."""
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_configure() -> None:
    """Commands under test react to signals also where nohup or a background job has this process ignore them."""
    handlers = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    for number, handler in handlers.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, those with tests marked `alone` last: a worker waits there for the other one's test."""
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(LONGEST)}
    rank |= {item.path: len(LONGEST) + 1 for item in items if item.get_closest_marker("alone")}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True)
def quiet_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine any test may be silent for so long that a line of progress is due, amid what it compares."""
    monkeypatch.setattr(heartbeat, "QUIET_SECONDS", 3600.0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked `alone` have the machine to themselves where pytest-xdist runs tests side by side."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # for forked processes too, which hold it as well


@pytest.fixture(autouse=True, scope="module")
def no_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is fetched, and what was fetched or kept before is not seen, also that of other modules of tests."""
    home = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
        yield


@pytest.fixture(scope="module")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one shard of three clips of the embedded base's recipe."""
    from mmaudio.pretraining import shards

    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 3)
        list(shards.write_shards(folder, 5, 1, 1))
    return folder


@pytest.fixture(scope="module")
def nothing_ships() -> Iterator[None]:
    """Evaluation finds no clips that ship with the model: they would take longer than a test of anything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "GENERAL_VIDEOS_FOLDER", "none")
        yield
