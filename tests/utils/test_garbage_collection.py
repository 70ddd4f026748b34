"""Garbage collection that is off while modules are imported."""

import gc
import subprocess
import sys

from mmaudio.utils.garbage_collection import no_garbage_collection


def test_collection_goes_on_after_the_block_also_after_an_error_and_where_it_was_off():
    try:
        with no_garbage_collection():
            assert not gc.isenabled()
            raise KeyError
    except KeyError:
        assert gc.isenabled()
    gc.disable()
    try:
        with no_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_command_collects_garbage_once_it_has_started():
    script = """
import gc
from mmaudio import cli
cli.handle_signals()
print(gc.isenabled())
cli.run(lambda arguments: print(gc.isenabled(), flush=True))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]
