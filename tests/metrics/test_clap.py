"""CLAP's similarity against transformers' own outputs, on a tiny model with random weights in a folder."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from random_clap import make_clap
from torchaudio.functional import resample
from transformers import ClapModel, ClapProcessor
from web import serving

from mmaudio.errors import WeightsError
from mmaudio.metrics.clap import REPOSITORY, ClapJudge, find_clap
from mmaudio.metrics.pretrained_metrics import Candidate, Played
from mmaudio.metrics.search import Search

RATE = 16_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    make_clap(root / "clap")
    return root


@pytest.fixture(scope="module")
def judge(folder) -> ClapJudge:
    return ClapJudge(folder / "clap", CPU)


def noise(seconds: float, takes: int, rate: int = RATE) -> torch.Tensor:
    return 0.1 * torch.randn(takes, round(seconds * rate), generator=torch.Generator().manual_seed(0))


def reference(folder: Path, waves: torch.Tensor, caption: str) -> torch.Tensor:
    """transformers' own similarity of sounds at 48 kHz, none longer than 10 s."""
    model, processor = (kind.from_pretrained(folder / "clap") for kind in (ClapModel, ClapProcessor))
    inputs = processor(text=[caption], audio=list(waves.numpy()), sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits_per_audio[:, 0] / model.logit_scale_a.exp()


@pytest.mark.slow
def test_the_similarity_is_that_of_transformers_outputs(folder, judge):
    waves = noise(8, 2, 48_000)
    expected = reference(folder, waves, "a dog barks")
    torch.testing.assert_close(judge.similarity(waves, 48_000, "a dog barks"), expected, rtol=1e-4, atol=1e-6)
    assert (judge.similarity(waves, 48_000, "a ball") - expected).abs().min() > 1e-4


def test_sounds_are_resampled_and_what_is_after_ten_seconds_is_not_heard(folder, judge):
    long = noise(12, 1)
    expected = reference(folder, resample(long, RATE, 48_000)[:, : 10 * 48_000], "a ball")
    torch.testing.assert_close(judge.similarity(long, RATE, "a ball"), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(judge.similarity(long, 48_000, "a ball"), expected, rtol=1e-3)


def test_takes_are_averaged_and_without_a_caption_there_is_no_value(judge):
    sounds = {"base": noise(2, 2), "original": noise(2, 1)}
    said = judge.hear(Played(sounds, RATE, torch.zeros(0), "a ball bounces"))
    mean = judge.similarity(sounds["base"], RATE, "a ball bounces").mean()
    assert said.values["base"]["clap"] == pytest.approx(float(mean))
    assert math.isnan(judge.hear(Played(sounds, RATE, torch.zeros(0), " ")).values["base"]["clap"])


def test_it_is_found_in_a_folder_or_in_the_hub_s_cache_and_else_named(folder, tmp_path, monkeypatch):
    found = find_clap(Search("tiny_16k", folder))
    assert isinstance(found, Candidate) and found.load().tokenizer is not None
    absent = find_clap(Search("tiny_16k", tmp_path))
    assert isinstance(absent, str) and absent.startswith(f"needs {REPOSITORY}") and "--metrics clap" in absent

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    make_clap(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    cached = find_clap(Search("tiny_16k", tmp_path))
    assert isinstance(cached, Candidate) and cached.identity == found.identity


def test_another_model_s_identity_differs_and_a_broken_one_is_named(folder, tmp_path):
    make_clap(tmp_path / "clap")
    weights = tmp_path / "clap" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    found, whole = find_clap(Search("tiny_16k", tmp_path)), find_clap(Search("tiny_16k", folder))
    assert isinstance(found, Candidate) and isinstance(whole, Candidate) and found.identity != whole.identity
    with pytest.raises(WeightsError, match="cannot be read as a CLAP model"):
        found.load()


FETCH = """
from mmaudio import cli
from mmaudio.metrics.clap import find_clap
from mmaudio.metrics.search import Search
def main(arguments):
    found = find_clap(Search("tiny_16k", offline=cli.is_offline("--offline" in arguments), named=arguments))
    print(found if isinstance(found, str) else found.identity)
cli.run(main)
"""


@pytest.mark.slow
def test_it_is_fetched_through_the_hub_where_it_is_named_and_kept_there(folder, tmp_path):
    def find(*arguments: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        del environment["HF_HUB_OFFLINE"]
        command = [sys.executable, "-c", FETCH, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    files = {f"/{REPOSITORY}/resolve/main/{path.name}": path.read_bytes() for path in (folder / "clap").iterdir()}
    with serving(files=files) as site:
        assert find().startswith(f"needs {REPOSITORY}") and not site.asked
        fetched, asked = find("clap"), len(site.asked)
        assert find("clap", "--offline") == fetched and len(site.asked) == asked
    expected = find_clap(Search("tiny_16k", folder))
    assert isinstance(expected, Candidate) and fetched == expected.identity
