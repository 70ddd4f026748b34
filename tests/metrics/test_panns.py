"""Where PANNs' weights come from, and what is said of them where they are nowhere or broken."""

from dataclasses import replace

import pytest
import torch
from file_server import serve_files

from mmaudio.errors import WeightsError
from mmaudio.metrics import panns
from mmaudio.metrics.pretrained_metrics import ModelSearch, PretrainedSource
from mmaudio.weights import store as weights
from mmaudio.weights.registry import CNN14

METRICS = ("kl", "kad", "fd", "isc")


def test_panns_weights_are_loaded_from_a_folder_or_reported_missing(tmp_path):
    absent = panns.find_panns(ModelSearch("tiny_16k", tmp_path), METRICS)
    assert (
        isinstance(absent, str) and absent.startswith("needs Cnn14_16k_mAP=0.438.pth") and "--metrics kl,kad" in absent
    )
    torch.save({"model": {}}, tmp_path / CNN14.name)
    source = panns.find_panns(ModelSearch("tiny_16k", tmp_path), METRICS)
    assert isinstance(source, PretrainedSource) and source.identity == weights.file_sha256(tmp_path / CNN14.name)
    with pytest.raises(WeightsError, match="Cnn14 weights of another model"):
        source.load()
    (tmp_path / CNN14.name).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        panns.load_panns(tmp_path / CNN14.name, torch.device("cpu"))


def test_panns_weights_are_downloaded_only_where_a_metric_is_selected(monkeypatch):
    with serve_files(files={"/cnn14.pth": b"weights"}) as site:
        monkeypatch.setattr(panns, "CNN14", replace(CNN14, source=f"{site.address}/cnn14.pth", size=7))
        assert isinstance(
            panns.find_panns(ModelSearch("tiny_16k", offline=True, requested_metrics=("kl",)), METRICS), str
        )
        assert isinstance(panns.find_panns(ModelSearch("tiny_16k", offline=False), METRICS), str) and not site.requests
        source = panns.find_panns(ModelSearch("tiny_16k", offline=False, requested_metrics=("kad",)), METRICS)
    assert isinstance(source, PretrainedSource) and (weights.cache_folder() / CNN14.name).read_bytes() == b"weights"
    (weights.cache_folder() / CNN14.name).unlink()


def test_audio_is_prepared_as_for_published_values():
    """At 16 kHz, the first 8 s, without its mean."""
    heard = []

    def model(audio):
        heard.append(audio)
        return torch.zeros(len(audio), 2048), torch.zeros(len(audio), 527)

    sound = torch.sin(torch.arange(10 * 44_100) / 30)[None]
    for shift in (0.0, 0.4):
        panns.PannsMetric(model).compute_outputs(sound + shift, 44_100)
    assert heard[0].shape == (1, 8 * 16_000) and heard[0].mean().abs() < 1e-6
    torch.testing.assert_close(heard[0][:, 100:-100], heard[1][:, 100:-100], atol=1e-3, rtol=0)
