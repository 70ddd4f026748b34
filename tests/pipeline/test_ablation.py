"""Comparison of training settings: every trial is trained, measured and compared with the first."""

import os
import re
import shutil
import signal

import mini_training
import pytest
import torch
from mini_training import write_shards
from random_model import MODEL, write_noise_video, write_random_weights

from mmaudio.config import compose
from mmaudio.errors import ConfigError, DataError
from mmaudio.evaluation.clip_set import ClipSet
from mmaudio.evaluation.config import SamplingConfig
from mmaudio.evaluation.general_domain import load_general_domain
from mmaudio.evaluation.inference import sample_latents
from mmaudio.evaluation.measurement import measure_clips
from mmaudio.finetune.metrics_log import METRICS_FILE
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.trainer import load_network
from mmaudio.generation.sampler import load_sampler
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.pretrained_search import SelectedMetrics
from mmaudio.model.spec import model_spec
from mmaudio.pipeline.ablation import (
    SOUND_METRICS,
    TRIALS,
    ComparisonInputs,
    main,
    measure_sounds,
    read_last_validation_loss,
    select_trials,
    trial_overrides,
)
from mmaudio.weights.store import ASSETS, GENERAL_VIDEOS_FOLDER

SHORT_RUN = (
    "max_steps=8",
    "eval_every=4",
    "batch_size=2",
    "lora.rank=4",
    "warmup_steps=0",
    "learning_rate=0.01",
    "amp=false",
)


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A random base, clips of every split and of a base's domain, few captions, and the flags that name them."""
    write_random_weights(tmp_path / "weights", encoders=False)
    spec = model_spec(MODEL).network
    rows = [*mini_training.clip_rows(4), *mini_training.clip_rows(2, "val"), *mini_training.clip_rows(3, "test")]
    for name, clips in (("data", rows), ("general", mini_training.clip_rows(2, "test"))):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, clips, spec)
    flags = {
        "clips": "data/clips.tsv",
        "features": "data",
        "general": "general",
        "weights": "weights",
        "output": "runs",
    }
    write_generic_sounds(tmp_path, monkeypatch)
    return [text for name, path in flags.items() for text in (f"--{name}", str(tmp_path / path))]


def write_generic_sounds(folder, monkeypatch):
    """Samples of the base: those of training, and for one caption that is trained on and two that are held back."""
    config = compose([f"model={MODEL}", f"weights={folder}/weights", f"features_dir={folder}/data"])
    sha256 = load_network(config, torch.device("cpu"))[1]
    mini_training.write_base_samples(config, sha256, 8.0, spec=model_spec(MODEL).network)
    for name, captions in (("training_captions", ["a gray box"]), ("held_back_captions", ["a lime fan", "a red ring"])):
        monkeypatch.setattr(f"mmaudio.pipeline.ablation.{name}", lambda model, captions=captions: captions)
        mini_training.write_base_samples(config, sha256, 8.0, captions, model_spec(MODEL).network)


