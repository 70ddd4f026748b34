"""Memory that was freed is used again, without page faults; what the environment sets is left as it is."""

import os
import platform
import subprocess
import sys

import pytest

from mmaudio.utils import malloc

PROGRAM = """
import os, resource
from mmaudio.utils.malloc import keep_freed_memory, keeps_freed_memory
keep_freed_memory(os.environ)
print(keeps_freed_memory())
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


@pytest.mark.parametrize("environment", [{"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}])
def test_what_the_environment_sets_stays(monkeypatch, environment):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _: pytest.fail("the allocator is set"))
    malloc.keep_freed_memory(environment)
    with pytest.raises(pytest.fail.Exception):
        malloc.keep_freed_memory({"HOME": "MALLOC_", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"})
    monkeypatch.setattr(sys, "platform", "darwin")
    malloc.keep_freed_memory({})
