"""The command `train_lora.py`: on random features and random weights of tiny_16k's shapes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mini_training
import pytest
import torch
from helpers import ROOT
from memmap_set import write_memmap_set
from random_model import write_noise_video

from mmaudio.config import compose
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.trainer import lock_experiment, train
from mmaudio.lora.checkpoint import read_adapter

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """clips.tsv, feature shards and a weights folder."""
    folder = tmp_path_factory.mktemp("data")
    rows = mini_training.clip_rows(4, videos=2) + mini_training.clip_rows(2, "val", videos=1)
    mini_training.write_training_data(folder, rows)
    return folder


def command(data, output, *overrides):
    return [
        sys.executable,
        str(ROOT / "train_lora.py"),
        "exp_id=exp",
        "model=tiny_16k",
        "custom_finetune=true",
        f"clips_tsv={data}/clips.tsv",
        f"features_dir={data}/features",
        f"weights={data}",
        f"output_dir={output}",
        "preset=quick",
        "preserve_base=0",
        "batch_size=2",
        f"max_steps={STEPS}",
        "eval_every=2",
        "save_every=2",
        "amp=false",
        "logging.sample_every=0",
        "logging.log_every=1",
        "lora.rank=4",
        "device=cpu",
        *overrides,
    ]


def call(data, output, *overrides):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(data, output, *overrides),
        capture_output=True,
        text=True,
        cwd=output,
        env=environment,
        check=False,
    )


@pytest.fixture
def run_here(data, monkeypatch, capsys):
    """A function that runs the command in this process, in the folder of its results: exit status, output, errors."""
    monkeypatch.syspath_prepend(ROOT)
    import train_lora
    from mmaudio import cli

    def run(folder, *overrides):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", command(data, folder, *overrides)[1:])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(train_lora.main)
        return exit_info.value.code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_results_below_a_file_are_refused_in_one_line(data, tmp_path):
    (tmp_path / "notes").write_text("mine")
    result = subprocess.run(command(data, tmp_path / "notes" / "x"), capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "notes" in result.stderr and "Not a directory" in result.stderr


@pytest.mark.slow
def test_two_runs_never_write_the_same_experiment(data, tmp_path):
    with lock_experiment(tmp_path / "out" / "exp"):
        result = subprocess.run(command(data, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert result.returncode == 1 and f"another process (process {os.getpid()}) trains this experiment" in result.stderr
    assert [path.name for path in (tmp_path / "out" / "exp").iterdir()] == [".claims"]


KILLED = """
import os, signal, sys
import train_lora
from mmaudio import cli
from mmaudio.finetune.tracker import Tracker

original = Tracker.log_step
def killing(self, state, metrics):
    original(self, state, metrics)
    if state.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Tracker.log_step = killing
cli.run(train_lora.main)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_uninterrupted_one(data, tmp_path, run_here):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    status, printed, errors = run_here(whole)
    assert status == 0 and "finished at step 6" in printed and "Traceback" not in errors
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED, *command(data, parts)[2:]]
    killed = subprocess.run(words, cwd=parts, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    status, printed, errors = run_here(parts)
    assert status == 0 and "resumed:    at step 2" in printed, printed + errors
    for name in ("best_lora.pt", "last_lora.pt"):
        one, other = (read_adapter(folder / "exp" / "lora_checkpoints" / name) for folder in (whole, parts))
        assert one.step == other.step and all(torch.equal(one.state[key], other.state[key]) for key in one.state), name
    assert sorted(path.name for path in whole.iterdir()) == ["exp"], "Hydra leaves nothing of its own"


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, status, expected",
    [
        ("batchsize=2", 2, "did you mean 'batch_size'"),
        ("learning_rate=-1", 2, "learning_rate=-1"),
        ("seed=99999999999999999999", 2, "seed=1e+20: expected at least 0"),
        ("quick", 2, "key=value"),
        ("clips_tsv=absent.tsv", 1, "absent.tsv: not there"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, tmp_path, override, status, expected):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    import train_lora
    from mmaudio import cli

    monkeypatch.setattr(sys, "argv", ["train_lora.py", override, "model=tiny_16k"])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(train_lora.main)
    error = capsys.readouterr().err
    assert exit_info.value.code == status and error.count("\n") == 1 and expected in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(data, tmp_path, run_here):
    options = ("lora.dropout=0", "max_steps=3")
    assert run_here(tmp_path / "one", *options)[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launch, *command(data, tmp_path / "two", *options)[1:]]
    process = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
    losses, updates = [], []
    for folder in (tmp_path / "one" / "exp", tmp_path / "two" / "exp"):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row[key] for key in ("train/loss", "validation/loss") for row in rows if key in row])
        state = read_adapter(folder / "lora_checkpoints/last_lora.pt").state
        updates.append(torch.cat([value.flatten() for key, value in state.items() if "lora_B" in key]))
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert float((updates[1] - updates[0]).norm()) < 0.05 * float(updates[0].norm())


@pytest.mark.slow
def test_features_of_mmaudios_own_extraction_train(tmp_path, run_here):
    for split, clips in (("train", 4), ("val", 2)):
        write_memmap_set(tmp_path / "sets" / f"vgg-{split}", clips, "tiny_16k", clips)
    settings = ("custom_finetune=false", f"features_dir={tmp_path}/sets", "max_steps=3")
    status, printed, errors = run_here(tmp_path, *settings)
    assert status == 0, errors
    assert "training:   4 clips of 4 videos" in printed and "validation: 2 clips" in printed
    adapter = read_adapter(tmp_path / "exp" / "lora_checkpoints" / "last_lora.pt")
    assert adapter.step == 3 and any(value.any() for key, value in adapter.state.items() if "lora_B" in key)
    status, _, errors = run_here(tmp_path, "custom_finetune=false")
    assert status == 1 and "no memory map in it" in errors and "custom_finetune=true" in errors


