"""CLAP as a judge: how well each sound of a clip fits its caption. transformers' ClapModel computes it.

A local copy of the model is the folder `clap` in a folder of weights, as transformers saves it; otherwise it lies in
the hub's cache.

Source: arXiv 2211.06687 (LAION's CLAP).
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchaudio.functional import resample

from mmaudio.errors import MMAudioError, WeightsError
from mmaudio.metrics.pretrained_metrics import Candidate, Opinion, Played
from mmaudio.metrics.search import Search
from mmaudio.weights import hub
from mmaudio.weights import store as weights

NAME = "clap"
FOLDER = "clap"
REPOSITORY = "laion/clap-htsat-unfused"
"""On the hub: the general-purpose model, 10 s at 48 kHz."""
VALUES = ("model.safetensors", "pytorch_model.bin")
"""The weights, whichever is there."""
SIZE = 615 * 10**6
"""Bytes of the weights."""
SMALL = 2 * 10**6
"""Bytes, at most about, of each file beside them."""
SETTINGS = ("config.json", "preprocessor_config.json")
WORDS = ("tokenizer.json", "tokenizer_config.json")
EXTRA = "transformers, which is not installed (pip install -e '.[clap]')"


class ClapJudge:
    """A CLAP model with what prepares its inputs, all of transformers."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel  # slow to import
        from transformers.utils import logging

        logging.disable_progress_bar()  # that of loading, over before it is read
        try:
            self.model: Any = ClapModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        finally:
            logging.enable_progress_bar()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.picture: Any = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        self.device = device

    def hear(self, played: Played) -> Opinion:
        """The similarity of each sound to the caption, the mean over its takes; NaN without a caption."""
        known = bool(played.caption.strip())
        return Opinion(
            {
                name: {NAME: float(self.similarity(waves, played.rate, played.caption).mean()) if known else math.nan}
                for name, waves in played.waveforms.items()
            }
        )

    @torch.inference_mode()
    def similarity(self, waveforms: Tensor, rate: int, caption: str) -> Tensor:
        """Cosine, -1 to 1, of sounds (takes, samples) at `rate` and a caption, (takes,); higher is better.

        What is after the model's longest sound (10 s) is not heard: a longer one would be cut at random.
        """
        text = self.tokenizer([caption], truncation=True, return_tensors="pt").to(self.device)
        own = self.picture.sampling_rate
        sounds = resample(waveforms, rate, own)[:, : self.picture.nb_max_samples].cpu().numpy()
        found = []
        for sound in sounds:  # one by one: of several short ones, a fusing model marks one at random as long
            features = self.picture(sound, sampling_rate=own, return_tensors="pt").to(self.device)
            out = self.model(**text, **features)
            found.append(torch.cosine_similarity(out.audio_embeds, out.text_embeds)[0])
        return torch.stack(found).float().cpu()


def find_clap(search: Search) -> Candidate | str:
    """The judge where its files are there or may be fetched, else why there is none."""
    if importlib.util.find_spec("transformers") is None:
        return f"needs {EXTRA}"
    try:
        folder = find_folder(search)
    except MMAudioError as error:
        return str(error)
    return Candidate((NAME,), _identity(folder), lambda: _load(folder, search.device))


def find_folder(search: Search) -> Path:
    """Where the model lies, fetched where that is allowed; WeightsError where it is nowhere."""
    for place in _folders(search.weights):
        if (place / SETTINGS[0]).is_file():
            return place
    if search.fetch(NAME):
        for name in (*SETTINGS, *WORDS):
            hub.fetch(REPOSITORY, (name,), SMALL)
        return hub.fetch(REPOSITORY, VALUES, SIZE).parent
    found = hub.cached(REPOSITORY, VALUES)
    if found is None:
        raise WeightsError(
            f"needs {REPOSITORY}, which is neither in the hub's cache nor in {', '.join(map(str, _folders(None)))}; "
            f"--metrics {NAME} without --offline fetches it"
        )
    return found.parent


def _folders(own: Path | None) -> list[Path]:
    return [place / FOLDER for place in ([] if own is None else [own]) + [Path(name) for name in weights.FOLDERS]]


def _load(folder: Path, device: torch.device) -> ClapJudge:
    try:
        return ClapJudge(folder, device)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{folder}: cannot be read as a CLAP model ({reason}); copy or fetch it again") from error


def _identity(folder: Path) -> str:
    return hashlib.sha256(" ".join(_hashes(folder)).encode()).hexdigest()


def _hashes(folder: Path) -> Iterator[str]:
    for name in (*SETTINGS, *WORDS, *VALUES):
        if (folder / name).is_file():
            yield f"{name} {weights.file_hash(folder / name)}"
