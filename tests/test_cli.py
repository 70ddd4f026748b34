"""The shared command line: suggestions, exit statuses, one-line errors."""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmaudio import cli
from mmaudio.config import compose
from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError, DataError, MMAudioError
from mmaudio.generation import __main__ as generation
from mmaudio.media.mux import write_video
from mmaudio.pipeline import preflight as checks
from mmaudio.pipeline import run as pipeline
from mmaudio.pipeline.flags import DEMO_OUTPUT, build_job, build_parser, parse_flags
from mmaudio.pipeline.job import stage_commands, training_overrides
from mmaudio.utils.hydra_quote import quote_value


def run(main_body, *arguments):
    script = f"from mmaudio import cli, errors\ndef main(arguments):\n    {main_body}\ncli.run(main)"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("return None", 0, ""),
        ("raise errors.DataError('x.mp4: no sound')", 1, "error: x.mp4: no sound\n"),
        ("raise errors.ConfigError('rank=0: too small')", 2, "error: rank=0: too small\n"),
        ("open('nowhere/x')", 1, "error: nowhere/x: No such file or directory; choose another place"),
        (
            "__import__('os').write(__import__('os').open('/dev/full', 1), b'x')",
            1,
            "error: No space left on device; choose another place, or make room",
        ),
        ("__import__('os').replace('nowhere/x', 'nowhere/y')", 1, "error: nowhere/y: No such file"),
        ("raise MemoryError", 1, "error: out of memory; close what else uses it"),
        ("bytearray(1 << 62)", 1, "error: out of memory"),
        (
            'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 64 bytes. Error")',
            1,
            "error: out of memory (64 bytes more were requested)",
        ),
        ("raise KeyboardInterrupt", 130, "interrupted"),
    ],
)
def test_errors_are_one_line_with_their_status(body, status, message):
    result = run(body)
    assert result.returncode == status and result.stderr.startswith(message) and result.stderr.count("\n") <= 1


@pytest.mark.parametrize("error", ["errors.DataError('x')", "MemoryError", "KeyboardInterrupt"])
def test_in_a_log_file_the_error_comes_last(error):
    script = f"from mmaudio import cli, errors\ndef main(_):\n    print('why')\n    raise {error}\ncli.run(main)"
    buffering = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=buffering,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert len(result.stdout.splitlines()) == 2 and result.stdout.startswith("why\n")


@pytest.mark.parametrize(
    "body",
    [
        "[print('x' * 100, flush=True) for _ in range(10_000)]",
        "print('x')",
        "print('x'); raise SystemExit(0)",
        "[print('x' * 100, file=__import__('sys').stderr) for _ in range(10_000)]",
    ],
)
def test_whoever_reads_the_output_may_stop(body):
    """As other programs in `program | head` it ends without a word."""
    script = f"from mmaudio import cli\ndef main(_):\n    {body}\ncli.run(main)"
    reader, writer = os.pipe()
    os.close(reader)
    closed = {"stderr" if "stderr" in body else "stdout": writer}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **closed}
    buffering = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run([sys.executable, "-c", script], env=buffering, text=True, check=False, **streams)
    os.close(writer)
    assert not result.stdout and not result.stderr
    assert result.returncode == (141 if "range" in body else 0)


def test_debug_shows_the_traceback():
    assert "Traceback" in run("raise errors.DataError('x')", "--debug").stderr
    assert "Traceback" in run("raise RuntimeError('no word of memory')").stderr


def test_a_traceback_shows_control_characters_escaped_and_the_causes():
    body = r"raise errors.DataError('n\nerror: all is lost \x1b[2J') from ValueError('a\u202eb')"
    lines = run(body, "--debug").stderr.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "Traceback (most recent call last):",
        r"ValueError: a\u202eb",
        "which led to:",
        r"DataError: n\nerror: all is lost \x1b[2J",
    ]


def test_out_of_memory_is_one_line():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1")
    words = r"^out of memory \(2\.00 GiB more were requested\); take fewer clips$"
    with pytest.raises(MMAudioError, match=words), cli.explain_out_of_memory("take fewer clips"):
        raise error
    assert "batch" not in str(cli.describe_out_of_memory(error))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["videos", "--modell", "tiny_16k"], "did you mean --model?"),
        (["videos", "--modle", "tiny_16k"], "did you mean --model?"),
        (["videos", "--model", "tiny"], "did you mean tiny_16k?"),
        (["videos", "--from", "trian"], "did you mean train?"),
    ],
)
def test_a_wrong_flag_or_choice_names_the_nearest(arguments, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(arguments)
    assert stop.value.code == 2 and hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["videos", "max_steps=20"], ["max_steps=20", "videos"], ["--demo", "+lora.rank=4"], ["videos", "--yes", "a/b=c"]],
)
def test_a_setting_of_training_before_the_separator_names_it(arguments):
    with pytest.raises(ConfigError, match=r"=\w+: settings of training come after --, as in: .* -- \+?[a-z]"):
        parse_flags(arguments)