@pytest.mark.slow
def test_a_sweep_has_a_folder_per_job(tmp_path, run_here):
    status, printed, errors = run_here(tmp_path, "--multirun", "lora.alpha=4,8", "max_steps=1")
    assert status == 0, errors
    folders = sorted(path.parents[1].name for path in tmp_path.glob("exp/*/lora_checkpoints/best_lora.pt"))
    assert len(folders) == 2 and "lora.alpha=4" in folders[0] and "lora.alpha=8" in folders[1]
    *table, lowest = printed.splitlines()[-4:]
    assert table[0].split() == ["run", "steps", "base", "best", "at", "step", "change"]
    assert sorted(line.split()[0] for line in table[1:]) == ["lora.alpha=4", "lora.alpha=8"], "a table ends it"
    assert [line.split()[1] for line in table[1:]] == ["1", "1"]
    best = Path(lowest.removeprefix("lowest loss: "))
    assert best.parent == tmp_path / "exp" and best.name in folders and table[1].split()[0] in best.name


@pytest.mark.slow
def test_a_sweep_over_lists_has_one_short_name_per_job(tmp_path, run_here):
    long = [
        f'"joint_blocks[*].{stream}_block.{layer}"'
        for stream in ("latent", "clip", "text")
        for layer in ("attn", "ffn")
    ]
    targets = f"lora.target_modules=[attn.qkv],[{','.join(long)}]"
    status, _, errors = run_here(tmp_path, "--multirun", targets, "max_steps=1")
    assert status == 0, errors
    folders = [path.parents[1].name for path in tmp_path.glob("exp/*/lora_checkpoints/best_lora.pt")]
    written = [path.name for path in (tmp_path / "exp").iterdir() if path.is_dir()]
    assert len(folders) == 2 and sorted(written) == sorted(folders) and all(len(name) < 255 for name in written)


@pytest.mark.slow
def test_launcher_jobs_return_their_results(data, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    # with a folder for each job, submitit starts the job first and makes its folder then, sometimes too late
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.submitit_folder=${hydra.sweep.dir}/.submitit"]
    process = call(data, tmp_path, "--multirun", *launcher, "max_steps=1", "lora.alpha=4,8,-1")
    folders = sorted(path.parents[1].name for path in tmp_path.glob("exp/*/lora_checkpoints/best_lora.pt"))
    table = process.stdout.splitlines()[-4:-1]
    assert len(table) == 3, process.stderr
    assert table[0].startswith("run ") and len(folders) == 2
    assert sorted(line.split()[0] for line in table[1:]) == ["lora.alpha=4", "lora.alpha=8"]
    refused = "error: lora.alpha=-1.0: the scale is a positive number"
    assert process.returncode == 2 and process.stderr.splitlines()[-1].startswith(refused), process.stderr
    logs = [path.read_text() for path in tmp_path.glob("exp/.submitit/*_log.err")]
    assert sum(refused in text for text in logs) == 1, "it stands in the job's own log, too"
    assert [path.name for path in tmp_path.iterdir()] == ["exp"]


@pytest.mark.slow
def test_the_exit_status_is_that_of_the_signal(tmp_path, monkeypatch, run_here):
    original = Tracker.log_step

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "log_step", interrupted)
    status, printed, _ = run_here(tmp_path)
    assert status == 128 + signal.SIGTERM
    assert "interrupted at step 1, saved; the same command continues" in printed


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_any_more_is_saved(data, tmp_path):
    """As in `python train_lora.py ... | tee log`, where Ctrl-C ends tee, too."""
    process = subprocess.Popen(
        command(data, tmp_path, "max_steps=100000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert any(line.startswith("computing:") for line in process.stdout)
    process.stdout.close()
    log = tmp_path / "exp" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (128 + signal.SIGINT, "")
    assert (tmp_path / "exp" / "lora_checkpoints" / "state.pt").is_file()


@pytest.mark.slow
def test_a_signal_stops_the_sweep(tmp_path, monkeypatch, run_here):
    original = Tracker.log_step

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if self.config.lora.alpha == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tracker, "log_step", interrupted)
    status, printed, _ = run_here(tmp_path, "--multirun", "lora.alpha=2,4,8", "max_steps=2")
    assert status == 128 + signal.SIGINT
    folders = sorted(path.parents[1].name for path in tmp_path.glob("exp/*/lora_checkpoints/last_lora.pt"))
    assert len(folders) == 2 and "lora.alpha=2" in folders[0] and "lora.alpha=4" in folders[1]
    table = printed.splitlines()[-4:-1]
    assert sorted(line.split()[0] for line in table[1:]) == ["lora.alpha=2", "lora.alpha=4"]


@pytest.mark.slow
def test_samples_are_audio_spectrograms_and_videos(data, tmp_path):
    write_noise_video(tmp_path / "videos" / "val0.mp4", 0, 12.5)
    settings = ("max_steps=1", "logging.sample_every=1", f"video_root={tmp_path}/videos", "lora.rank=4", "device=cpu")
    arguments = [
        text for text in command(data, tmp_path)[2:] if not text.startswith(("weights=", "logging.", "device="))
    ]
    outcome = train(compose([*arguments, *settings]), torch.device("cpu"))  # with the decoder that ships
    for clip in ("val0", "val1"):
        files = {path.name for path in (outcome.folder / "samples" / clip).iterdir()}
        media = {f"{name}{end}" for name in ("truth", "base", "step-000001") for end in (".flac", ".mp4")}
        assert files == media | {"step-000001.png"}
