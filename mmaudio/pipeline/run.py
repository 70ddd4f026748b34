"""The whole pipeline from a folder of videos to a report: check, plan, split, extract, train, evaluate.

    ./run_lora_pipeline.sh my_videos            # creates the environment first, then runs this module
    python -m mmaudio.pipeline my_videos

Every stage is a separate command, printed before it runs, in a process of its own; each skips results that are still
valid. The shell script calls this module with `--parse-only` before an environment exists, so only the standard library
is imported up to the plan.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from mmaudio import cli
from mmaudio.errors import MMAudioError
from mmaudio.pipeline.flags import build_job, parse_flags
from mmaudio.pipeline.job import DEMO_SCRIPT, STAGES, Job, best_adapter_path, script_path, stage_commands
from mmaudio.pipeline.stage_server import LATE_IMPORTS, Process, StageServer
from mmaudio.utils.checkout import SCRIPTS, command_words
from mmaudio.utils.heartbeat import Heartbeat
from mmaudio.utils.interrupts import Interrupt, hold_signals, note_signals
from mmaudio.utils.terminal import join_command, print_lines

GRACE_SECONDS = 5.0
"""Seconds after Ctrl-C until a stage that is still running is asked once more, as it may not have got the signal."""
POLL_SECONDS = 0.05
"""Seconds between two looks at a running stage."""
StartProcess = Callable[[list[str]], Process]
CRASH_SIGNALS = tuple(getattr(signal, f"SIG{name}", 0) for name in ("KILL", "SEGV", "BUS", "ABRT", "ILL", "FPE"))
"""Signals of a crash, as opposed to a request to stop."""


def run_stage(name: str, command: list[str], start_process: StartProcess = subprocess.Popen) -> float:
    """Run one stage and return its seconds; if it fails or was asked to stop, the pipeline exits with its status.

    `start_process` starts its command. Raises KeyboardInterrupt if the pipeline was asked to stop, MMAudioError if the
    stage was killed or crashed.
    """
    print_lines("", f"== {name}", f"$ {join_command(command)}", flush=True)
    start = time.monotonic()
    status = run_command(command, start_process=start_process)
    number = -status if status < 0 else status - 128
    if number in CRASH_SIGNALS:
        reason = "the system kills a process that takes too much memory" if number == signal.SIGKILL else "it crashed"
        signal_name = signal.Signals(number).name
        raise MMAudioError(f"{name}: ended by {signal_name}; {reason}. The same command continues from here")
    if status < 0:
        raise Interrupt(number)
    if status:
        sys.exit(status)  # the stage has printed the reason
    seconds = time.monotonic() - start
    print_lines(f"== {name}: done in {seconds:.0f} s", flush=True)
    return seconds


def run_command(command: list[str], is_stage: bool = True, start_process: StartProcess = subprocess.Popen) -> int:
    """Run a command and return its status. A signal is passed on, so that it can save; a second signal kills it.

    A stage calls `cli.handle_signals` first of all; SIGINT, of a forked stage every signal, is held back until then.

    Ctrl-C goes to all processes of a terminal: a command that still runs after GRACE_SECONDS is asked once more.
    Raises KeyboardInterrupt after a signal, unless the command ended by it as well, and has said so.
    """
    with note_signals() as numbers:
        process = start_command(command, numbers, is_stage, start_process)
        send_time = None
        while process.poll() is None:
            if len(numbers) > 1:
                kill_tree(process.pid)
            elif numbers and send_time is None:
                send_time = time.monotonic() + (GRACE_SECONDS if numbers[0] == signal.SIGINT else 0.0)
            elif send_time is not None and time.monotonic() >= send_time:
                process.send_signal(signal.SIGTERM if numbers[0] == signal.SIGINT else numbers[0])
                send_time = math.inf
            time.sleep(POLL_SECONDS)
    if numbers and process.returncode <= 128:
        raise Interrupt(numbers[0])
    return process.returncode


def start_command(command: list[str], numbers: list[int], is_stage: bool, start_process: StartProcess) -> Process:
    """Start a command; it also gets a signal that comes to this process before the new one exists.

    Raises KeyboardInterrupt where `numbers`, the signals that have come, has one already.
    """
    with hold_signals([signal.SIGINT]) if is_stage else nullcontext():
        if numbers:
            raise Interrupt(numbers[0])
        process = start_process(command)
        held = {signal.SIGINT} & signal.sigpending()
        for number in {*numbers, *held}:
            process.send_signal(number)  # one that a stage has got and holds back does not count twice
    return process


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    try:
        import psutil
    except ImportError:  # not installed yet while the environment is created
        os.kill(pid, signal.SIGKILL)
        return
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def reset_stages(job: Job) -> None:
    """Reset `job.first_stage` and all later stages: remove their data, and rename an old experiment."""
    if job.first_stage is None:
        return
    stages = STAGES[STAGES.index(job.first_stage) :]
    if "split" in stages:
        from mmaudio.data.table_checksums import checksums_path, is_changed

        edited_files = {job.clips, checksums_path(job.clips)} if is_changed(job.clips) else set()
        for path in job.clips.parent.glob("clips.*"):
            if path not in edited_files and not path.match("clips.edited-*"):
                path.unlink()
    if "extract" in stages:
        for shard in job.features.glob("*.safetensors"):
            shard.unlink()
    if "train" in stages and job.experiment.exists():
        number = next(n for n in range(1, 10_000) if not Path(f"{job.experiment}.{n}").exists())
        renamed = job.experiment.rename(f"{job.experiment}.{number}")
        print_lines(f"the earlier experiment is kept in {renamed}")
    if "evaluate" in stages:
        for path in (job.experiment / "metrics.json", *job.experiment.glob("folds/*/metrics.json")):
            path.unlink(missing_ok=True)


def make_demo_videos(job: Job, server: StageServer) -> None:
    """Create the missing sample videos."""
    command = [sys.executable, script_path(DEMO_SCRIPT), "--output_dir", str(job.videos)]
    run_stage("demo", command, server.start)


def print_times(planned: Mapping[str, float], times: Mapping[str, float]) -> None:
    """Print the planned and the real seconds of every stage side by side."""
    print_lines("", f"{'stage':10}{'planned':>10}{'took':>10}")
    for name, seconds in times.items():
        print_lines(f"{name:10}{planned[name]:8.0f} s{seconds:8.0f} s")


def peak_memory() -> float | None:
    """GB of the largest process that has ended, None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


