"""The comparison of settings: every run is trained and measured, and stands beside the first in the table."""

import os
import re
import signal

import pytest
import small_world
import torch
from random_base import MODEL, make_base
from test_features_on_disk import write_shards

from mmaudio.config import compose
from mmaudio.errors import ConfigError, DataError
from mmaudio.finetune.tracker import JSONL, Tracker
from mmaudio.model.spec import model_spec
from mmaudio.pipeline.ablation import TRIALS, Place, chosen, last_validation, main, settings_of

SHORT = (
    "max_steps=8",
    "eval_every=4",
    "batch_size=2",
    "lora.rank=4",
    "warmup_steps=0",
    "learning_rate=0.01",
    "amp=false",
)


@pytest.fixture
def arguments(tmp_path):
    """A random base, clips of every split and of a base's domain, and the flags that name them."""
    make_base(tmp_path / "weights", encoders=False)
    spec = model_spec(MODEL).network
    rows = [*small_world.clip_rows(4), *small_world.clip_rows(2, "val"), *small_world.clip_rows(3, "test")]
    for name, clips in (("data", rows), ("general", small_world.clip_rows(2, "test"))):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, clips, spec)
    flags = {
        "clips": "data/clips.tsv",
        "features": "data",
        "general": "general",
        "weights": "weights",
        "output": "runs",
    }
    return [text for name, place in flags.items() for text in (f"--{name}", str(tmp_path / place))]


@pytest.mark.slow
def test_settings_stand_beside_the_first_run(tmp_path, arguments, capsys):
    command = [*arguments, "--only", "another seed", "--", *SHORT]
    assert main(command) == 0  # a seed changes more than a few steps of the others
    said = capsys.readouterr().out
    lines = (tmp_path / "runs" / "settings.md").read_text().splitlines()
    assert said.endswith("\n".join(lines) + "\n") and len(lines) == 4
    head, _, first, other = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head[:5] == ["setting", "validation", "at step", "at the end", "held out"]
    assert (first[0], other[0]) == ("as preset=quick", "another seed")
    for column in (4, 6):
        assert first[column + 1] == "", "the first is what the others are compared with"
        found = re.fullmatch(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", other[column + 1])
        mean, low, high = map(float, found.groups())
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
def test_a_signal_ends_it_and_the_same_command_goes_on(tmp_path, arguments, capsys, monkeypatch):
    command, original = [*arguments, "--only", "another seed", "--", *SHORT], Tracker.stepped

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "stepped", interrupted)
        assert main(command) == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "interrupted at step 3, saved" in said and "== another seed" not in said
    assert not (tmp_path / "runs" / "settings.md").exists()
    assert main(command) == 0 and "resumed:    at step 3" in capsys.readouterr().out


def test_a_log_that_was_cut_off_is_read(tmp_path):
    (tmp_path / JSONL).write_text('{"step": 0, "validation/loss": 2.0}\n{"step": 5, "validation/loss": 1.5}\n{"st')
    assert last_validation(tmp_path) == 1.5


def test_folders_may_have_any_name(tmp_path):
    folder = tmp_path / "it's a,b (c)"
    place = Place(folder / "c.tsv", folder, folder / "1", MODEL, folder / "w", True, torch.device("cpu"))
    config = compose(settings_of(TRIALS[0], place, []))
    found = (config.clips_tsv, config.features_dir, config.output_dir, config.weights)
    assert found == tuple(map(str, (place.clips, place.features, place.output, place.weights)))


@pytest.mark.slow
def test_without_validation_there_is_nothing_to_compare(arguments):
    with pytest.raises(DataError, match="no evaluation in it"):
        main([*arguments, "--", *SHORT, "validation.enabled=false"])


@pytest.mark.slow
def test_every_trial_changes_something_and_composes():
    plain = compose(["preset=quick"]).plain()
    assert len({trial.folder for trial in TRIALS}) == len(TRIALS) and not TRIALS[0].overrides
    for trial in TRIALS[1:]:
        assert compose(["preset=quick", *trial.overrides]).plain() != plain, trial.name
    assert [trial.name for trial in chosen(["weight_decay=0"])] == ["as preset=quick", "weight_decay=0"]
    with pytest.raises(ConfigError, match="no such setting; there are 'as preset=quick'"):
        chosen(["weight_decay=2"])
