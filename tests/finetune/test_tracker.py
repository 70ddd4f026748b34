"""What a run logs: TensorBoard scalars, audio samples and spectrograms."""

import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path

import mini_training
import pytest
import torch
from helpers import filled, mini
from peft.tuners.lora import LoraLayer
from random_model import write_noise_video
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmaudio.config import EarlyStoppingConfig, LoggingConfig, TrainConfig
from mmaudio.errors import MMAudioError
from mmaudio.finetune import loop, step, trainer, validation
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.diagnostics import UtilizationMeter, compute_adapter_norms, count_flops_per_clip
from mmaudio.finetune.draws import build_fixed_draws
from mmaudio.finetune.early_stopping import Evaluation
from mmaudio.finetune.metrics_log import MetricsLog, truncate_after
from mmaudio.finetune.optimizers import learning_rate_at
from mmaudio.finetune.samples import SampleGenerator, draw_mels, find_video_folder
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import NonFiniteError
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.validation import average_by_clip, build_validation_set
from mmaudio.generation.sampler import Sampler
from mmaudio.media.video import probe
from mmaudio.model.spec import model_spec
from mmaudio.utils import heartbeat
from mmaudio.utils.trackers import TrackedRun


class Decoder(nn.Module):
    """Stands for the VAE: latents (B, C, N) as if they were a spectrogram."""

    def decode(self, latents):
        return latents


class Vocoder(nn.Module):
    """Stands for the vocoder: any waveform that follows the spectrogram."""

    def forward(self, mel):
        return mel.mean(1, keepdim=True).repeat_interleave(8, 2).tanh()


def read_events(folder):
    accumulator = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "audio": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.slow
def test_tensorboard_shows_every_step_of_a_resumed_run_once(tmp_path):
    mini_training.train_mini(tmp_path, max_steps=3, save_every=2)
    outcome = mini_training.train_mini(tmp_path, max_steps=6)
    events = read_events(outcome.folder)
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 2, 3, 4, 6]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    tags = set(events.Tags()["scalars"])
    train = ("learning_rate", "grad_norm", "steps_per_second", "samples_per_second")
    assert {f"train/{name}" for name in train} <= tags
    rates = [learning_rate_at(number, mini_training.build_config(tmp_path)) for number in range(3, 6)]
    assert [event.value for event in events.Scalars("train/learning_rate")][3:] == pytest.approx(rates)
    assert {f"validation/change{end}" for end in ("", "_low", "_high")} <= tags
    assert {f"adapter_norm/{block}_blocks.{i}" for block in ("joint", "fused") for i in (0, 1)} <= tags
    norms = [event.value for event in events.Scalars("adapter_norm/fused_blocks.0")]
    assert 0 < norms[0] < norms[-1], "the adapter grows from nothing"
    assert any(tag.startswith("train_loss_by_time/") for tag in tags)
    assert {f"validation_loss_by_time/{bin}" for bin in ("0.00-0.25", "0.75-1.00")} <= tags


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, True])
def test_tensorboard_shows_every_step_of_a_restarted_run_once(tmp_path, monkeypatch, saved):
    original = loop.train_step

    def stops(state, clips, config, *args):
        if saved:  # a loss that is not finite keeps the state of step 0, the evaluation of the base in it
            return original(state, dataclasses.replace(clips, mean=clips.mean * float("nan")), config, *args)
        if state.step == 1:
            raise KeyboardInterrupt
        return original(state, clips, config, *args)

    with monkeypatch.context() as patched, pytest.raises(NonFiniteError if saved else KeyboardInterrupt):
        patched.setattr(loop, "train_step", stops)
        mini_training.train_mini(tmp_path, max_steps=2)
    outcome = mini_training.train_mini(tmp_path, max_steps=2)
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 2]
    events = read_events(outcome.folder)
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 2]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


