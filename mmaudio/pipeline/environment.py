"""Environment of the pipeline: `.venv` in the checkout, installed once, from which the pipeline then runs.

`run_lora_pipeline.sh` calls this with any Python of 3.10 or newer, so only the standard library is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from mmaudio import cli
from mmaudio.errors import MMAudioError
from mmaudio.pipeline.run import main as run_pipeline
from mmaudio.pipeline.run import run_command
from mmaudio.utils.checkout import ROOT
from mmaudio.utils.files import atomic_write
from mmaudio.utils.locks import wait_for_lock
from mmaudio.utils.terminal import print_lines

REQUIRED_MODULES = "mmaudio, torch, hydra, peft, open_clip, av"
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
"""File that holds the checksum of the pyproject.toml that was installed."""
PYTHON = VENV / "bin" / "python"


def main(arguments: list[str]) -> NoReturn:
    """Check the flags, install where that was not done, and become the pipeline."""
    run_pipeline(["--parse-only", *arguments])  # ends here for --help and wrong use
    python = find_active_python() or install()
    os.execve(python, [str(python), "-m", "mmaudio.pipeline", *arguments], pipeline_environment())


def pipeline_environment() -> dict[str, str]:
    """The environment without the first entry of PYTHONPATH, this checkout, which the script has added."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**environment, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}


def find_active_python() -> Path | None:
    """The interpreter of an active environment that has the package and its dependencies; None if there is `.venv`."""
    folder = os.environ.get("VIRTUAL_ENV")
    if not folder or VENV.is_dir():
        return None
    python = Path(folder) / "bin" / "python"
    return python if can_import(python, REQUIRED_MODULES) else None


def can_import(python: Path, modules: str) -> bool:
    """Whether an interpreter has these modules installed, not merely in the current folder or on PYTHONPATH."""
    command, environment = f"import {modules}", pipeline_environment()
    try:
        result = subprocess.run([python, "-c", command], cwd="/", env=environment, capture_output=True, check=False)
    except OSError:
        return False
    return result.returncode == 0


def install() -> Path:
    """Install into `.venv`, unless that was done for the current pyproject.toml; the interpreter.

    Another process that installs is waited for. Raises MMAudioError, or exits with the installer's status, if it fails.
    """
    stamp = compute_stamp()
    if is_installed(stamp):
        return PYTHON
    with wait_for_lock(VENV, "set up", f"another process installs into {VENV}"):
        if is_installed(stamp):
            return PYTHON
        print_lines(f"== set up: installing into {VENV} (about 5 GB, a few minutes)", file=sys.stderr, flush=True)
        # over an environment of another Python, venv would leave a mixture of both
        if not PYTHON.is_file() and run_command([sys.executable, "-m", "venv", str(VENV)], is_stage=False):
            raise MMAudioError(
                f"no environment made in {VENV}, for the reason above; where venv is absent: apt install python3-venv"
            )
        if status := run_command(
            [str(PYTHON), "-m", "pip", "install", "--quiet", "--editable", str(ROOT)], is_stage=False
        ):
            sys.exit(status)
        with atomic_write(STAMP) as temporary:
            temporary.write_text(stamp)
        print_lines("== set up: done", file=sys.stderr, flush=True)
    return PYTHON


def is_installed(stamp: str) -> bool:
    """Whether `.venv` was installed for the pyproject.toml with this checksum."""
    return STAMP.is_file() and STAMP.read_text() == stamp and can_import(PYTHON, "mmaudio")


def compute_stamp() -> str:
    """The checksum of pyproject.toml, as `cksum` prints it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    cli.run(main)
