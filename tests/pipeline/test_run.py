"""The whole job as a user runs it: a killed run, videos that cannot be read, wrong use, the plan."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from pipeline_command import PYTHON, ROOT, printed_path, run_pipeline, sha256, start_pipeline

from mmaudio.lora.checkpoint import read_adapter
from mmaudio.synthetic.demo import plan_demo_videos, write_demo_video

SHORT = ("max_steps=12", "eval_every=6", "save_every=3", "warmup_steps=2", "batch_size=4", "lora.rank=4")
"""Training that takes seconds."""
UMASK = 0o027
BEST = "lora_checkpoints/best_lora.pt"
CHECKPOINT = f"output/x/{BEST}"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five short sample videos, and two files that are none."""
    folder = tmp_path_factory.mktemp("few") / "videos"
    for video in plan_demo_videos(folder, 5, 12.0, 0):
        write_demo_video(video)
    (folder / "cut.mp4").write_bytes(next(folder.glob("*.mp4")).read_bytes()[:2000])
    (folder / "notes.mp4").write_text("not a video")
    return folder


def short(videos, output):
    """Arguments of a run that takes seconds."""
    return videos, "--model", "tiny_16k", "--output", output, "--", "exp_id=x", *SHORT


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory, shared_base_outputs):
    """The job, run once without a break: its output folder, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    printed, status = run_pipeline(*short(videos, folder / "out"), cwd=folder, umask=UMASK)
    assert status == 0, printed
    return folder / "out", printed


@pytest.mark.slow
def test_killing_any_stage_changes_nothing_in_the_adapter(videos, whole, tmp_path):
    killed = 0
    for stage in ("split", "extract", "train", "evaluate"):
        for delay in (0.5, 6.0) if stage == "train" else (2.5,):
            process = start_pipeline(*short(videos, tmp_path / "killed"), cwd=tmp_path)
            for line in process.stdout:
                if line.startswith(f"== {stage}"):
                    break
            time.sleep(delay)
            killed += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # closes the pipe, too
    assert killed >= 4, "the stages end before they are killed: the test proves nothing"
    printed, status = run_pipeline(*short(videos, tmp_path / "killed"), cwd=tmp_path)
    assert status == 0, printed
    assert sha256(tmp_path / "killed" / CHECKPOINT) == sha256(whole[0] / CHECKPOINT)


@pytest.mark.slow
def test_folds_give_one_verdict_over_all_videos_and_an_adapter_of_all(videos, tmp_path, shared_base_outputs):
    """From a folder of videos that is too small to hold some out, killed once while the second fold is trained."""
    arguments = videos, "--model", "tiny_16k", "--folds", "2", "--output", tmp_path, "--", "exp_id=x", *SHORT
    process = start_pipeline(*arguments, cwd=tmp_path)
    saved, last = (tmp_path / "output/x/folds/2" / path for path in ("lora_checkpoints/last_lora.pt", "metrics.json"))
    while process.poll() is None and not saved.exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    begun, _ = process.communicate()
    assert saved.exists() and not last.exists(), begun
    printed, status = run_pipeline(*arguments, cwd=tmp_path)
    assert status == 0, printed
    experiment = tmp_path / "output/x"
    assert json.loads((experiment / "metrics.json").read_text())["videos"] == 5
    assert "\nVerdict:" in printed and "\nFolds:" in printed, printed
    names = {video.name for video in videos.glob("demo_*.mp4")}
    by_fold = [read_adapter(experiment / "folds" / number / BEST).data for number in "12"]
    held_out = [names - {*data["train"]["videos"], *data["validation"]["videos"]} for data in by_fold]
    assert set().union(*held_out) == names and sum(map(len, held_out)) == 5
    assert set(read_adapter(experiment / BEST).data["train"]["videos"]) == names
    stored = sha256(experiment / BEST)
    again, status = run_pipeline(*arguments, cwd=tmp_path)
    assert status == 0 and "nothing to do" in again and sha256(experiment / BEST) == stored, again


@pytest.mark.slow
def test_every_file_has_the_permissions_of_the_umask(whole):
    paths = list(whole[0].rglob("*"))
    assert {path.suffix for path in paths} >= {
        ".tsv",
        ".jsonl",
        ".json",
        ".safetensors",
        ".pt",
        ".yaml",
        ".html",
        ".mp4",
    }
    expected = {path: (0o777 if path.is_dir() else 0o666) & ~UMASK for path in paths}
    wrong = [path.name for path in paths if path.stat().st_mode & 0o777 != expected[path]]
    assert not wrong


@pytest.mark.slow
def test_unusable_videos_are_reported_and_left_out(whole):
    output, printed = whole
    assert "notes.mp4" in printed and "cut.mp4" in printed
    report = output / "output" / "x" / "report" / "index.html"
    assert str(report) == printed_path(printed, "Report")
    assert "notes.mp4" in report.read_text() and "cut.mp4" in report.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda folder: None, 1, "a folder of videos is expected"),
        (lambda folder: (folder / "a.mp4").write_text("no video"), 1, "a.mp4"),
    ],
)
def test_no_usable_video_is_one_line_of_error(tmp_path, make, status, message):
    folder = tmp_path / "videos"
    folder.mkdir()
    make(folder)
    printed, code = run_pipeline(folder, "--model", "tiny_16k", "--output", tmp_path / "out", cwd=tmp_path)
    assert code == status and message in printed and "Traceback" not in printed
    assert printed.count("error:") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "--modle", "tiny_16k"], "did you mean"),
        (["--demo", "--model", "tiny_16"], "tiny_16k"),
        (["--demo", "--", "lora.ranc=4"], "rank"),
        (["--demo", "--", "resume=false"], "--from train sets it"),
        (["--demo", "--", "lora.rank=1000"], "take at most 96"),
    ],
)
def test_wrong_flags_are_status_2_before_any_work(tmp_path, arguments, message):
    printed, code = run_pipeline(*arguments, cwd=tmp_path)
    assert code == 2 and message in printed and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_prints_the_plan(tmp_path):
    printed, code = run_pipeline("--demo", "--dry-run", cwd=tmp_path)
    assert code == 0 and "model:    tiny_16k" in printed and not any(tmp_path.iterdir())
    assert re.search(
        r"^time:     about split \d+ s, extract \d+ s, train \d+ (s|min), evaluate \d+ (s|min)$", printed, re.MULTILINE
    )


@pytest.mark.slow
def test_a_big_model_without_a_gpu_stops_after_the_plan(videos, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    printed, code = run_pipeline(videos, cwd=tmp_path)
    assert code == 1 and "--model tiny_16k" in printed and "--yes" in printed


STAGE = """
import os, signal, subprocess, sys, time
calls = []
def saving(*_):
    calls.append(1)
    if len(calls) > 1:  # the same request comes twice: to all, and from the pipeline
        return
    if "again" in sys.argv:
        os.write(1, b"saving\\n")
        time.sleep(60)
    os.write(1, b"saved; the same command continues from here\\n")  # no print: the signal may have come in one
    sys.exit(128 + signal.SIGTERM)
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), saving)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
if "again" in sys.argv:
    child = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    child += "print('here', os.getpid(), flush=True); time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", child])
