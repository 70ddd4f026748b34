"""A training as a process of its own, which outlives the page: the pipeline, its output in a log, its state in files.

    job = DetachedJob(folders.output / "dogs")
    job.start([...])                # the arguments of `mmaudio-lora run`
    job.state(), job.stop(), job.start(job.arguments())

`python -m mmaudio.app.detached_job FOLDER` is that process. It waits while another one uses the GPU.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # first of all: a stop may come at once

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mmaudio.app.folders import UPLOADS
from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.pipeline.run import main as run_pipeline
from mmaudio.utils.files import atomic_write
from mmaudio.utils.interrupts import SIGNALS
from mmaudio.utils.locks import wait_for_lock

STATE_FOLDER = "page_job"
"""Folder of a job's state, in that of its results."""
GPU_LOCK = "the GPU"
START_SECONDS, POLL_SECONDS = 600.0, 0.05
"""A process that has not begun after so long is an error; seconds between two looks."""
LOG_BYTES = 20_000
"""How much of the end of a log is read."""
RUNNING, STOPPING, DONE, STOPPED, FAILED, CUT_OFF = "running", "stopping", "done", "stopped", "failed", "cut off"


@dataclass(frozen=True)
class DetachedJob:
    """The job in one folder of results."""

    root: Path

    @property
    def folder(self) -> Path:
        """The folder of its state."""
        return self.root / STATE_FOLDER

    @property
    def exists(self) -> bool:
        """Whether it was ever started."""
        return (self.folder / "job.json").is_file()

    def arguments(self) -> list[str]:
        """The arguments of the pipeline with which it was started last."""
        return [str(text) for text in self._read("job").get("arguments", [])]

    def start(self, arguments: Sequence[str]) -> None:
        """Start or continue it; ConfigError while it runs, MMAudioError where no process comes up."""
        if self.state() in (RUNNING, STOPPING):
            raise ConfigError(f"{self.root.name}: is running already")
        self._write("job", {"arguments": list(arguments)})
        for name in ("process", "end", "stop"):
            (self.folder / f"{name}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "mmaudio.app.detached_job", str(self.root)]
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        threading.Thread(target=process.wait, daemon=True).start()  # takes note of its end, while this process lives
        end_time = time.monotonic() + START_SECONDS
        while not self._read("process") and process.poll() is None and time.monotonic() < end_time:
            time.sleep(POLL_SECONDS)
        if not self._read("process"):
            raise MMAudioError(f"{self.root.name}: did not start: {(self.log_lines() or ['it printed nothing'])[-1]}")

    def state(self) -> str:
        """One of RUNNING, STOPPING, DONE, STOPPED, FAILED, CUT_OFF, or empty where it was never started."""
        if not self.exists:
            return ""
        if self._process() is not None:
            return STOPPING if self._read("stop") else RUNNING
        if not (end := self._read("end")):
            return CUT_OFF
        status = end.get("status")
        return DONE if status == 0 else STOPPED if status in [128 + number for number in SIGNALS] else FAILED

    def stop(self) -> None:
        """Ask it to save and end, once; ConfigError where it does not run."""
        process = self._process()
        if process is None:
            raise ConfigError(f"{self.root.name}: does not run")
        if self._read("stop"):
            raise ConfigError(f"{self.root.name}: is stopping; it saves first")
        self._write("stop", {"time": time.time()})
        with suppress(psutil.NoSuchProcess):  # it has just ended
            process.send_signal(signal.SIGTERM)

    def log_lines(self, count: int = 15) -> list[str]:
        """The last lines that it printed."""
        try:
            with (self.folder / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return []
        return [line.rsplit("\r", 1)[-1] for line in lines if line.strip()][-count:]

    def record_process(self) -> None:
        """Note that this process is the job."""
        self._write("process", {"pid": os.getpid(), "command": psutil.Process().cmdline()})

    def record_end(self, status: int) -> None:
        """Note the exit status."""
        self._write("end", {"status": status})

    def _process(self) -> psutil.Process | None:
        """The process of the job; None where it has ended, also where another one has its number by now.

        Its start is no mark of it: that time moves when the clock is set, as after a pause of the machine.
        """
        record = self._read("process")
        try:
            process = psutil.Process(int(record["pid"]))
            is_same = process.cmdline() == record["command"]
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except (KeyError, TypeError, ValueError, psutil.Error):
            return None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _write(self, name: str, values: dict[str, Any]) -> None:
        with atomic_write(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(values), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Be the process of the job in a folder."""
    job = DetachedJob(Path(arguments[0]))
    job.record_process()
    with wait_for_lock(job.root.parent / UPLOADS, GPU_LOCK, "another run uses the GPU"):
        return run_pipeline(job.arguments())


def run_detached() -> None:
    """Run `main` as a command, and note how it ended."""
    status = 1
    try:
        cli.run(main)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        DetachedJob(Path(sys.argv[1])).record_end(status)


if __name__ == "__main__":
    run_detached()
