"""Memory that was freed is used again, without page faults; what the environment sets is left as it is."""

import os
import platform
import subprocess
import sys

import pytest

from mmaudio.utils.malloc import keep_freed_memory

PROGRAM = """
import resource
from mmaudio.utils.malloc import keep_freed_memory
print(keep_freed_memory())
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def allocate():
    torch.ones(16 << 20, dtype=torch.uint8)
    torch.ones(40 << 20, dtype=torch.uint8)
for _ in range(10):
    allocate()
before = faults()
for _ in range(20):
    allocate()
print(faults() - before)
"""


def run_program(**environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
    )
    is_set, faults = result.stdout.split()
    return is_set == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    with_setting, with_environment = run_program(), run_program(MALLOC_TRIM_THRESHOLD_="131072")
    assert with_setting[0] and not with_environment[0]
    assert with_setting[1] < 1000 < with_environment[1]


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
