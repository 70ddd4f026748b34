"""Memory that was freed is used again, without page faults; what the environment sets is left as it is."""

import os
import platform
import subprocess
import sys

import pytest

from mmaudio.utils import malloc

COUNT = """
import resource
import torch

def count_page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def count_while_allocating(arguments=None):
    for _ in range(10):
        torch.ones(16 << 20, dtype=torch.uint8)
    before = count_page_faults()
    for _ in range(20):
        torch.ones(16 << 20, dtype=torch.uint8)
    print(count_page_faults() - before, flush=True)
"""
COMMAND = f"""{COUNT}
import subprocess, sys
from mmaudio import cli

def main(arguments):
    count_while_allocating()
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)

cli.run(main)
"""
CHILD = f"{COUNT}\ncount_while_allocating()"


def count_page_faults(**environment):
    """Page faults of a command, and of a process that it starts, while each allocates and frees 320 MB."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", COMMAND, CHILD]
    result = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return [int(line) for line in result.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_command_and_what_it_starts_use_freed_memory_again():
    ours, plain = count_page_faults(), count_page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert all(10 * fewer < more for fewer, more in zip(ours, plain, strict=True))


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 2),
        ({"HOME": "MALLOC_", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"}, 2),
        ({"MALLOC_ARENA_MAX": "1"}, 0),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, 0),
    ],
)
def test_what_the_environment_sets_stays(monkeypatch, environment, number):
    calls = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda parameter, value: calls.append((parameter, value)) or 1

    monkeypatch.setattr(malloc.ctypes, "CDLL", Library)
    before = dict(environment)
    malloc.reuse_freed_memory(environment)
    assert len(calls) == number and len(environment) == len(before) + number
    monkeypatch.setattr(sys, "platform", "darwin")
    malloc.reuse_freed_memory({})
    assert len(calls) == number


def test_an_older_library_gets_the_largest_value_that_it_takes(monkeypatch):
    taken = {}

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, parameter, value):
            if parameter == -3 and value > 32 << 20:
                return 0
            taken[parameter] = value
            return 1

    monkeypatch.setattr(malloc.ctypes, "CDLL", Library)
    environment = {}
    malloc.reuse_freed_memory(environment)
    assert environment == {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    assert taken == {-3: 32 << 20, -1: 2**31 - 1}
