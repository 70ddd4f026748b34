"""Loading makes no second copy: the largest resident size of a process that loads a file, against the file's size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmaudio.features.vocoder import build_vocoder
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import NetworkSpec

SMALL = NetworkSpec(8, 48, 32, 40, 256, 4, 2, 2, 30, 16, 24)
LIMIT = 1.2
"""Growth of the process allowed, as a multiple of the file."""
SCRIPT = """
import re, sys
from pathlib import Path
import torch
from mmaudio.weights.load_frozen import load_frozen
from mmaudio.features.vocoder import build_vocoder
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import NetworkSpec

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def read(module):
    return sum(float(value.sum()) for value in module.state_dict().values())

torch.set_num_threads(1)
read(torch.nn.Linear(8, 8))
with torch.device("meta"):
    {build}  # torch imports more when it first does this
Path("/proc/self/clear_refs").write_text("5")  # the largest size counts from here on
before = memory("VmRSS")
module = load_frozen(lambda: {build}, "small_16k", "{component}", Path(sys.argv[1]))
read(module)
print(memory("VmHWM") - before)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through Linux's /proc")


def growth(folder: Path, component: str, build: str) -> int:
    """Bytes by which a process grows at most while it loads a component and reads every value."""
    script = SCRIPT.replace("{build}", build).replace("{component}", component)
    result = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1])  # before it stand lines of progress, if it takes long


def check(path: Path, component: str, build: str):
    size = path.stat().st_size
    grown = growth(path.parent, component, build)
    assert 0.8 * size < grown <= LIMIT * size, f"{grown / size:.2f} times the file"


def ones(build) -> dict[str, torch.Tensor]:
    """A state dict of the right shapes, made quickly."""
    with torch.device("meta"):
        module = build()
    return {key: torch.ones(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.slow
def test_loading_a_small_network_holds_one_copy(tmp_path):
    torch.save(ones(lambda: MMAudio(SMALL)), tmp_path / "mmaudio_small_16k.pth")
    check(tmp_path / "mmaudio_small_16k.pth", "network", f"MMAudio({SMALL!r})")


@pytest.mark.slow
def test_loading_small_16k_holds_one_copy(tmp_path):
    torch.save(ones(lambda: build_network("small_16k")), tmp_path / "mmaudio_small_16k.pth")
    check(tmp_path / "mmaudio_small_16k.pth", "network", "build_network('small_16k')")


@pytest.mark.slow
def test_loading_a_weight_normalised_vocoder_holds_one_copy(tmp_path):
    torch.save({"generator": ones(lambda: build_vocoder("16k"))}, tmp_path / "best_netG.pt")
    check(tmp_path / "best_netG.pt", "vocoder", "build_vocoder('16k')")
