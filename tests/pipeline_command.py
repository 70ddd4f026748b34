"""The pipeline run as a user runs it, from a folder of its own."""

import hashlib
import re
import subprocess
from pathlib import Path

from helpers import ROOT

SCRIPT = ROOT / "run_lora_pipeline.sh"
PYTHON = str(ROOT / ".venv/bin/python") if (ROOT / ".venv").is_dir() else "python"


def start_pipeline(*arguments, cwd, umask=-1):
    """The pipeline as a process with a group of its own, its output in a pipe."""
    return subprocess.Popen(
        [str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        umask=umask,
    )


def run_pipeline(*arguments, cwd, umask=-1):
    """(what was printed, status) of the pipeline."""
    process = start_pipeline(*arguments, cwd=cwd, umask=umask)
    return process.communicate()[0], process.returncode


def printed_path(printed, label):
    """The path on the last line that begins with `what`."""
    return re.findall(rf"^{label}: +(\S+)$", printed, re.MULTILINE)[-1]


def sha256(path):
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
