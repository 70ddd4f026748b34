"""Systems that are not Linux: modules that they lack are imported by none of ours at the top."""

import subprocess
import sys

import pytest
from helpers import ROOT

SCRIPT = """
import builtins, importlib, pkgutil
import torch, torchaudio, peft, av

real_import, absent = builtins.__import__, ("resource", "fcntl")

def import_as_elsewhere(name, globals=None, locals=None, fromlist=(), level=0):
    if name in absent and str((globals or {}).get("__name__")).startswith("mmaudio"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = import_as_elsewhere
import mmaudio
modules = [module.name for module in pkgutil.walk_packages(mmaudio.__path__, "mmaudio.")]
modules = [name for name in modules if not name.endswith("__main__")]
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""


@pytest.mark.slow
def test_every_module_imports_where_a_platform_lacks_resource_and_fcntl():
    output = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr[-2000:]
    assert int(output.stdout.splitlines()[-1]) > 200