def print_summary(job: Job, start: float) -> None:
    """Print duration, memory, verdict, report, adapter, and the command that applies it to a held-out video."""
    from mmaudio.data.clip_table import read_clips
    from mmaudio.report.summary import read_summary

    peak = peak_memory()
    weights = [] if job.weights is None else ["--weights", str(job.weights)]
    clips = read_clips(job.clips)
    summary = read_summary(job.experiment / "metrics.json")
    example = next((clip.video for clip in clips if clip.split == "test"), clips[0].video)
    command = [
        *command_words("generate", python_command()),
        "--video",
        str(job.videos / example),
        "--model",
        job.model,
        "--adapter",
        str(best_adapter_path(job)),
        *([] if summary is None else summary.strength_flags),
        "--output",
        "sound",
        *weights,
    ]
    memory = "" if peak is None else f"; the largest process took {peak:.1f} GB of memory"
    print_lines("", f"Done in {(time.monotonic() - start) / 60:.1f} min{memory}.")
    for label, text in ({} if summary is None else summary.lines()).items():
        print_lines(f"{label + ':':10}{text}")
    print_lines(f"Report:   {job.experiment / 'report' / 'index.html'}")
    print_lines(f"Adapter:  {best_adapter_path(job)}")
    print_lines(f"Generate: {join_command(command)}", flush=True)


def python_command() -> str:
    """This interpreter as a command: `python` if its environment is active, else a path."""
    executable = Path(sys.executable)
    if shutil.which("python") == str(executable):
        return "python"
    return os.path.relpath(executable) if executable.is_relative_to(Path.cwd()) else str(executable)


def report_ready() -> int:
    """Print that the environment is ready, for --setup-only; returns the exit status."""
    print_lines("The environment is ready.")
    return 0


def main(arguments: list[str]) -> int:
    """Run the pipeline; returns the exit status."""
    flags, overrides = cli.split_overrides(arguments)
    parsed = parse_flags(flags)
    if parsed.setup_only and not (parsed.folder or parsed.demo):
        return 0 if parsed.parse_only else report_ready()
    job = build_job(parsed, overrides)
    if parsed.parse_only:
        return 0
    start = time.monotonic()
    imports = [*map(script_path, SCRIPTS.values()), *LATE_IMPORTS]
    with StageServer([] if parsed.setup_only or parsed.dry_run else imports) as server:
        with Heartbeat("loading the program"):
            from mmaudio.pipeline.preflight import check_settings, confirm_plan, fetch_weights

            load_seconds = time.monotonic() - start
            check_settings(job)
        if parsed.setup_only:
            return report_ready()
        if job.demo and not parsed.dry_run:
            make_demo_videos(job, server)
        plan = confirm_plan(job, parsed.yes, load_seconds)
        if not plan.is_accepted or parsed.dry_run:
            return 0 if parsed.dry_run else 1
        fetch_weights(job)
        reset_stages(job)
        commands = stage_commands(plan.job)
        times = {name: run_stage(name, commands[name], server.start) for name in STAGES}
    print_times(plan.stage_seconds, times)
    print_summary(job, start)
    return 0
