"""The demo as a user runs it: what it promises, and a second run."""

import json
import re
import shlex
import subprocess

import pytest
from pipeline_command import printed_path, run_pipeline, sha256

DEMO = ("--demo", "--", "max_steps=150", "batch_size=8")
"""The demo with a quarter of its training, which shows the same."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory, shared_base_outputs):
    """The demo, run once: its folder, what it printed, its numbers."""
    folder = tmp_path_factory.mktemp("demo")
    printed, status = run_pipeline(*DEMO, cwd=folder)
    assert status == 0, printed
    numbers = (folder / printed_path(printed, "Report")).parents[1] / "metrics.json"
    return folder, printed, json.loads(numbers.read_text())


@pytest.mark.slow
def test_the_demo_names_a_report_an_adapter_and_the_command_that_uses_it(demo):
    folder, printed, _ = demo
    assert (folder / printed_path(printed, "Report")).is_file() and (
        folder / printed_path(printed, "Adapter")
    ).is_file()
    command = shlex.split(re.findall(r"^Generate: (.*)$", printed, re.MULTILINE)[-1])
    result = subprocess.run([*command, "--steps", "4"], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
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
    outputs = [folder / printed_path(printed, "Adapter"), *folder.glob("demo_output/lora_data/**/*.*")]
    before = {path: (path.stat().st_mtime_ns, sha256(path)) for path in outputs}
    again, status = run_pipeline(*DEMO, cwd=folder)
    assert status == 0 and printed_path(again, "Adapter") == printed_path(printed, "Adapter")
    assert {path: (path.stat().st_mtime_ns, sha256(path)) for path in outputs} == before
