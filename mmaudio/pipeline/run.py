"""The whole job, from a folder of videos to a report: check, plan, split, extract, train, evaluate.

    ./run_lora_pipeline.sh my_videos            # makes the environment first, then runs this module
    python -m mmaudio.pipeline my_videos

Every stage is a command of its own, printed before it runs; each skips what is still valid. Before an environment
exists the shell script calls this module with `--parse-only`, so nothing outside the standard library is imported
until the plan is made.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmaudio.errors import MMAudioError
from mmaudio.pipeline.job import STAGES, Job, adapter, commands, parser, read_job, script_path

GRACE = 5.0
"""Seconds after which a stage that goes on in spite of Ctrl-C is asked once more."""
CRASHES = tuple(getattr(signal, f"SIG{name}", 0) for name in ("KILL", "SEGV", "BUS", "ABRT", "ILL", "FPE"))
"""Signals with which nobody asks a stage to stop."""


def run_stage(name: str, command: list[str]) -> None:
    """Run one stage and wait for it; the pipeline exits with its status where it fails.

    KeyboardInterrupt where it was asked to stop, MMAudioError where it was killed or crashed.
    """
    print(f"\n== {name}\n$ {shlex.join(command)}", flush=True)
    start = time.monotonic()
    status = wait_for(command)
    if (number := -status if status < 0 else status - 128) > 0:
        if number not in CRASHES:
            raise KeyboardInterrupt
        why = "the system does that to what takes too much memory" if number == signal.SIGKILL else "it crashed"
        raise MMAudioError(f"{name}: ended by {signal.Signals(number).name}; {why}. The same command goes on from here")
    if status:
        sys.exit(status)  # the stage has said why
    print(f"== {name}: done in {time.monotonic() - start:.0f} s", flush=True)


def wait_for(command: list[str]) -> int:
    """Run a command: its status. After Ctrl-C it may end what it does, as a training its step; a second one kills it.

    KeyboardInterrupt once it has ended. Where it had no Ctrl-C of its own it is asked to stop after GRACE seconds.
    """
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()


def set_aside(job: Job) -> None:
    """Make `job.first` and what follows begin anew: data is removed (it is made again), an old experiment is kept."""
    if job.first is None:
        return
    later = STAGES[STAGES.index(job.first) :]
    if "split" in later:
        for table in job.clips.parent.glob("clips.*"):
            table.unlink()
    if "extract" in later:
        for shard in job.features.glob("*.safetensors"):
            shard.unlink()
    if "train" in later and job.experiment.exists():
        number = next(n for n in range(1, 10_000) if not Path(f"{job.experiment}.{n}").exists())
        kept = job.experiment.rename(f"{job.experiment}.{number}")
        print(f"the earlier experiment is kept in {kept}")
    if "evaluate" in later:
        (job.experiment / "metrics.json").unlink(missing_ok=True)


def demo_videos(job: Job) -> None:
    """Make the sample videos that are not there yet."""
    run_stage("demo", [sys.executable, script_path("training/make_demo_videos.py"), "--output_dir", str(job.videos)])


def finish(job: Job, start: float) -> None:
    """The last lines: how long it took, the report, the adapter and the command that uses it, on a held-out video."""
    from mmaudio.data.clips import read_clips

    unit = 1 if sys.platform == "darwin" else 1024  # bytes of what the system counts in
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    weights = [] if job.weights is None else ["--weights", str(job.weights)]
    clips = read_clips(job.clips)
    example = next((clip.video for clip in clips if clip.split == "test"), clips[0].video)
    use = [
        python(),
        "-m",
        "mmaudio.generation",
        "--video",
        str(job.videos / example),
        "--model",
        job.model,
        "--adapter",
        str(adapter(job)),
        "--output",
        "sound",
        *weights,
    ]
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} min; the largest process took {peak:.1f} GB of memory.")
    print(f"Report:   {job.experiment / 'report' / 'index.html'}")
    print(f"Adapter:  {adapter(job)}")
    print(f"Generate: {shlex.join(use)}", flush=True)


def python() -> str:
    """This interpreter as a command: short where its environment is active, else a path."""
    here = Path(sys.executable)
    if shutil.which("python") == str(here):
        return "python"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)


def ready() -> int:
    """What is said where only the environment was asked for; the exit status."""
    print("The environment is ready.")
    return 0


def main(arguments: list[str]) -> int:
    """Run the job that `arguments` ask for; the exit status."""
    before, overrides = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        before, overrides = arguments[:cut], arguments[cut + 1 :]
    parsed = parser().parse_args(before)
    if parsed.setup_only and not (parsed.folder or parsed.demo):
        return ready()
    job = read_job(parsed, overrides)
    if parsed.parse_only:
        return 0
    start = time.monotonic()
    from mmaudio.pipeline.preflight import check_settings, fetch_weights, plan

    check_settings(job)
    if parsed.setup_only:
        return ready()
    if job.demo and not parsed.dry_run:
        demo_videos(job)
    if not plan(job, go_on=parsed.yes) or parsed.dry_run:
        return 0 if parsed.dry_run else 1
    fetch_weights(job)
    set_aside(job)
    stages = commands(job)
    for name in STAGES:
        run_stage(name, stages[name])
    finish(job, start)
    return 0
