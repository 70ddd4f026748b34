"""Cnn14 against panns_inference's, with the same arbitrary weights; a file of another model is named."""

import csv
from types import ModuleType

import pytest
import torch

from mmaudio.errors import DataError, WeightsError
from mmaudio.features.cnn14 import COMPUTED_PREFIXES, FEATURE_DIM, MIN_SAMPLES, N_CLASSES, SAMPLE_RATE, Cnn14


@pytest.fixture(scope="module")
def panns(tmp_path_factory) -> ModuleType:
    """panns_inference.models; its package fetches a table of class names unless it finds one at home."""
    home = tmp_path_factory.mktemp("home")
    (home / "panns_data").mkdir()
    with (home / "panns_data" / "class_labels_indices.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("index", "mid", "name"), *((n, f"/m/{n}", f"class {n}") for n in range(N_CLASSES))]
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        import panns_inference.models

    return panns_inference.models


@pytest.fixture(scope="module")
def reference(panns) -> torch.nn.Module:
    """Its Cnn14 with arbitrary weights that keep the signal's size, and arbitrary statistics of the normalisations."""
    model = panns.Cnn14(SAMPLE_RATE, 512, 160, 64, 50, 8_000, N_CLASSES).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.startswith(COMPUTED_PREFIXES) or not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            value.copy_(1 + 0.1 * noise.abs())
        else:
            value.copy_(0.1 * noise)
    model.bn0.running_mean -= 40  # decibels
    model.bn0.running_var += 400
    return model


def waveforms() -> torch.Tensor:
    """Noise and a chirp, 2 s."""
    t = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    noise = 0.1 * torch.randn(len(t), generator=torch.Generator().manual_seed(1))
    return torch.stack([noise, 0.5 * torch.sin(2 * torch.pi * (200 * t + 900 * t**2))])


@pytest.mark.slow
def test_features_and_classes_are_those_of_panns_inference(reference):
    model = Cnn14().eval()
    model.load_released(reference.state_dict())
    with torch.no_grad():
        features, logits = model(waveforms())
        expected = reference(waveforms())
    assert features.shape == (2, FEATURE_DIM) and logits.shape == (2, N_CLASSES)
    torch.testing.assert_close(features, expected["embedding"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits.sigmoid(), expected["clipwise_output"], rtol=1e-3, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 1e-2


@pytest.mark.slow
def test_keys_are_those_of_the_released_file_without_what_is_computed(reference):
    with torch.device("meta"):
        model = Cnn14()
    expected_shapes = {
        key: value.shape for key, value in reference.state_dict().items() if not key.startswith(COMPUTED_PREFIXES)
    }
    assert {key: value.shape for key, value in model.state_dict().items()} == expected_shapes
    assert len(expected_shapes) < len(reference.state_dict())


def test_a_foreign_file_and_a_short_waveform_are_refused():
    with torch.device("meta"):
        model = Cnn14()
    state = dict(model.state_dict())
    del state["fc1.bias"]
    with pytest.raises(WeightsError, match=r"Cnn14 weights of another model: 1 missing \(fc1.bias"):
        model.load_released(state)
    with pytest.raises(DataError, match=r"0\.31 s or more"):
        model(torch.zeros(1, MIN_SAMPLES - 1))
