"""What the pipeline hands on to splitting, and what to training."""

from __future__ import annotations

import pytest

from mmaudio.checks import check_settings
from mmaudio.errors import ConfigError
from mmaudio.pipeline import commands, parser, read_job, training_overrides


def job(tmp_path, flags=(), overrides=()):
    return read_job(parser().parse_args([str(tmp_path), "--model", "tiny_16k", *flags]), list(overrides))


def test_flags_and_settings_go_to_splitting(tmp_path):
    flags = (
        "--recursive",
        "--captions",
        "words.tsv",
        "--audio-track",
        "1",
        "--keep-all",
        "--timeout-per-video",
        "60.0",
    )
    made = job(tmp_path, flags, ["split.stride=8", "max_steps=5", "validation.split_ratio=0.2"])
    split = commands(made)["split"]
    assert split[split.index("--recursive") :][:8] == list(flags)
    assert split[-2:] == ["split.stride=8", "validation.split_ratio=0.2"]
    training = training_overrides(made)
    assert "max_steps=5" in training and "validation.split_ratio=0.2" in training
    assert not [text for text in training if text.startswith("split.")]
    check_settings(made)


def test_without_flags_splitting_gets_none(tmp_path):
    assert job(tmp_path).split == ()


def test_a_wrong_setting_of_splitting_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'split\.stride'"):
        check_settings(job(tmp_path, overrides=["split.strid=8"]))
