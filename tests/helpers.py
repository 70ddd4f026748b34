"""Golden numbers, the mini network, and how tensors are compared."""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmaudio.model.networks import MMAudio
from mmaudio.model.spec import NetworkSpec
from mmaudio.model.state_dict import ReleasedModule

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"


@functools.cache
def syntax(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


@functools.cache
def syntax_nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(syntax(path)))


def load_script(path: Path) -> ModuleType:
    """Import a Python file outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = load_script(GOLDEN / "fill.py")
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


def build_golden(build: Callable[[], ReleasedModule], **constants: Tensor) -> Any:
    """A large module with the golden values, as it is loaded from a file: random ones at first would take longer.

    `constants` are values by the last part of their keys.
    """
    with torch.device("meta"):
        module: Any = build()
    module.load_released(
        {
            key: constants.get(
                key.rsplit(".", 1)[-1],
                torch.from_numpy(np.asarray(fill.fill_values(key, tuple(value.shape)), np.float32)),
            )
            for key, value in getattr(module, "model", module).state_dict().items()
        }
    )
    return module.eval()


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


def mini_spec(v2=False):
    """The shape of the mini network, that of version 2 of the model with `v2`."""
    return NetworkSpec(8, 48, 32, 40, 64, 2, 2, 2, 30, 16, 24, v2)


@functools.cache
def mini_pattern(v2):
    """The mini network that is copied: making one takes four times as long."""
    network = MMAudio(mini_spec(v2))
    fill.fill_module(network)
    return network


def mini(v2=False):
    """The mini network with the golden values."""
    return copy.deepcopy(mini_pattern(v2))


def mini_inputs():
    """One golden input of each kind, two clips, by parameter name."""
    shapes = {"latent": (2, 30, 8), "clip_f": (2, 16, 48), "sync_f": (2, 24, 32), "text_f": (2, 77, 40), "t": (2,)}
    inputs = {name: filled(f"input/{name}", *shape) for name, shape in shapes.items()}
    return inputs | {"t": inputs["t"].sigmoid()}


def mini_conditions(network):
    """What the mini network computes once per clip from the golden inputs."""
    inputs = mini_inputs()
    return network.preprocess_conditions(inputs["clip_f"], inputs["sync_f"], inputs["text_f"])


def mini_velocity(network):
    """The velocity of the golden inputs."""
    with torch.no_grad():
        return network(**mini_inputs())


def is_close(one, other, share=1e-5):
    """Whether the largest deviation is below `share` of the largest magnitude of `other`."""
    return float((one - other).abs().max()) < share * float(other.abs().max())


def run_script(path: Path, *arguments: object) -> int:
    """The exit status of a script's `main`, run in this process."""
    status: int = load_script(path).main([str(argument) for argument in arguments])
    return status


def split_command(*arguments: object) -> int:
    """The exit status of training/split_videos_for_finetuning.py, run in this process."""
    return run_script(ROOT / "training" / "split_videos_for_finetuning.py", *arguments)