else:
    os.write(1, f"here {os.getpid()}\\n".encode())
time.sleep(60)
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux alone")
FORKED = [False, pytest.param(True, marks=LINUX)]


RUN_STAGE = """
import subprocess, sys, time
from mmaudio import cli
from mmaudio.pipeline import run, stage_server

def main(arguments):
    stage_server.GPU_DEVICES = ()
    with stage_server.StageServer({imports!r}) as server:
        deadline = time.monotonic() + 60
        while {imports!r} and not server._can_fork():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.run_stage({stage!r}, [sys.executable, *arguments], server.start)

cli.run(main)
"""


def start_stage_command(stage, *arguments, before="", forked=False):
    """A pipeline of one stage, which runs Python with `arguments`, after the code `before`."""
    code = f"{before}\n{RUN_STAGE.format(stage=stage, imports=['mmaudio.synthetic.demo'] if forked else [])}"
    return subprocess.Popen(
        [PYTHON, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def start_stage(tmp_path, *arguments, forked):
    """A pipeline with one stage, and the stage's process, or one that this has started, once they run."""
    (tmp_path / "stage.py").write_text(STAGE)
    process = start_stage_command("train", tmp_path / "stage.py", *arguments, forked=forked)
    line = next(line for line in process.stdout if line.startswith("here "))
    return process, psutil.Process(int(line.split()[1]))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("to_all", [True, False])
@pytest.mark.parametrize("forked", FORKED)
def test_a_signal_lets_the_stage_save_and_is_one_line(tmp_path, number, to_all, forked):
    """Also one that only the pipeline gets."""
    process, _ = start_stage(tmp_path, forked=forked)
    (os.killpg if to_all else os.kill)(process.pid, number)
    output = process.communicate()[0]
    assert output == "saved; the same command continues from here\n"
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("forked", FORKED)
def test_a_second_signal_kills_the_stage_and_all_that_it_started(tmp_path, number, forked):
    process, child = start_stage(tmp_path, "again", forked=forked)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.stdout.readline() == "saving\n"
    while process.poll() is None:  # one that comes at once is the same request still
        os.kill(process.pid, number)
        time.sleep(0.5)
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.1)
    output = process.communicate()[0]
    assert process.returncode == 128 + number and output.count("\n") == 1, output
    assert output.endswith("the same command continues from here\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delay", "forked"),
    [
        *((delay, False) for delay in (0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4)),
        *(pytest.param(delay, True, marks=LINUX) for delay in (0.0, 0.02, 0.1)),
    ],
)
def test_ctrl_c_while_a_stage_starts_is_one_line(tmp_path, delay, forked):
    """Whichever moment of its start the delay hits."""
    script = ROOT / "training" / "make_demo_videos.py"
    process = start_stage_command("demo", script, "--output_dir", tmp_path / "videos", forked=forked)
    assert any(line.startswith("$ ") for line in process.stdout)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[0] == "interrupted; the same command continues from here\n"
    assert process.returncode == 128 + signal.SIGINT


