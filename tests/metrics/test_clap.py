"""CLAP's similarity against transformers' own outputs, on a tiny model with random weights in a folder."""

import math
from pathlib import Path

import pytest
import torch
from file_server import serve_files
from hub_server import use_hub
from huggingface_hub import constants
from random_clap import write_random_clap
from torchaudio.functional import resample
from transformers import ClapModel, ClapProcessor

from mmaudio import cli
from mmaudio.errors import WeightsError
from mmaudio.metrics.clap import REPOSITORY, ClapMetric, find_clap
from mmaudio.metrics.metric_inputs import ClipAudio
from mmaudio.metrics.pretrained_metrics import ModelSearch, PretrainedSource

METRICS = ("clap",)
RATE = 16_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    write_random_clap(root / "clap")
    return root


@pytest.fixture(scope="module")
def clap(folder) -> ClapMetric:
    return ClapMetric(folder / "clap", CPU)


def noise(seconds: float, samples: int, rate: int = RATE) -> torch.Tensor:
    return 0.1 * torch.randn(samples, round(seconds * rate), generator=torch.Generator().manual_seed(0))


def reference(folder: Path, waves: torch.Tensor, caption: str) -> torch.Tensor:
    """transformers' own similarity of sounds at 48 kHz, none longer than 10 s."""
    model, processor = (kind.from_pretrained(folder / "clap") for kind in (ClapModel, ClapProcessor))
    inputs = processor(text=[caption], audio=list(waves.numpy()), sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits_per_audio[:, 0] / model.logit_scale_a.exp()


@pytest.mark.slow
def test_the_similarity_is_that_of_transformers_outputs(folder, clap):
    waves = noise(8, 2, 48_000)
    expected = reference(folder, waves, "a dog barks")
    torch.testing.assert_close(clap.similarity(waves, 48_000, "a dog barks"), expected, rtol=1e-4, atol=1e-6)
    assert (clap.similarity(waves, 48_000, "a ball") - expected).abs().min() > 1e-4


@pytest.mark.slow
def test_audio_is_resampled_and_cut_off_after_ten_seconds(folder, clap):
    long = noise(12, 1)
    expected = reference(folder, resample(long, RATE, 48_000)[:, : 10 * 48_000], "a ball")
    torch.testing.assert_close(clap.similarity(long, RATE, "a ball"), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(clap.similarity(long, 48_000, "a ball"), expected, rtol=1e-3)


@pytest.mark.slow
def test_similarity_is_averaged_over_samples_and_needs_a_caption(clap):
    sounds = {"base": noise(2, 2), "original": noise(2, 1)}
    scores = clap.score(ClipAudio(sounds, RATE, torch.zeros(0), "a ball bounces"))
    mean = clap.similarity(sounds["base"], RATE, "a ball bounces").mean()
    assert scores.values["base"]["clap"] == pytest.approx(float(mean))
    assert math.isnan(clap.score(ClipAudio(sounds, RATE, torch.zeros(0), " ")).values["base"]["clap"])


@pytest.mark.slow
def test_clap_is_loaded_from_a_folder_or_the_hubs_cache(folder, tmp_path, monkeypatch):
    source = find_clap(ModelSearch("tiny_16k", folder), METRICS)
    assert isinstance(source, PretrainedSource) and source.load().tokenizer is not None
    absent = find_clap(ModelSearch("tiny_16k", tmp_path), METRICS)
    assert isinstance(absent, str) and absent.startswith(f"needs {REPOSITORY}") and "--metrics clap" in absent

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    write_random_clap(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    cached = find_clap(ModelSearch("tiny_16k", tmp_path), METRICS)
    assert isinstance(cached, PretrainedSource) and cached.identity == source.identity


def test_another_clap_has_another_identity_and_a_broken_one_is_an_error(folder, tmp_path):
    write_random_clap(tmp_path / "clap")
    weights = tmp_path / "clap" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    broken, whole = (
        find_clap(ModelSearch("tiny_16k", tmp_path), ("clap",)),
        find_clap(ModelSearch("tiny_16k", folder), ("clap",)),
    )
    assert (
        isinstance(broken, PretrainedSource)
        and isinstance(whole, PretrainedSource)
        and broken.identity != whole.identity
    )
    with pytest.raises(WeightsError, match="cannot be read as a CLAP model"):
        broken.load()


@pytest.mark.slow
def test_clap_is_downloaded_only_where_its_metric_is_selected(folder, tmp_path, monkeypatch):
    def find(*metrics: str, offline: bool = False) -> PretrainedSource | str:
        search = ModelSearch("tiny_16k", offline=cli.is_offline(offline), requested_metrics=metrics)
        return find_clap(search, METRICS)

    files = {f"/{REPOSITORY}/resolve/main/{path.name}": path.read_bytes() for path in (folder / "clap").iterdir()}
    with serve_files(files=files) as site:
        use_hub(site, tmp_path / "hub", monkeypatch)
        absent = find()
        assert isinstance(absent, str) and absent.startswith(f"needs {REPOSITORY}") and not site.requests
        fetched, requests = find("clap"), len(site.requests)
        again = find("clap", offline=True)
        assert requests and len(site.requests) == requests
    expected = find_clap(ModelSearch("tiny_16k", folder), METRICS)
    identities = [source.identity for source in (fetched, again, expected) if isinstance(source, PretrainedSource)]
    assert len(identities) == 3 and len(set(identities)) == 1
