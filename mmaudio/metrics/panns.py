"""PANNs as metrics: KL divergence of the classes that Cnn14 recognises, and its outputs for the metrics of whole sets.

Audio is prepared as for published values: mono at 16 kHz, the first 8 s, its mean removed.

Source: arXiv 1912.10211; its authors publish the weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from mmaudio.errors import MMAudioError, WeightsError
from mmaudio.features.cnn14 import SAMPLE_RATE, Cnn14
from mmaudio.metrics.distribution import kl_divergence
from mmaudio.metrics.metric_inputs import ORIGINAL, ClipAudio
from mmaudio.metrics.pretrained_metrics import (
    EMBEDDINGS,
    LOGITS,
    Array,
    ClipScores,
    ModelSearch,
    PretrainedSource,
)
from mmaudio.weights import store as weights
from mmaudio.weights.download import download
from mmaudio.weights.registry import CNN14

PUBLISHED = "Zenodo record 3987831"
"""Source in words, for a report: that holds no address on the network."""
SECONDS = 8.0
"""Audio after so many seconds is left out."""


class PannsMetric:
    """Cnn14 on one device."""

    def __init__(self, model: Cnn14) -> None:
        self.model = model

    def score(self, clip: ClipAudio) -> ClipScores:
        """Compute each sound's KL divergence from the original, the mean over its samples, and its model outputs."""
        outputs = {name: self.compute_outputs(x, clip.sample_rate) for name, x in clip.waveforms.items()}
        logits = {name: np.asarray(arrays[LOGITS], np.float64) for name, arrays in outputs.items()}
        reference = logits[ORIGINAL]  # (1, classes)
        divergences = {name: kl_divergence(values, reference) for name, values in logits.items()}
        return ClipScores({name: {"kl": float(values.mean())} for name, values in divergences.items()}, outputs)

    @torch.inference_mode()
    def compute_outputs(self, waveforms: Tensor, sample_rate: int) -> dict[str, Array]:
        """Compute embeddings (S, 2048) and logits of the classes (S, 527) of sounds (S, T)."""
        audio = resample(waveforms, sample_rate, SAMPLE_RATE)[:, : round(SECONDS * SAMPLE_RATE)]
        embeddings, logits = self.model(audio - audio.mean(1, keepdim=True))
        return {EMBEDDINGS: embeddings.cpu().numpy(), LOGITS: logits.cpu().numpy()}


def find_panns(search: ModelSearch, metrics: tuple[str, ...]) -> PretrainedSource | str:
    """Find Cnn14's file, downloaded where that is allowed; the reason where it is absent or damaged."""
    try:
        path = find_file(search, metrics)
        return PretrainedSource(metrics, weights.file_sha256(path), lambda: load_panns(path, search.device))
    except MMAudioError as error:
        return str(error)


def find_file(search: ModelSearch, metrics: tuple[str, ...]) -> Path:
    """The path of the weights, downloaded where that is allowed; WeightsError where they are absent."""
    path = search.find(CNN14.name)
    if path is not None:
        return path
    if not search.may_download(metrics):
        raise WeightsError(
            f"needs {CNN14.name} ({PUBLISHED}), which is not in {', '.join(map(str, search.folders))}; "
            "--metrics kl,kad without --offline fetches it"
        )
    weights.check_disk_space([CNN14])
    target = weights.cache_folder() / CNN14.name
    download(CNN14.source, target, CNN14.md5, size=CNN14.size)
    return target


def load_panns(path: Path, device: torch.device) -> PannsMetric:
    """Load Cnn14 with the weights at `path`, frozen; WeightsError where they are unreadable or another model's."""
    with torch.device("meta"):
        model = Cnn14()
    model.load_released(weights.read_state_dict(path, CNN14.key))
    model.to(device).eval().requires_grad_(False)
    return PannsMetric(model)