def test_a_folder_may_have_the_name_of_a_setting(tmp_path):
    (tmp_path / "seed=3").mkdir()
    assert parse_flags([str(tmp_path / "seed=3"), "--yes"]).yes


def test_two_files_for_one_flag_are_an_error_that_names_both(capsys):
    with pytest.raises(SystemExit) as stop:
        generation.build_parser().parse_args(["--video", "a.mp4", "--prompt", "x", "--video", "b.mp4"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "--video: one is taken, there are two: a.mp4 and b.mp4" in message
    args = generation.build_parser().parse_args(
        ["--video", "a.mp4", "--video", "a.mp4", "--output", "x", "--seed", "1", "--seed", "2"]
    )
    assert (args.video, args.output, args.seed) == (Path("a.mp4"), Path("x"), 2)


def test_the_shares_of_the_split_are_flags_of_the_pipeline():
    ratios = ["--val_ratio", "0.25", "--test_ratio", "0.5"]
    for arguments in (["--demo"], ["."]):
        job = build_job(parse_flags([*arguments, *ratios]), [])
        command = stage_commands(job)["split"]
        assert command.count("--test_ratio") == 1 and command[-4:] == ratios
        config = checks.read_split_config(job)
        assert (config.val_ratio, config.test_ratio) == (0.25, 0.5)
    with pytest.raises(ConfigError, match="ratio"):
        checks.check_splitting(build_job(parse_flags([".", "--test_ratio", "1.5"]), []))
    assert "0.3" in stage_commands(build_job(parse_flags(["--demo", "--val_ratio", "0.2"]), []))["split"]


@pytest.mark.parametrize("arguments", [[""], ["videos", "--output", ""], ["--demo", "--weights="]])
def test_an_empty_path_is_not_the_current_folder(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(arguments)
    assert stop.value.code == 2 and "an empty name" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_hub_s_own_variable_counts_as_offline(value, offline, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert cli.is_offline(False) is offline and cli.is_offline(True)


def test_every_stage_gets_the_flags_of_weights_and_offline():
    job = build_job(build_parser().parse_args(["--demo", "--weights", "mine", "--offline"]), [])
    stages = stage_commands(job)
    assert {"weights=mine", "offline=true"} <= set(stages["train"])
    for stage in ("extract", "evaluate"):
        assert stages[stage][stages[stage].index("--weights") + 1] == "mine" and "--offline" in stages[stage]


@pytest.mark.parametrize("device", ["cpuu", "cuda:99", "meta", "mps"])
def test_an_absent_device_is_refused(device):
    with pytest.raises(ConfigError, match="device"):
        cli.pick_device(device)


@pytest.mark.parametrize(
    ("arguments", "overrides", "error"),
    [
        ([], [], ConfigError),
        (["--demo", "videos"], [], ConfigError),
        (["--demo", "--mode", "16k", "--model", "tiny_16k"], [], ConfigError),
        (["--demo", "--gpus", "0"], [], ConfigError),
        (["--demo"], ["max_steps"], ConfigError),
        (["--demo"], ["model=small_16k"], ConfigError),
        (["--demo"], ["max_steps=3", "++output_dir=elsewhere"], ConfigError),
        (["no-such-folder"], [], DataError),
    ],
)
def test_a_command_that_contradicts_itself_is_refused(arguments, overrides, error):
    with pytest.raises(error):
        build_job(build_parser().parse_args(arguments), overrides)


@pytest.mark.parametrize("statement", ["os.kill(os.getpid(), 9)", "os._exit(137)"])
def test_a_stage_killed_by_the_system_is_an_error(statement):
    with pytest.raises(MMAudioError, match=r"train: ended by SIGKILL; the system .* memory"):
        pipeline.run_stage("train", [sys.executable, "-c", f"import os; {statement}"])


@pytest.mark.parametrize("status", [130, 143, 138])
def test_a_stage_that_stopped_has_said_so(status):
    with pytest.raises(SystemExit) as stop:
        pipeline.run_stage("train", [sys.executable, "-c", f"import os; os._exit({status})"])
    assert stop.value.code == status


def test_a_stage_that_a_signal_ended_at_once_counts_as_interrupted():
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM; the same command continues"):
        pipeline.run_stage("train", [sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"])


def test_the_demo_takes_the_embedded_model_and_a_folder_of_its_own():
    job = build_job(build_parser().parse_args(["--demo"]), ["seed=3"])
    assert (job.model, job.videos.parent) == ("tiny_16k", DEMO_OUTPUT)
    assert job.clips.parent.parent == DEMO_OUTPUT and "seed=3" in training_overrides(job)


def test_setup_only_creates_the_environment_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert pipeline.main(["--demo", "--setup-only"]) == 0
    assert capsys.readouterr().out == "The environment is ready.\n" and not any(tmp_path.iterdir())


def test_the_last_lines_include_the_flag_for_weights(tmp_path, capsys):
    (tmp_path / "my weights").mkdir()
    arguments = [str(tmp_path), "--output", str(tmp_path), "--weights", str(tmp_path / "my weights")]
    job = build_job(build_parser().parse_args(arguments), [])
    write_clips(job.clips, [Clip("a", "a.mp4", 0.0, 8.0, "", "test", -1.0, -20.0, 0.0)])
    pipeline.print_summary(job, 0.0)
    summary, command = capsys.readouterr().out.split("Generate: ")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    assert sys.platform != "linux" or f"the largest process took {peak:.1f} GB" in summary
    assert generation.build_parser().parse_args(shlex.split(command)[3:]).weights == job.weights
    assert "--strength" not in command and "Verdict:" not in summary
    metrics = {"metrics": {}, "forgetting": {}, "recommended_strength": 0.75, "recommendation": "About as close."}
    job.experiment.mkdir(parents=True)
    (job.experiment / "metrics.json").write_text(json.dumps(metrics))
    pipeline.print_summary(job, 0.0)
    summary, command = capsys.readouterr().out.split("Generate: ")
    assert "--strength 0.75" in command and "Strength: 0.75. About as close.\n" in summary
    assert "Verdict:  Too few held-out videos for a verdict" in summary and "Forgot:   Not measured. " in summary


@pytest.mark.slow
def test_the_plan_uses_the_settings_of_splitting(tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "a.mp4", np.zeros((60, 32, 32, 3), np.uint8), 2, np.zeros(30 * 8000, np.float32), 8000)
    monkeypatch.setattr(checks, "matmul_speed", lambda device, dtype: 1e11)
    for settings, message in (
        ([], "about 6 clips of 8 s"),
        (["split.seconds=4", "split.stride=2"], "about 14 clips of 4 s"),
    ):
        arguments = [str(tmp_path), "--model", "tiny_16k", "--output", str(tmp_path)]
        checks.confirm_plan(build_job(build_parser().parse_args(arguments), settings), accept_long=True)
        assert message in capsys.readouterr().out


def test_a_folder_takes_small_16k_and_the_default_places(tmp_path):
    job = build_job(build_parser().parse_args([str(tmp_path)]), [])
    assert job.model == "small_16k" and str(job.clips) == "lora_data/clips.tsv" and job.experiment.parts[0] == "output"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain/path-1.0", "plain/path-1.0"),
        ("a b'c", r"'a b\'c'"),
        ("2024_05_12", "'2024_05_12'"),
        (2e-4, "0.0002"),
        (True, "true"),
    ],
)
def test_values_are_quoted_for_hydra_overrides(text, written):
    assert quote_value(text) == written


NAMES = (
    "日本é",
    "a b #1 100%",
    'it\'s & "so"',
    "${x}",
    r"\${x}",
    "back\\slash é",
    "end\\",
    r"\'",
    "{a,b}",
    "a=b",
    "(x)[y]",
    "null",
    "2024_05_12",
    "007",
    "1e3",
    "1.50",
    "True",
    ".5",
    "inf",
)


@pytest.mark.parametrize("name", NAMES)
def test_hydra_reads_the_name_of_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    arguments = [f"./{name}", "--model", "tiny_16k", "--output", name, "--weights", f"./{name}"]
    job = build_job(build_parser().parse_args(arguments), [])
    config = compose(training_overrides(job))
    assert (config.clips_tsv, config.video_root, config.weights) == (str(job.clips), name, name)
    assert config.exp_id == job.exp_id


@pytest.mark.slow
def test_the_experiment_has_the_name_that_was_given(tmp_path):
    for text in ("exp_id=2024_05_12", "exp_id='1e3'", "+exp_id=007"):
        job = build_job(build_parser().parse_args([str(tmp_path), "--model", "tiny_16k"]), [text])
        assert compose(training_overrides(job)).exp_id == job.exp_id == text.split("=")[1].strip("'")


def test_a_quoted_experiment_name_is_unquoted():
    job = build_job(build_parser().parse_args(["--demo"]), ["++exp_id='zweiter_é'"])
    assert compose(training_overrides(job)).exp_id == job.exp_id == "zweiter_é"


def test_letters_that_a_terminal_lacks_are_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    script = "from mmaudio import cli\ncli.run(lambda arguments: print('caf\\xe9'))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert (result.returncode, result.stdout) == (0, "caf\\xe9\n"), result.stderr
