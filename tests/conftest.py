"""Fixtures and hooks for every test."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

from mmaudio.utils import heartbeat

LONGEST = ("pipeline/test_demo.py", "pipeline/test_run.py")
"""Files that begin first, so that no worker is left alone with one of them at the end."""


HOME = Path(tempfile.mkdtemp(prefix="mmaudio_tests_"))
"""Stands for the user's caches. Named to the packages before any test module imports them: they look once."""
os.environ |= {
    "HF_HOME": str(HOME),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_ETAG_TIMEOUT": "600",  # a server of the tests answers when its machine goes on
    "HF_HUB_DOWNLOAD_TIMEOUT": "600",
    "NO_PROXY": "*",
    "no_proxy": "*",
    "WANDB__SERVICE_WAIT": "600",  # its other process may start on a loaded machine
    "WANDB_INIT_TIMEOUT": "600",
    "WANDB_MODE": "offline",
    "TRACKIO_DIR": str(HOME / "trackio"),
    "MMAUDIO_QUIET_SECONDS": "3600",  # of the commands under test, as quiet_heartbeat of the tests themselves
}
NUM_THREADS = torch.get_num_threads()
"""As torch has them at first."""
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


@pytest.fixture(autouse=True, scope="session")
def quiet_heartbeat() -> None:
    """On a loaded machine any test may be silent for so long that a line of progress is due, amid what it compares.

    For the fixtures of modules, too, which come before those of a test.
    """
    heartbeat.QUIET_SECONDS = 3600.0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test has the same draws and threads, whatever ran before; those marked `gpu` are skipped without one."""
    torch.default_generator.manual_seed(0)
    if torch.get_num_threads() != NUM_THREADS:
        torch.set_num_threads(NUM_THREADS)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """A test has the same draws also where another one before it has made their fixtures."""
    torch.default_generator.manual_seed(1)


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
    from huggingface_hub import constants

    home = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
        yield


@pytest.fixture(scope="module")
def shared_base_outputs(no_caches: None) -> None:
    """Commands of several modules evaluate the same base on the clips that ship with it: it is sampled once."""
    from mmaudio.evaluation.base_outputs import default_folder

    folder, shared = default_folder(), HOME / "base_outputs"
    shared.mkdir(exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(shared, target_is_directory=True)


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
    from mmaudio.weights import store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "GENERAL_VIDEOS_FOLDER", "none")
        yield


@pytest.fixture(scope="module")
def brief_vocoder() -> Iterator[None]:
    """Griffin-Lim takes 2 of its 32 iterations, which are half of the time of tests that do not listen."""
    from mmaudio.features import vocoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vocoder.VOCODERS, "griffin_lim", functools.partial(vocoder.GriffinLim, iterations=2))
        yield