SIGNAL_BEFORE_FORK = """
import os, signal, subprocess, sys
from mmaudio.pipeline import stage_server
def signal_and_call(function, *arguments, **options):
    os.kill(os.getpid(), int(sys.argv[-1]))
    return function(*arguments, **options)
class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        signal_and_call(super().__init__, command, **options) if command[1].endswith(".py") else super().__init__(
            command, **options
        )
class ForkedProcess(stage_server.ForkedProcess):
    def __init__(self, *arguments):
        signal_and_call(super().__init__, *arguments)
subprocess.Popen, stage_server.ForkedProcess = Popen, ForkedProcess
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("forked", FORKED)
def test_a_signal_at_the_instant_a_stage_is_forked_is_one_line(tmp_path, number, forked):
    """The new process has not got what came to the group before it was there."""
    (tmp_path / "stage.py").write_text("from mmaudio import cli\ncli.handle_signals()\nimport time\ntime.sleep(60)\n")
    process = start_stage_command("train", tmp_path / "stage.py", number, before=SIGNAL_BEFORE_FORK, forked=forked)
    output = process.communicate()[0]
    cause = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert output.splitlines()[3:] == [f"{cause}; the same command continues from here"]
    assert process.returncode == 128 + number


def read_until(process, text):
    """What a process prints before the line that begins with `text`."""
    return "".join(itertools.takewhile(lambda line: not line.startswith(text), process.stdout))


def is_running(group):
    """Whether a process of a group runs; those that ended and were not waited for do not."""
    for process in psutil.process_iter(["status"]):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


@pytest.mark.slow
def test_a_signal_to_the_pipeline_ends_any_stage_and_nothing_is_left(videos, tmp_path):
    moments = {
        "split": (signal.SIGTERM, "== split"),
        "extract": (signal.SIGHUP, "extracting for"),
        "train": (signal.SIGTERM, "computing:"),
        "evaluate": (signal.SIGHUP, "== evaluate"),
    }
    for stage, (number, text) in moments.items():
        process = start_pipeline(*short(videos, tmp_path / "stopped"), cwd=tmp_path)
        before = read_until(process, text)
        os.kill(process.pid, number)
        printed = process.communicate()[0]
        assert process.returncode == 128 + number, (stage, before, printed)
        assert printed.count("the same command continues from here") == 1 and "Traceback" not in printed, printed
        while is_running(process.pid):  # the helpers of splitting's worker end when they see that it is gone
            time.sleep(0.1)
