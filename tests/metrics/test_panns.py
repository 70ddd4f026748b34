"""Where PANNs' weights come from, and what is said of them where they are nowhere or broken."""

from dataclasses import replace

import pytest
import torch
from web import serving

from mmaudio.errors import WeightsError
from mmaudio.metrics import panns
from mmaudio.metrics.pretrained_metrics import Candidate
from mmaudio.metrics.search import Search
from mmaudio.weights import store as weights
from mmaudio.weights.registry import CNN14


def test_weights_are_found_in_a_folder_and_are_otherwise_named(tmp_path):
    absent = panns.find_panns(Search("tiny_16k", tmp_path))
    assert isinstance(absent, str) and absent.startswith("needs Cnn14_mAP=0.431.pth") and "--metrics kl,kad" in absent
    torch.save({"model": {}}, tmp_path / CNN14.name)
    found = panns.find_panns(Search("tiny_16k", tmp_path))
    assert isinstance(found, Candidate) and found.identity == weights.file_hash(tmp_path / CNN14.name)
    with pytest.raises(WeightsError, match="Cnn14 weights of another model"):
        found.load()
    (tmp_path / CNN14.name).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        panns.load_panns(tmp_path / CNN14.name, torch.device("cpu"))


def test_weights_are_fetched_where_one_of_their_metrics_is_named(monkeypatch):
    with serving(files={"/cnn14.pth": b"weights"}) as site:
        monkeypatch.setattr(panns, "CNN14", replace(CNN14, source=f"{site.address}/cnn14.pth", size=7))
        assert isinstance(panns.find_panns(Search("tiny_16k", offline=True, named=("kl",))), str)
        assert isinstance(panns.find_panns(Search("tiny_16k", offline=False)), str) and not site.asked
        found = panns.find_panns(Search("tiny_16k", offline=False, named=("kad",)))
    assert isinstance(found, Candidate) and (weights.cache() / CNN14.name).read_bytes() == b"weights"
    (weights.cache() / CNN14.name).unlink()