@pytest.mark.slow
def test_hparams_hold_settings_and_final_metrics(tmp_path):
    outcome = mini_training.train_mini(tmp_path, max_steps=2)
    events = read_events(outcome.folder)
    final = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag.startswith("final/")}
    assert final["final/validation_loss"] == pytest.approx(outcome.best_loss, rel=1e-6)
    assert final["final/best_step"] == outcome.best_step and final["final/validation_change"] < 0
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"lora.rank" in content and b"learning_rate" in content


@pytest.mark.slow
def test_early_stopping_between_two_log_lines_loses_no_step(tmp_path):
    stopping = EarlyStoppingConfig(patience=2, min_delta=1e9)
    outcome = mini_training.train_mini(tmp_path / "each", early_stopping=stopping)
    each = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    means = {}
    for every in (3, 10):
        logging = LoggingConfig(log_every=every, sample_every=0)
        outcome = mini_training.train_mini(tmp_path / str(every), early_stopping=stopping, logging=logging)
        assert (outcome.step, outcome.reason) == (4, "early stopping")
        rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
        means[every] = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
        (final,) = read_events(outcome.folder).Scalars("final/train_loss")
        assert final.value == pytest.approx(means[every][4], rel=1e-6)
    losses = [row["train/loss"] for row in each if "train/loss" in row]
    assert means[3] == pytest.approx({3: sum(losses[:3]) / 3, 4: losses[3]})
    assert means[10] == pytest.approx({4: sum(losses) / 4})


@pytest.mark.slow
def test_flops_of_a_clip_and_utilisation(tmp_path):
    config, network = mini_training.build_config(tmp_path, gradient_checkpointing=True), mini()
    state = new_state(network, config, 5)
    clips = build_dataset(network, mini_training.mini_clips(2), torch.device("cpu"))
    forward = flops_of(
        lambda: step.compute_losses(network, clips, build_fixed_draws(1, clips.mean.shape[1:]), torch.float32)
    )
    flops = count_flops_per_clip(state, clips, config)
    assert 1.5 * forward < flops < 3 * forward, "the frozen weights need no gradient of their own"
    assert state.network.gradient_checkpointing and all(
        weight.grad is None for weight in state.trainable_parameters().values()
    )
    assert UtilizationMeter(2e9, 1e12).utilisation(250.0) == pytest.approx(0.5)


def test_speed_is_logged_as_utilisation_where_the_peak_is_known(tmp_path):
    config = mini_training.build_config(tmp_path)
    state, rows = new_state(mini(), config, 5), []
    for name, meter in (("with", UtilizationMeter(2e9, 1e12)), ("without", None)):
        tracker = Tracker(tmp_path / name, config, 0)
        tracker.meter, state.step = meter, 1
        with tracker:
            tracker.log_step(state, step.StepMetrics(1.0, 0.5, 1e-3, torch.ones(4), torch.full((4,), 0.5)))
        rows.append(json.loads((tmp_path / name / "metrics.jsonl").read_text()))
        logged = {"train/flops_utilisation"} & set(read_events(tmp_path / name).Tags()["scalars"])
        assert bool(logged) == (meter is not None)
    assert rows[0]["train/samples_per_second"] == pytest.approx(4 * rows[0]["train/steps_per_second"])
    expected_scalars = {
        f"train/{name}": value for name, value in (("loss", 1.0), ("grad_norm", 0.5), ("learning_rate", 1e-3))
    }
    assert rows[0] | expected_scalars | {"train_loss_by_time/0.50-0.75": 1.0} == rows[0]
    expected = 2e9 * rows[0]["train/samples_per_second"] / 1e12
    assert rows[0]["train/flops_utilisation"] == pytest.approx(expected)
    assert "train/flops_utilisation" not in rows[1]
    assert not any("device_memory" in key for row in rows for key in row), "a CPU has none of its own"


def test_every_validation_loss_is_logged_at_its_flow_time(tmp_path):
    config, network, rows = mini_training.build_config(tmp_path), mini(), mini_training.mini_clips(2, "val")
    state = new_state(network, config, 5)
    validation_set = build_validation_set(build_dataset(network, rows, torch.device("cpu")), rows.ids, 8)
    losses = validation_set.draws.t.view(-1, 8)  # as if the loss were the time
    state.history.add(Evaluation(0, average_by_clip(losses)), 0.0)
    with Tracker(tmp_path / "run", config, 0) as tracker:
        tracker.log_evaluation(state, losses, validation_set)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    bins = {name.partition("/")[2]: value for name, value in row.items() if name.startswith("validation_loss_by_time/")}
    assert len(bins) == 4
    for name, value in bins.items():
        low, high = map(float, name.split("-"))
        assert low < value < high


