"""Kept outputs of base models: what names them, and how many there are."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from evaluation_inputs import SECONDS, random_features
from random_model import MODEL

from mmaudio.data.clips import Clip
from mmaudio.data.feature_set import build_feature_set
from mmaudio.evaluation import base_outputs
from mmaudio.evaluation.base_outputs import keep, kept_file, read_kept
from mmaudio.evaluation.config import EvaluationConfig, SamplingConfig

OUTPUTS = {"losses": torch.tensor([1.0]), "latents": torch.arange(1000.0)}


def feature_set(seed=0, caption="rain"):
    clips = [Clip(str(n), "a.mp4", 2.0 * n, 2.0 * n + SECONDS, caption, "test", -1.0, -20.0, 0.0) for n in range(2)]
    return build_feature_set(random_features(2, torch.Generator().manual_seed(seed)), clips, MODEL)


def test_every_input_names_another_file_and_the_batch_does_not():
    config = EvaluationConfig(Path("a.pt"), Path(), Path(), Path(), Path())
    features, names = feature_set(), [kept_file("base", feature_set(), config)]
    batched = replace(config, sampling=SamplingConfig(batch_size=3), output_dir=Path("other"), checkpoint=Path("b.pt"))
    assert kept_file("base", features, batched) == names[0]
    names += [kept_file("other", features, config), kept_file("base", feature_set(1), config)]
    names += [kept_file("base", feature_set(caption=""), config), kept_file("base", features.subset([0]), config)]
    for sampling in (SamplingConfig(seed=1), SamplingConfig(samples=2), SamplingConfig(num_steps=3)):
        names.append(kept_file("base", features, replace(config, sampling=sampling)))
    names.append(kept_file("base", features, replace(config, dtype=torch.bfloat16)))
    names.append(kept_file("base", features, replace(config, metrics=("mel_l1",))))
    assert len(set(names)) == len(names) == 10


def test_the_oldest_go_and_one_that_is_used_again_is_not_old(tmp_path, monkeypatch):
    files = [tmp_path / "kept" / f"{number}.safetensors" for number in range(4)]
    for number, file in enumerate(files[:3]):
        keep(file, OUTPUTS)
        os.utime(file, (number, number))
    monkeypatch.setattr(base_outputs, "MAX_BYTES", 2 * files[0].stat().st_size)
    assert torch.equal(read_kept(files[0])["latents"], OUTPUTS["latents"])
    keep(files[3], OUTPUTS)
    assert [file.is_file() for file in files] == [True, False, False, True]
    files[0].write_bytes(b"damaged")
    assert read_kept(files[0]) is None


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "kept").write_text("no folder")
    keep(tmp_path / "kept" / "a.safetensors", OUTPUTS)
    assert read_kept(tmp_path / "kept" / "a.safetensors") is None
