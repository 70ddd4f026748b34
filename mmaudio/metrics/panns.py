"""PANNs as a judge: the classes that Cnn14 hears in each sound, and its features, for KL and the metrics of sets.

Source: arXiv 1912.10211; its authors publish the weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from mmaudio.errors import MMAudioError, WeightsError
from mmaudio.features.cnn14 import RATE, Cnn14
from mmaudio.metrics.distribution import kl_divergence
from mmaudio.metrics.pretrained_metrics import Array, Candidate, Opinion, Played
from mmaudio.metrics.registry import ORIGINAL
from mmaudio.metrics.search import Search
from mmaudio.metrics.set_comparison import CLASSES, FEATURES
from mmaudio.weights import store as weights
from mmaudio.weights.download import download
from mmaudio.weights.registry import CNN14

METRICS = ("kl", "kad", "fd", "isc")
PUBLISHED = "Zenodo record 3987831"
"""Where, for a report: that names no address on the network."""


class PannsJudge:
    """Cnn14 on one device."""

    def __init__(self, model: Cnn14) -> None:
        self.model = model

    def hear(self, played: Played) -> Opinion:
        """KL of each sound's classes from the original's, the mean over its takes; and the rows for set metrics."""
        rows = {name: self.rows(waves, played.rate) for name, waves in played.waveforms.items()}
        classes = {name: np.asarray(own[CLASSES], np.float64) for name, own in rows.items()}  # of the original: (1, K)
        divergences = {name: kl_divergence(own, classes[ORIGINAL]) for name, own in classes.items()}
        return Opinion({name: {"kl": float(takes.mean())} for name, takes in divergences.items()}, rows)

    @torch.inference_mode()
    def rows(self, waveforms: Tensor, rate: int) -> dict[str, Array]:
        """Features (takes, 2048) and class probabilities (takes, 527) of sounds (takes, samples)."""
        features, classes = self.model(resample(waveforms, rate, RATE))
        return {FEATURES: features.cpu().numpy(), CLASSES: classes.cpu().numpy()}


def find_panns(search: Search) -> Candidate | str:
    """The judge where its file is there and sound or may be fetched, else why there is none."""
    try:
        path = find_file(search)
        return Candidate(METRICS, weights.file_hash(path), lambda: load_panns(path, search.device))
    except MMAudioError as error:
        return str(error)


def find_file(search: Search) -> Path:
    """Where the weights are, fetched where that is allowed; WeightsError where they are nowhere."""
    places = [*([] if search.weights is None else [search.weights]), *map(Path, weights.FOLDERS), weights.cache()]
    for place in places:
        if (place / CNN14.name).is_file():
            return place / CNN14.name
    if not any(search.fetch(name) for name in METRICS):
        raise WeightsError(
            f"needs {CNN14.name} ({PUBLISHED}), which is not in {', '.join(map(str, places))}; --metrics kl,kad "
            "without --offline fetches it"
        )
    weights.check_room([CNN14])
    target = weights.cache() / CNN14.name
    download(CNN14.source, target, CNN14.md5)
    return target


def load_panns(path: Path, device: torch.device) -> PannsJudge:
    """Cnn14 with the weights at `path`, frozen; WeightsError where they cannot be read or are another model's."""
    with torch.device("meta"):
        model = Cnn14()
    model.load_released(weights.read_state(path, CNN14.key))
    model.to(device).eval().requires_grad_(False)
    return PannsJudge(model)