def flops_of(function):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def test_adapter_norms_are_those_of_the_weight_updates(tmp_path):
    state = new_state(mini(), mini_training.build_config(tmp_path), 5)
    assert set(compute_adapter_norms(state.model).values()) == {0.0}
    for name, weight in state.trainable_parameters().items():
        weight.data = filled(name, *weight.shape)
    blocks = {}
    for name, layer in state.model.named_modules():
        if isinstance(layer, LoraLayer):
            block = ".".join(name.removeprefix("base_model.model.").split(".")[:2])
            blocks[block] = blocks.get(block, 0.0) + float(layer.get_delta_weight("default").detach().square().sum())
    assert compute_adapter_norms(state.model) == pytest.approx(
        {name: value**0.5 for name, value in blocks.items()}, rel=1e-4
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.slow
def test_a_terminal_shows_one_bar_and_a_pipe_a_line_per_evaluation(tmp_path, monkeypatch, capsys):
    mini_training.train_mini(tmp_path / "pipe", max_steps=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "validation loss" in line] == ["step 0/4", "step 2/4", "step 4/4"]
    screen = Terminal()
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow one would cut the bar
    monkeypatch.setattr(sys, "stderr", screen)
    mini_training.train_mini(tmp_path / "terminal", max_steps=4)
    assert "validation loss" not in capsys.readouterr().out
    assert "4/4" in screen.getvalue() and ", validation " in screen.getvalue()


def speak_before(monkeypatch, owner, name):
    """Have the line of the heartbeat printed before each call, as if much time had passed."""
    original = getattr(owner, name)

    def speaking(*args, **kwargs):
        for block in heartbeat.Heartbeat.running[-1:]:
            block.beat()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, speaking)
    monkeypatch.setattr(heartbeat, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "BRIEF_SECONDS", 0.0)


@pytest.mark.slow
def test_every_long_phase_of_training_says_what_runs_and_how_far(tmp_path, monkeypatch, capfd):
    for owner, name in ((trainer, "new_state"), (validation, "losses_in_memory"), (loop, "train_step")):
        speak_before(monkeypatch, owner, name)
    mini_training.train_mini(tmp_path, max_steps=4)
    printed = capfd.readouterr().out
    assert re.search(r"^preparing the training: \d+ s so far$", printed, re.MULTILINE)
    assert re.search(r"^step 0/4: \d+ s so far; validation: 0/\d, \d+ s so far$", printed, re.MULTILINE)
    assert re.search(r"^step [123]/4: loss [\d.]+, [\d.]+ steps/s, \d+ s left$", printed, re.MULTILINE)


