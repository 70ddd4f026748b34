"""What several tests share: the golden numbers and how to compare with them."""

from __future__ import annotations

import fcntl
import importlib.util
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor

from mmaudio.evaluation import general_domain as general

GOLDEN = Path(__file__).parent / "golden"
LONGEST = ("test_demo.py", "test_pipeline.py")
"""Files that begin first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order is otherwise as it was."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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


@pytest.fixture(autouse=True, scope="session")
def no_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was fetched on this machine before is not seen, and nothing is fetched, by the processes of tests too."""
    home = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_ENDPOINT"):
            patch.delenv(name, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one shard of three clips of the embedded base's recipe."""
    from mmaudio.pretraining import shards as data

    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHARD", 3)
        list(data.make_shards(folder, 5, 1, 1))
    return folder


@pytest.fixture(scope="module")
def nothing_ships() -> Iterator[None]:
    """Evaluation finds no clips that ship with the model: they would take longer than a test of anything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(general, "SHIPPED", "none")
        yield


def _load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = _load_fill()
"""The module `golden/fill.py`: fill_array, fill_values, fill_module."""


def golden(name: str) -> dict[str, Tensor]:
    """The tensors of `golden/<name>.safetensors`."""
    return load_file(GOLDEN / f"{name}.safetensors")


def manifest(name: str) -> dict[str, Any]:
    """The JSON of `golden/manifests/<name>.json`: what the released file's keys look like."""
    loaded: dict[str, Any] = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    return loaded


def filled(name: str, *shape: int) -> Tensor:
    """The golden input called `name`, float32."""
    return torch.from_numpy(np.asarray(fill.fill_array(name, shape), np.float32))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation over the expected values' largest magnitude; the shapes must agree."""
    assert got.shape == expected.shape, f"{tuple(got.shape)}, expected {tuple(expected.shape)}"
    return float(
        (got.detach().double() - expected.detach().double()).abs().max() / expected.detach().double().abs().max()
    )


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Asserts that `relative_error` stays below `tolerance`."""
    error = relative_error(got, expected)
    assert error < tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"
