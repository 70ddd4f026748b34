"""What a run shows: TensorBoard's scalars, sounds and pictures."""

import dataclasses

import small_world
import torch
from conftest import filled
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_networks import mini
from torch import nn

from mmaudio.finetune.samples import Samples, mel_picture
from mmaudio.finetune.state import new_state
from mmaudio.finetune.tracking import Tracker, forget_after
from mmaudio.generation.sampler import Sampler
from mmaudio.model.spec import model_spec


class Decoder(nn.Module):
    """Stands for the VAE: latents (B, C, N) as if they were a spectrogram."""

    def decode(self, latents):
        return latents


class Vocoder(nn.Module):
    """Stands for the vocoder: any waveform that follows the spectrogram."""

    def forward(self, mel):
        return mel.mean(1, keepdim=True).repeat_interleave(8, 2).tanh()


def events(folder):
    found = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "audio": 0})
    found.Reload()
    return found


def test_tensorboard_shows_the_run_and_a_resumed_one_once(tmp_path):
    small_world.run(tmp_path, max_steps=3, save_every=2)
    outcome = small_world.run(tmp_path, max_steps=6)
    found = events(outcome.folder)
    assert [event.step for event in found.Scalars("validation/loss")] == [0, 2, 3, 4, 6]
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    tags = set(found.Tags()["scalars"])
    assert {"train/learning_rate", "train/grad_norm", "train/steps_per_second"} <= tags
    assert any(tag.startswith("train_loss_by_time/") for tag in tags)
    assert {f"validation_loss_by_time/{bin}" for bin in ("0.00-0.25", "0.75-1.00")} <= tags


def test_pictures_and_sounds_of_truth_base_and_adapted(tmp_path):
    config, network = small_world.config(tmp_path), mini()
    state = new_state(network, config, 5)
    for name, weight in state.trained().items():
        if "lora_B" in name:
            weight.data += 0.01 * filled(name, *weight.shape)
    spec = dataclasses.replace(model_spec("tiny_16k"), network=small_world.MINI)
    samples = Samples(
        Sampler(spec, network, Decoder(), Vocoder(), torch.device("cpu")), small_world.clips(2, "val", videos=2)
    )
    with Tracker(tmp_path / "run", config, 0, samples) as tracker:
        tracker.sample(state)
    shown = list(samples.draw(state))
    assert [clip.name for clip in shown] == ["val0", "val1"]
    sounds = shown[0].waveforms
    assert list(sounds) == ["truth", "base", "adapted"] and not torch.equal(sounds["base"], sounds["adapted"])
    assert shown[0].picture.shape == (3 * 8 + 2 * 4, 30, 3)
    found = events(tmp_path / "run").Tags()
    assert {"val0/truth", "val0/base", "val1/adapted"} <= set(found["audio"])
    assert "val0/truth, base, adapted" in found["images"]


def test_the_loudest_cell_is_the_brightest():
    mel = torch.zeros(4, 6)
    mel[0, 2] = 1.0
    picture = mel_picture([mel, mel])
    assert picture[3, 2].sum() == picture[:4].sum(-1).max() and picture.shape == (12, 6, 3)


def test_lines_after_the_saved_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    forget_after(path, 0)
    assert path.read_text() == ""
