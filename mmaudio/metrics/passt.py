"""PaSST as metrics: KL divergence of the classes that it recognises, and its embeddings for the Frechet distance.

Audio is prepared as for published values: mono at 32 kHz, the first 8 s without their mean, silence up to the 10 s that
the model was trained on. The network is the package hear21passt's (an extra); its weights are a file that the user
gives, since the package would fetch them unchecked.

Source: arXiv 2110.05069; its authors publish the weights.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import resample

from mmaudio.metrics.distribution import kl_divergence
from mmaudio.metrics.metric_inputs import ORIGINAL, ClipAudio
from mmaudio.metrics.pretrained_metrics import Array, ClipScores, ModelSearch, PretrainedSource
from mmaudio.model.state_dict import load_strict
from mmaudio.weights import store as weights

FILE = "passt-s-f128-p16-s10-ap.476-swa.pt"
PUBLISHED = "release v0.0.1-audioset of kkoutini/PaSST on GitHub"
"""Source in words, for a report: that holds no address on the network."""
MISSING_EXTRA = "hear21passt, which is not installed (pip install -e '.[passt]')"
EMBEDDINGS = "PaSST embeddings"
"""Kind of the rows that it gives for the metrics of whole sets."""
SAMPLE_RATE = 32_000
SECONDS = 8.0
"""Audio after so many seconds is left out."""
MODEL_SECONDS = 10
"""Length of the model's input."""
MEL_SETTINGS = {"n_mels": 128, "sr": SAMPLE_RATE, "win_length": 800, "hopsize": 320, "n_fft": 1024, "fmax": 15_000.0}
N_CLASSES = 527
DEPTH = 12
"""Transformer blocks."""


class PasstMetric:
    """PaSST-S on one device."""

    def __init__(self, mel: nn.Module, network: nn.Module) -> None:
        self.mel = mel
        self.network = network

    def score(self, clip: ClipAudio) -> ClipScores:
        """Compute each sound's KL divergence from the original, the mean over its samples, and its embeddings."""
        outputs = {name: self.compute_outputs(x, clip.sample_rate) for name, x in clip.waveforms.items()}
        reference = outputs[ORIGINAL][1].astype(np.float64)  # (1, classes)
        divergences = {
            name: kl_divergence(logits.astype(np.float64), reference) for name, (_, logits) in outputs.items()
        }
        return ClipScores(
            {name: {"kl_passt": float(values.mean())} for name, values in divergences.items()},
            {name: {EMBEDDINGS: embeddings} for name, (embeddings, _) in outputs.items()},
        )

    @torch.inference_mode()
    def compute_outputs(self, waveforms: Tensor, sample_rate: int) -> tuple[Array, Array]:
        """Compute embeddings (S, 768) and logits of the classes (S, 527) of sounds (S, T)."""
        audio = resample(waveforms, sample_rate, SAMPLE_RATE)[:, : round(SECONDS * SAMPLE_RATE)]
        audio = audio - audio.mean(1, keepdim=True)
        audio = F.pad(audio, (0, MODEL_SECONDS * SAMPLE_RATE - audio.shape[1]))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it draws numbers that it does not use
            warnings.simplefilter("ignore")  # its own: an old name of autocast, and two frames too many
            logits, embeddings = self.network(self.mel(audio)[:, None])
        return embeddings.cpu().numpy(), logits.cpu().numpy()


def find_passt(search: ModelSearch, metrics: tuple[str, ...]) -> PretrainedSource | str:
    """Find PaSST's file; the reason where it or the package is absent."""
    if importlib.util.find_spec("hear21passt") is None:
        return f"needs {MISSING_EXTRA}"
    path = search.find(FILE)
    if path is None:
        return f"needs {FILE} ({PUBLISHED}), which is not in {', '.join(map(str, search.folders))}; put it there"
    return PretrainedSource(metrics, weights.file_sha256(path), lambda: load_passt(path, search.device))


def load_passt(path: Path, device: torch.device) -> PasstMetric:
    """Load PaSST with the weights at `path`, frozen; WeightsError where they are unreadable or another model's."""
    from hear21passt.models import passt  # an extra, slow to import
    from hear21passt.models.preprocess import AugmentMelSTFT

    passt.first_RUN = False  # or it prints every shape
    mel: Any = AugmentMelSTFT(**MEL_SETTINGS)
    with torch.random.fork_rng(devices=[]):
        network: Any = passt.PaSST(stride=10, num_classes=N_CLASSES, depth=DEPTH, distilled=True)
    load_strict(network, weights.read_state_dict(path), "PaSST")
    for module in (mel, network):
        module.to(device).eval().requires_grad_(False)
    return PasstMetric(mel, network)