@pytest.mark.slow
def test_trials_are_compared_with_the_first(tmp_path, arguments, capsys):
    command = [*arguments, "--only", "another seed", "--", *SHORT_RUN]
    assert main(command) == 0  # a seed changes more than a few steps of the others
    output = capsys.readouterr().out
    lines = (tmp_path / "runs" / "settings.md").read_text().splitlines()
    assert output.endswith("\n".join(lines) + "\n") and len(lines) == 5
    head, _, base, first, other = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head[:5] == ["setting", "validation", "at step", "at the end", "held out"]
    assert head[8] == "captions trained on" and head[10] == "captions held back"
    assert (base[0], first[0], other[0]) == ("the base alone", "as preset=quick", "another seed")
    assert base[4] not in ("", first[4]) and base[5] == "", "the base is measured, and compared with nothing"
    for column in (4, 6, 10):
        assert first[column + 1] == "", "the first is what the others are compared with"
        match = re.fullmatch(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", other[column + 1])
        mean, low, high = map(float, match.groups())
        assert low <= mean <= high
        assert mean == pytest.approx(float(other[column]) - float(first[column]), abs=1.1e-4)
    assert first[4] != other[4] and first[6] != other[6]
    assert sorted(path.parents[1].name for path in tmp_path.glob("runs/*/lora_checkpoints/best_lora.pt")) == [
        "another-seed",
        "as-preset-quick",
    ]
    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.count("nothing to do") == 2 and again.endswith("\n".join(lines) + "\n")


@pytest.mark.slow
def test_with_their_videos_sounds_are_compared_too(tmp_path, arguments, brief_vocoder):
    videos = tmp_path / "videos"
    command = [*arguments, "--videos", str(videos), "--only", "seed=1", "--", *SHORT_RUN]
    with pytest.raises(DataError, match=r"--videos .*videos: .*mp4 is not there"):
        main(command)
    videos.mkdir()
    for seed, clip in enumerate(mini_training.clip_rows(3, "test")):
        write_noise_video(videos / clip.video, seed, clip.end)
    assert main(command) == 0
    lines = (tmp_path / "runs" / "settings.md").read_text().splitlines()
    head, _, base, first, other = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    column = head.index("held out: Mel distance, loud cells")
    assert len({row[column] for row in (base, first, other)}) == 3 and other[column + 1].startswith(("+", "-"))
    assert "base's own domain: Mel distance, loud cells" not in head, "its videos are not at hand"


@pytest.mark.parametrize("setting", ["nonsense=1", "lora.rank=none"])
def test_a_wrong_setting_is_an_error_before_any_work(tmp_path, setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        main(["--clips", str(tmp_path / "none.tsv"), "--only", setting])


@pytest.mark.slow
def test_sounds_are_measured_as_an_evaluation_does(tmp_path):
    spec, shipped = model_spec("tiny_16k"), ASSETS / "tiny_16k" / GENERAL_VIDEOS_FOLDER
    for path in sorted(shipped.iterdir())[:2]:  # a video and its caption
        shutil.copy(path, tmp_path)
    general = load_general_domain(spec, tmp_path, tmp_path / "features", None, torch.device("cpu"))[0]
    sampler, features = load_sampler("tiny_16k"), general.features.subset([0])
    sampler.network.set_duration(features.seconds)
    sounds = measure_sounds(sampler, features, tmp_path, "own")
    latents = sample_latents(sampler, features, SamplingConfig(), "again")
    clips = ClipSet(tmp_path, features, {BASE: [0.0], ADAPTED: [0.0]}, {BASE: latents, ADAPTED: latents})
    measured = measure_clips(sampler, clips, None, SelectedMetrics(SOUND_METRICS)).clips[0].measurements[ADAPTED]
    assert sounds.keys() == set(SOUND_METRICS)
    for name, (value,) in sounds.items():  # the same but for rounding: there a clip's sounds are decoded together
        assert value == pytest.approx(measured.values[name], rel=1e-3)
    assert measured.values[SOUND_METRICS[0]] > 0


@pytest.mark.slow
def test_a_signal_stops_the_comparison_and_the_same_command_continues(tmp_path, arguments, capsys, monkeypatch):
    command, original = [*arguments, "--only", "another seed", "--", *SHORT_RUN], Tracker.log_step

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "log_step", interrupted)
        assert main(command) == 128 + signal.SIGTERM
    output = capsys.readouterr().out
    assert "interrupted at step 3, saved" in output and "== another seed" not in output
    assert not (tmp_path / "runs" / "settings.md").exists()
    assert main(command) == 0 and "resumed:    at step 3" in capsys.readouterr().out


def test_a_truncated_log_is_read(tmp_path):
    (tmp_path / METRICS_FILE).write_text(
        '{"step": 0, "validation/loss": 2.0}\n{"step": 5, "validation/loss": 1.5}\n{"st'
    )
    assert read_last_validation_loss(tmp_path) == 1.5


def test_folders_with_any_name_work(tmp_path):
    folder = tmp_path / "it's a,b (c)"
    inputs = ComparisonInputs(folder / "c.tsv", folder, folder / "1", MODEL, folder / "w", True, torch.device("cpu"))
    config = compose(trial_overrides(TRIALS[0], inputs, []))
    paths = (config.clips_tsv, config.features_dir, config.output_dir, config.weights)
    assert paths == tuple(map(str, (inputs.clips, inputs.features, inputs.output, inputs.weights)))


@pytest.mark.slow
def test_without_validation_there_is_nothing_to_compare(arguments):
    with pytest.raises(DataError, match="no validation loss"):
        main([*arguments, "--", *SHORT_RUN, "validation.enabled=false"])


@pytest.mark.slow
def test_every_trial_changes_a_setting_and_composes():
    plain = compose(["preset=quick"]).to_dict()
    assert len({trial.folder for trial in TRIALS}) == len(TRIALS) and not TRIALS[0].overrides
    for trial in TRIALS[1:]:
        assert compose(["preset=quick", *trial.overrides]).to_dict() != plain, trial.name
    assert [trial.name for trial in select_trials(["weight_decay=0"])] == ["as preset=quick", "weight_decay=0"]
    custom = select_trials(["lora.rank=8 lora.alpha=16"])[-1]
    assert custom.overrides == ("lora.rank=8", "lora.alpha=16") and custom.folder == "lora-rank-8-lora-alpha-16"
    with pytest.raises(ConfigError, match="no such setting; it is key=value, or one of 'as preset=quick'"):
        select_trials(["a fourth seed"])
    for name in ("", "=", "=1"):
        with pytest.raises(ConfigError, match="no such setting"):
            select_trials([name])
    assert len(select_trials(["a=b", "a=b"])) == 2, "the first run, and this one once"
