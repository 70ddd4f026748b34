"""CLAP as a metric: similarity of each sound of a clip to its caption, by transformers' ClapModel.

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
from mmaudio.metrics.metric_inputs import ClipAudio
from mmaudio.metrics.pretrained_metrics import ClipScores, ModelSearch, PretrainedSource
from mmaudio.weights import hub
from mmaudio.weights import store as weights

NAME = "clap"
FOLDER = "clap"
REPOSITORY = "laion/clap-htsat-unfused"
"""On the hub: the general-purpose model, 10 s at 48 kHz."""
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""The weights, whichever exists."""
WEIGHTS_BYTES = 615 * 10**6
SMALL_FILE_BYTES = 2 * 10**6
"""Upper estimate for each of the other files."""
CONFIG_FILES = ("config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MISSING_EXTRA = "transformers, which is not installed (pip install -e '.[clap]')"


class ClapMetric:
    """A CLAP model with its tokenizer and feature extractor, all from transformers."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel  # slow to import
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading: over before anybody can read it
        try:
            self.model: Any = ClapModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        finally:
            logging.enable_progress_bar()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.feature_extractor: Any = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        self.device = device

    def score(self, clip: ClipAudio) -> ClipScores:
        """Compute the similarity of each sound to the caption, the mean over its samples; NaN without a caption."""
        if not clip.caption.strip():
            return ClipScores({name: {NAME: math.nan} for name in clip.waveforms})
        similarities = {
            name: self.similarity(waveforms, clip.sample_rate, clip.caption)
            for name, waveforms in clip.waveforms.items()
        }
        return ClipScores({name: {NAME: float(per_sample.mean())} for name, per_sample in similarities.items()})

    @torch.inference_mode()
    def similarity(self, waveforms: Tensor, sample_rate: int, caption: str) -> Tensor:
        """Cosine, -1 to 1, of sounds (S, T) at `sample_rate` and a caption, (S,); higher is better.

        Audio after the model's longest input (10 s) is cut off here: the model would cut at random.
        """
        text = self.tokenizer([caption], truncation=True, return_tensors="pt").to(self.device)
        model_rate = self.feature_extractor.sampling_rate
        resampled = resample(waveforms, sample_rate, model_rate)[:, : self.feature_extractor.nb_max_samples]
        similarities = []
        for audio in resampled.cpu().numpy():  # one by one: in a batch, a fusing model marks one at random as long
            inputs = self.feature_extractor(audio, sampling_rate=model_rate, return_tensors="pt").to(self.device)
            output = self.model(**text, **inputs)
            similarities.append(torch.cosine_similarity(output.audio_embeds, output.text_embeds)[0])
        return torch.stack(similarities).float().cpu()


def find_clap(search: ModelSearch, metrics: tuple[str, ...]) -> PretrainedSource | str:
    """Find CLAP's folder, downloaded where that is allowed; the reason where it is absent."""
    if importlib.util.find_spec("transformers") is None:
        return f"needs {MISSING_EXTRA}"
    try:
        folder = find_folder(search, metrics)
    except MMAudioError as error:
        return str(error)
    return PretrainedSource(metrics, _identity(folder), lambda: _load(folder, search.device))


def find_folder(search: ModelSearch, metrics: tuple[str, ...]) -> Path:
    """The folder of the model, downloaded where that is allowed; WeightsError where it is absent."""
    for folder in _folders(search.weights):
        if (folder / CONFIG_FILES[0]).is_file():
            return folder
    if search.may_download(metrics):
        for name in (*CONFIG_FILES, *TOKENIZER_FILES):
            hub.fetch_file(REPOSITORY, (name,), SMALL_FILE_BYTES)
        return hub.fetch_file(REPOSITORY, WEIGHTS_FILES, WEIGHTS_BYTES).parent
    cached = hub.find_cached(REPOSITORY, WEIGHTS_FILES)
    if cached is None:
        raise WeightsError(
            f"needs {REPOSITORY}, which is neither in the hub's cache nor in {', '.join(map(str, _folders(None)))}; "
            f"--metrics {NAME} without --offline fetches it"
        )
    return cached.parent


def _folders(user_folder: Path | None) -> list[Path]:
    parents = [*([] if user_folder is None else [user_folder]), *map(Path, weights.FOLDERS)]
    return [parent / FOLDER for parent in parents]


def _load(folder: Path, device: torch.device) -> ClapMetric:
    try:
        return ClapMetric(folder, device)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{folder}: cannot be read as a CLAP model ({reason}); copy or fetch it again") from error


def _identity(folder: Path) -> str:
    return hashlib.sha256(" ".join(_file_hashes(folder)).encode()).hexdigest()


def _file_hashes(folder: Path) -> Iterator[str]:
    for name in (*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHTS_FILES):
        if (folder / name).is_file():
            yield f"{name} {weights.file_sha256(folder / name)}"
