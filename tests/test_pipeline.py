"""The whole job as a user runs it: the demo and what it promises, a second run, a killed run, bad input."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "run_lora_pipeline.sh"
SHORT = ("max_steps=12", "eval_every=6", "save_every=3", "warmup_steps=2", "batch_size=4", "lora.rank=4")
"""Training that takes seconds."""


def start(*arguments, cwd):
    return subprocess.Popen(
        [str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*arguments, cwd):
    """(status, what was printed) of the pipeline."""
    process = start(*arguments, cwd=cwd)
    return process.communicate()[0], process.returncode


def last_path(printed, what):
    return re.findall(rf"^{what}: +(\S+)$", printed, re.MULTILINE)[-1]


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, run once: its folder, what it printed, its numbers."""
    folder = tmp_path_factory.mktemp("demo")
    printed, status = run("--demo", cwd=folder)
    assert status == 0, printed
    numbers = (folder / last_path(printed, "Report")).parents[1] / "metrics.json"
    return folder, printed, json.loads(numbers.read_text())


@pytest.mark.slow
def test_the_demo_names_a_report_an_adapter_and_the_command_that_uses_it(demo):
    folder, printed, _ = demo
    assert (folder / last_path(printed, "Report")).is_file() and (folder / last_path(printed, "Adapter")).is_file()
    command = re.findall(r"^Generate: (.*)$", printed, re.MULTILINE)[-1].split()
    video = next((folder / "demo_output" / "videos").glob("*.mp4"))
    command = [str(video) if "VIDEO" in word else word for word in command]
    command[0] = str(ROOT / ".venv/bin/python") if (ROOT / ".venv").is_dir() else "python"
    made = subprocess.run([*command, "--steps", "4"], cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert {path.suffix for path in (folder / "sound").iterdir()} >= {".mp4", ".flac"}


@pytest.mark.slow
def test_the_demo_adapter_is_better_on_held_out_videos(demo):
    numbers = demo[2]["metrics"]
    velocity, loud, onsets = numbers["velocity_loss"], numbers["mel_l1_loud"], numbers["onset_f1"]
    assert velocity["adapted"] <= 0.75 * velocity["base"] and velocity["interval"][1] < 0
    assert loud["adapted"] < loud["base"] and loud["interval"][1] < 0
    assert numbers["mel_l1"]["adapted"] <= numbers["mel_l1"]["base"]
    assert onsets["adapted"] >= 0.8 and onsets["verdict"] != "worse"
    assert demo[2]["forgetting"]["onset_f1"]["base"] >= 0.85
    assert {"base", "adapted"} <= demo[2]["forgetting"]["velocity_loss"].keys()


@pytest.mark.slow
def test_a_second_run_redoes_nothing(demo):
    folder, printed, _ = demo
    kept = [folder / last_path(printed, "Adapter"), *folder.glob("demo_output/lora_data/**/*.*")]
    before = {path: (path.stat().st_mtime_ns, digest(path)) for path in kept}
    begin = time.monotonic()
    again, status = run("--demo", cwd=folder)
    assert status == 0 and last_path(again, "Adapter") == last_path(printed, "Adapter")
    assert {path: (path.stat().st_mtime_ns, digest(path)) for path in kept} == before
    assert time.monotonic() - begin < 120


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight short sample videos."""
    folder = tmp_path_factory.mktemp("few") / "videos"
    script = ROOT / "training" / "make_demo_videos.py"
    python = ROOT / ".venv/bin/python" if (ROOT / ".venv").is_dir() else "python"
    subprocess.run([python, script, "--output_dir", folder, "--videos", "8", "--seconds", "12"], check=True)
    return folder


@pytest.mark.slow
def test_killing_any_stage_changes_nothing_in_the_adapter(videos, tmp_path):
    def arguments(name):
        return videos, "--model", "tiny_16k", "--output", tmp_path / name, "--", "exp_id=x", *SHORT

    printed, status = run(*arguments("whole"), cwd=tmp_path)
    assert status == 0, printed
    checkpoint = "output/x/lora_checkpoints/best_lora.pt"
    killed = 0
    for stage in ("split", "extract", "train", "evaluate"):
        for delay in (0.5, 6.0) if stage == "train" else (2.5,):
            process = start(*arguments("killed"), cwd=tmp_path)
            for line in process.stdout:
                if line.startswith(f"== {stage}"):
                    break
            time.sleep(delay)
            killed += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert killed >= 4, "the stages end before they are killed: the test proves nothing"
    printed, status = run(*arguments("killed"), cwd=tmp_path)
    assert status == 0, printed
    assert digest(tmp_path / "killed" / checkpoint) == digest(tmp_path / "whole" / checkpoint)


@pytest.mark.slow
def test_bad_videos_are_named_and_left_out_and_the_rest_goes_on(videos, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(videos, folder)
    good = next(folder.glob("*.mp4"))
    (folder / "notes.mp4").write_text("not a video")
    (folder / "cut.mp4").write_bytes(good.read_bytes()[:2000])
    printed, status = run(folder, "--model", "tiny_16k", "--output", tmp_path / "out", "--", *SHORT, cwd=tmp_path)
    assert status == 0, printed
    assert "notes.mp4" in printed and "cut.mp4" in printed
    report = tmp_path / last_path(printed, "Report")
    assert "notes.mp4" in report.read_text() and "cut.mp4" in report.read_text()


@pytest.mark.parametrize(
    ("make", "status", "said"),
    [
        (lambda folder: None, 1, "a folder of videos is expected"),
        (lambda folder: (folder / "a.mp4").write_text("no video"), 1, "a.mp4"),
    ],
)
def test_nothing_usable_is_one_clear_line(tmp_path, make, status, said):
    folder = tmp_path / "videos"
    folder.mkdir()
    make(folder)
    printed, code = run(folder, "--model", "tiny_16k", "--output", tmp_path / "out", cwd=tmp_path)
    assert code == status and said in printed and "Traceback" not in printed
    assert printed.count("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--demo", "--modle", "tiny_16k"], "did you mean"),
        (["--demo", "--model", "tiny_16"], "tiny_16k"),
        (["--demo", "--", "lora.ranc=4"], "rank"),
        (["--demo", "--", "lora.rank=1000"], "take at most 96"),
    ],
)
def test_wrong_use_is_status_2_before_any_work(tmp_path, arguments, said):
    printed, code = run(*arguments, cwd=tmp_path)
    assert code == 2 and said in printed and not any(tmp_path.iterdir())


def test_the_plan_alone(tmp_path):
    printed, code = run("--demo", "--dry-run", cwd=tmp_path)
    assert code == 0 and "model:    tiny_16k" in printed and not any(tmp_path.iterdir())


def test_a_big_model_without_a_gpu_stops_after_the_plan(videos, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    printed, code = run(videos, cwd=tmp_path)
    assert code == 1 and "--model tiny_16k" in printed and "--yes" in printed