@pytest.mark.slow
def test_samples_are_audio_spectrograms_and_videos_of_truth_base_and_adapted(tmp_path, monkeypatch, capsys):
    config, network = mini_training.build_config(tmp_path, ema_decay=0.0), mini()
    state = new_state(network, config, 5)
    spec = dataclasses.replace(model_spec("tiny_16k"), network=mini_training.MINI, num_steps=3)
    sampler = Sampler(spec, network, Decoder(), Vocoder(), torch.device("cpu"))
    samples = SampleGenerator(sampler, mini_training.mini_clips(2, "val", videos=2), tmp_path / "videos")
    fresh = [sample.waveforms for sample in samples.generate(state)]
    assert all(torch.equal(waveforms["base"], waveforms["adapted"]) for waveforms in fresh), (
        "both start from the same noise"
    )
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:
            weight.data += 0.01 * filled(name, *weight.shape)
    write_noise_video(tmp_path / "videos" / "val0.mp4", 0, 8.5)
    with Tracker(tmp_path / "run", config, 0, samples) as tracker:
        tracker.log_samples(state)
        speak_before(monkeypatch, Sampler, "decode_mel")
        state.step = 100
        tracker.log_samples(state)
    folder = tmp_path / "run" / "samples"
    steps = ("step-000000", "step-000100")
    files = {f"{name}.flac" for name in ("truth", "base", *steps)} | {f"{name}.png" for name in steps}
    videos = {f"{name}.mp4" for name in ("truth", "base", *steps)}
    assert {path.name for path in (folder / "val0").iterdir()} == files | videos
    assert {path.name for path in (folder / "val1").iterdir()} == files, "its video is not there"
    printed = capsys.readouterr().out
    assert "val1" in printed and re.search(r"; samples: solver steps and clips: \d+/10, ", printed)
    infos = {name: probe(folder / "val0" / name) for name in videos}
    assert all(info.audio_sample_rate == 16_000 and info.width == 64 for info in infos.values())
    sample = list(samples.generate(state))
    assert [clip.name for clip in sample] == ["val0", "val1"]
    waveforms = sample[0].waveforms
    assert torch.equal(waveforms["base"], fresh[0]["base"]), "at every step"
    assert list(waveforms) == ["truth", "base", "adapted"] and not torch.equal(waveforms["base"], waveforms["adapted"])
    assert sample[0].spectrograms.shape == (3 * 8 + 2 * 4, 30, 3)
    tags = read_events(tmp_path / "run").Tags()
    assert {"val0/truth", "val0/base", "val1/adapted"} <= set(tags["audio"])
    assert "val0/truth, base, adapted" in tags["images"]


def test_the_loudest_spectrogram_cell_is_the_brightest():
    mel = torch.zeros(4, 6)
    mel[0, 2] = 1.0
    image = draw_mels([mel, mel])
    assert image[3, 2].sum() == image[:4].sum(-1).max() and image.shape == (12, 6, 3)


def test_lines_after_the_saved_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xd0\n[]\n{"step": "x"}\n{"step": 2}\n{"step": 3}\n{"ste')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    truncate_after(path, -1)
    assert path.read_text() == ""


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    """The error of TensorBoard's own file, which comes later, is not shown."""
    config = mini_training.build_config(tmp_path)
    state = new_state(mini(), config, 5)
    tracker = Tracker(tmp_path / "run", config, 0)
    with pytest.raises(MMAudioError, match=r"metrics\.jsonl: cannot be written \(No space left"), tracker:
        (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
        monkeypatch.setattr(tracker._log.writer, "close", lambda: Path("/dev/full").write_text("x"))
        tracker.log_step(state, step.StepMetrics(1.0, 0.5, 1e-3, torch.ones(4), torch.full((4,), 0.5)))
    (tmp_path / "run" / "metrics.jsonl").unlink()
    tracker = Tracker(tmp_path / "run", config, 0)
    with pytest.raises(MMAudioError, match=r"run: cannot be written \(No space left"), tracker:
        monkeypatch.setattr(tracker._log.writer, "close", lambda: Path("/dev/full").write_text("x"))


@pytest.mark.parametrize("video", ["../outside.mp4", "{folder}/outside.mp4"])
def test_samples_open_no_video_outside_of_the_folder(tmp_path, video):
    (tmp_path / "outside.mp4").touch()
    (tmp_path / "videos").mkdir()
    clips = mini_training.mini_clips(1, "val")
    clips.clips[0] = dataclasses.replace(clips.clips[0], video=video.format(folder=tmp_path))
    config, lines = TrainConfig(video_root=str(tmp_path / "videos")), []
    assert find_video_folder(config, clips, lines.append) is None
    assert len(lines) == 1 and "is outside of" in lines[0]


def test_a_folder_whose_name_is_not_utf8_is_named(tmp_path):
    with pytest.raises(MMAudioError, match=r"TensorBoard .* choose another output_dir"):
        MetricsLog(TrackedRun(tmp_path / os.fsdecode(b"m\xff"), "m"))
    assert not list(tmp_path.iterdir())
