"""PANNs' Cnn14: which of AudioSet's 527 classes a sound holds, and the features that say so.

Source: arXiv 1912.10211 (PANNs); keys as in the released checkpoint, trained at 32 kHz.

Legend: B sounds, T frames, M mel bands, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from mmaudio.errors import DataError
from mmaudio.model.state_dict import Released, load_reconciled

RATE = 32_000
N_FFT, HOP, MELS = 1024, 320, 64
RANGE = (50.0, 14_000.0)
"""Hertz of the mel bands."""
LEAST_POWER = 1e-10
"""Mel power that smaller ones count as."""
WIDTHS = (64, 128, 256, 512, 1024, 2048)
"""Channels of the blocks."""
FEATURES = 2048
CLASSES = 527
COMPUTED = ("spectrogram_extractor.", "logmel_extractor.")
"""Prefixes of the released file that hold the Fourier and mel matrices, which are computed here."""
FEWEST = HOP * (2 ** (len(WIDTHS) - 1) - 1)
"""Samples that give a frame for each halving."""


class Block(nn.Module):
    """Two convolutions, normalised, then the mean of every `pool` x `pool` cells."""

    def __init__(self, before: int, width: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, T, M) -> (B, width, T / pool, M / pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.avg_pool2d(F.relu(self.bn2(self.conv2(x))), self.pool)


class Cnn14(Released):
    """The tagger, for inference: it has no augmentation and no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(MELS)
        for number, (before, width) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"conv_block{number}", Block(before, width, 1 if number == len(WIDTHS) else 2))
        self.fc1 = nn.Linear(WIDTHS[-1], FEATURES)
        self.fc_audioset = nn.Linear(FEATURES, CLASSES)

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Mono sounds at 32 kHz (B, samples) -> features (B, 2048) and each class's probability (B, 527).

        Raises DataError for sounds that are too short for a feature.
        """
        if waveforms.shape[1] < FEWEST:
            raise DataError(f"{waveforms.shape[1]} samples: Cnn14 takes sounds of {FEWEST / RATE:.2f} s or more")
        x = log_mel(waveforms)  # (B, T, M)
        x = rearrange(self.bn0(rearrange(x, "b t m -> b m t 1")), "b m t 1 -> b 1 t m")
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"conv_block{number}")(x)
        x = x.mean(3)  # over the frequency
        features = F.relu(self.fc1(x.amax(2) + x.mean(2)))
        return features, self.fc_audioset(features).sigmoid()

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load the released file's network; raises WeightsError that names the first keys that do not fit."""
        load_reconciled(self, state, "Cnn14", COMPUTED)


def log_mel(waveforms: Tensor) -> Tensor:
    """Sounds at 32 kHz (B, samples) -> mel power in decibels (B, T, M): centred frames, Slaney's mel filters."""
    window = torch.hann_window(N_FFT, device=waveforms.device)
    spectrum = torch.stft(waveforms, N_FFT, HOP, N_FFT, window, center=True, pad_mode="reflect", return_complex=True)
    bank = melscale_fbanks(N_FFT // 2 + 1, *RANGE, MELS, RATE, norm="slaney", mel_scale="slaney")
    power = torch.einsum("bft,fm->btm", spectrum.abs().square(), bank.to(waveforms.device))
    return 10 / math.log(10) * power.clamp(min=LEAST_POWER).log()
