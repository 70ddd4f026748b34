"""What the page shows of a training: its state, losses so far, the end of its log, and its report."""

from __future__ import annotations

from pathlib import Path

from mmaudio.app.config import AppConfig
from mmaudio.app.detached_job import CUT_OFF, DONE, FAILED, RUNNING, STATE_FOLDER, STOPPED, STOPPING, DetachedJob
from mmaudio.app.experiment_list import Experiment
from mmaudio.app.folders import walk_folders
from mmaudio.app.markup import render, show_experiment
from mmaudio.report.sections import read_history, training_section
from mmaudio.utils.escapes import escape_controls

STATES = {
    RUNNING: "running; it goes on when this page is closed",
    STOPPING: "stopping: it saves first",
    DONE: "done",
    STOPPED: "stopped; Continue goes on from where it was",
    FAILED: "failed; the last line of its log says why. Continue starts it again",
    CUT_OFF: "cut off, as by a power cut; Continue goes on from what was saved",
}


def list_jobs(config: AppConfig) -> list[DetachedJob]:
    """The jobs below the folder of results: those that run first, then by their names."""
    jobs = [DetachedJob(folder) for folder in walk_folders(config.folders.output, 1)]
    jobs = [job for job in jobs if job.exists]
    return sorted(jobs, key=lambda job: (job.state() not in (RUNNING, STOPPING), -_start_time(job), job.root.name))


def describe_state(job: DetachedJob) -> str:
    """The state in one line, with what it does now."""
    state = job.state()
    if state in (RUNNING, STOPPING):
        stages = [line for line in job.log_lines(200) if line.startswith("== ") and "done" not in line]
        stage = f", {stages[-1].removeprefix('== ')}" if stages else ""
        return f"{job.root.name}: {STATES[state]}{stage}"
    return f"{job.root.name}: {STATES[state]}" if state else f"{job.root.name}: never started"


def show_losses(folder: Path) -> str:
    """The losses so far as curves; empty before the first."""
    section = training_section(read_history(folder / "metrics.jsonl"), None)
    return render("losses.html.j2", **section)


def show_progress(config: AppConfig, job: DetachedJob) -> tuple[str, str, str, str]:
    """State, losses, log, and the verdict with the link to the report once there is one."""
    folder = (job.root / "output" / job.root.name).resolve()  # as TrainRequest names it
    log = "\n".join(map(escape_controls, job.log_lines()))
    if not folder.is_dir() or not folder.is_relative_to(config.folders.output):
        return describe_state(job), "", log, ""
    experiment = Experiment(folder.relative_to(config.folders.output).as_posix(), folder)
    report = show_experiment(experiment) if experiment.report and job.state() not in (RUNNING, STOPPING) else ""
    return describe_state(job), show_losses(folder), log, report


def _start_time(job: DetachedJob) -> float:
    return (job.root / STATE_FOLDER / "job.json").stat().st_mtime
