"""PaSST against its package's own model with the same arbitrary weights; its file, and how audio is prepared."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch.nn.functional import pad
from torchaudio.functional import resample

from mmaudio.errors import WeightsError
from mmaudio.metrics import passt
from mmaudio.metrics.metric_inputs import ADAPTED, BASE, ORIGINAL, ClipAudio
from mmaudio.metrics.pretrained_metrics import ModelSearch, PretrainedSource
from mmaudio.metrics.pretrained_search import find_pretrained_metrics, load_metric_models
from mmaudio.weights import store as weights

METRICS = ("kl_passt", "fd_passt")


def sounds() -> torch.Tensor:
    """Noise and a chirp, 9 s at 16 kHz."""
    t = torch.arange(9 * 16_000) / 16_000
    noise = 0.1 * torch.randn(len(t), generator=torch.Generator().manual_seed(1))
    return torch.stack([noise, 0.3 * torch.sin(2 * torch.pi * (200 * t + 300 * t**2)) + 0.05])


@pytest.fixture
def reference(monkeypatch):
    """The package's own model with arbitrary weights, nothing fetched, and one of its blocks: all are alike."""
    from hear21passt.base import get_basic_model
    from hear21passt.models.helpers import vit_helpers

    monkeypatch.setattr(vit_helpers, "load_pretrained", lambda *_, **__: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_basic_model(mode="all").eval()
        assert len(model.net.blocks) == passt.DEPTH
        model.net.blocks = model.net.blocks[:1]
        monkeypatch.setattr(passt, "DEPTH", 1)
        for value in model.net.parameters():
            value.data += 0.02 * torch.randn(value.shape)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Input image size:UserWarning", "ignore:.*autocast:FutureWarning")
def test_embeddings_and_logits_are_those_of_the_package(reference, tmp_path, capsys):
    torch.save(reference.net.state_dict(), tmp_path / passt.FILE)
    search = ModelSearch("tiny_16k", tmp_path, requested_metrics=METRICS)
    sources = find_pretrained_metrics(search, METRICS)
    assert sources.identities == dict.fromkeys(METRICS, weights.file_sha256(tmp_path / passt.FILE))
    capsys.readouterr()
    state = torch.random.get_rng_state()
    (metric,) = load_metric_models(sources, METRICS).pretrained
    noise, chirp = sounds()
    scores = metric.score(ClipAudio({ORIGINAL: noise[None], BASE: chirp[None], ADAPTED: noise[None]}, 16_000, None))
    assert torch.equal(torch.random.get_rng_state(), state) and capsys.readouterr().out == ""

    audio = resample(sounds(), 16_000, 32_000)[:, : 8 * 32_000]
    with torch.no_grad():
        rows = reference(pad(audio - audio.mean(1, keepdim=True), (0, 2 * 32_000))).numpy()
    for sound, row in ((ORIGINAL, rows[0]), (BASE, rows[1])):
        np.testing.assert_allclose(scores.model_outputs[sound][passt.EMBEDDINGS][0], row[527:], rtol=1e-3, atol=1e-4)
    original, base = softmax(rows[:, :527].astype(np.float64), axis=1)
    expected = entropy(original, base)
    assert expected > 1e-3 and scores.values[BASE]["kl_passt"] == pytest.approx(expected, rel=1e-2)
    assert scores.values[ORIGINAL]["kl_passt"] == scores.values[ADAPTED]["kl_passt"] == 0


@pytest.mark.slow
def test_a_damaged_file_and_that_of_another_model_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(passt, "DEPTH", 1)
    (tmp_path / passt.FILE).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        passt.load_passt(tmp_path / passt.FILE, torch.device("cpu"))
    torch.save({"head.0.bias": torch.zeros(768)}, tmp_path / passt.FILE)
    with pytest.raises(WeightsError, match="PaSST weights of another model"):
        passt.load_passt(tmp_path / passt.FILE, torch.device("cpu"))


def test_its_file_is_the_user_s_and_its_package_an_extra(tmp_path, monkeypatch):
    search = ModelSearch("tiny_16k", tmp_path, offline=False, requested_metrics=METRICS)
    absent = passt.find_passt(search, METRICS)
    assert isinstance(absent, str) and absent.startswith(f"needs {passt.FILE} (release") and str(tmp_path) in absent
    (tmp_path / passt.FILE).write_bytes(b"weights")
    source = passt.find_passt(search, METRICS)
    assert isinstance(source, PretrainedSource) and source.metrics == METRICS
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[passt]'" in passt.find_passt(search, METRICS)


def test_audio_is_prepared_as_for_published_values():
    """At 32 kHz, the first 8 s without their mean, silence up to 10 s."""
    inputs = []

    def spectrogram(audio):
        inputs.append(audio)
        return torch.zeros(len(audio), 128, 4)

    def network(spectrograms):
        return torch.zeros(len(spectrograms), 527), torch.zeros(len(spectrograms), 768)

    metric = passt.PasstMetric(spectrogram, network)
    embeddings, logits = metric.compute_outputs(sounds() + 0.2, 16_000)
    assert embeddings.shape == (2, 768) and logits.shape == (2, 527)
    (audio,) = inputs
    assert audio.shape == (2, 320_000) and not audio[:, 256_000:].any()
    torch.testing.assert_close(audio[:, :256_000].mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    metric.compute_outputs(sounds()[:, :16_000], 16_000)
    assert inputs[1].shape == (2, 320_000) and not inputs[1][:, 32_000:].any()
