"""PANNs' Cnn14 at 16 kHz, an audio tagger: logits of AudioSet's 527 classes, and an embedding.

Source: arXiv 1912.10211 (PANNs); keys as in the released checkpoint, trained at 16 kHz.

Legend: B waveforms, T frames, M mel bands, C channels, D embedding width.
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
from mmaudio.model.state_dict import ReleasedModule, load_strict

SAMPLE_RATE = 16_000
N_FFT, HOP_LENGTH, N_MELS = 512, 160, 64
MEL_RANGE = (50.0, 8_000.0)
"""Lowest and highest frequency of the mel bands in hertz."""
MIN_POWER = 1e-10
"""Floor of the mel power."""
WIDTHS = (64, 128, 256, 512, 1024, 2048)
"""Channels after each block."""
FEATURE_DIM = 2048
N_CLASSES = 527
COMPUTED_PREFIXES = ("spectrogram_extractor.", "logmel_extractor.")
"""Key prefixes of the Fourier and mel matrices in the released file, which are computed here."""
MIN_SAMPLES = HOP_LENGTH * (2 ** (len(WIDTHS) - 1) - 1)
"""Samples that leave a frame after all halvings."""


class Block(nn.Module):
    """Two convolutions with batch norm, then average pooling over `pool` x `pool` cells."""

    def __init__(self, in_channels: int, out_channels: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T, M) -> (B, out_channels, T / pool, M / pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.avg_pool2d(F.relu(self.bn2(self.conv2(x))), self.pool)


class Cnn14(ReleasedModule):
    """The tagger for inference, without augmentation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(N_MELS)
        for number, (in_channels, out_channels) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"conv_block{number}", Block(in_channels, out_channels, 1 if number == len(WIDTHS) else 2))
        self.fc1 = nn.Linear(WIDTHS[-1], FEATURE_DIM)
        self.fc_audioset = nn.Linear(FEATURE_DIM, N_CLASSES)

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Mono at 16 kHz (B, samples) -> embedding (B, 2048) and logits of the classes (B, 527).

        Raises DataError for waveforms that are too short.
        """
        if waveforms.shape[1] < MIN_SAMPLES:
            raise DataError(
                f"{waveforms.shape[1]} samples: Cnn14 takes audio of {MIN_SAMPLES / SAMPLE_RATE:.2f} s or more"
            )
        x = log_mel(waveforms)  # (B, T, M)
        x = rearrange(self.bn0(rearrange(x, "b t m -> b m t 1")), "b m t 1 -> b 1 t m")  # (B, 1, T, M)
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"conv_block{number}")(x)
        x = x.mean(3)  # (B, C, T)
        embedding = F.relu(self.fc1(x.amax(2) + x.mean(2)))  # (B, D)
        return embedding, self.fc_audioset(embedding)

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load the released file's network; raises WeightsError that names the first keys that do not fit."""
        load_strict(self, state, "Cnn14", COMPUTED_PREFIXES)


def log_mel(waveforms: Tensor) -> Tensor:
    """Waveforms at 16 kHz (B, samples) -> mel power in decibels (B, T, M): centred frames, Slaney's mel filters."""
    window = torch.hann_window(N_FFT, device=waveforms.device)
    stft = torch.stft(waveforms, N_FFT, HOP_LENGTH, N_FFT, window, center=True, pad_mode="reflect", return_complex=True)
    filters = melscale_fbanks(N_FFT // 2 + 1, *MEL_RANGE, N_MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    power = torch.einsum("bft,fm->btm", stft.abs().square(), filters.to(waveforms.device))
    return 10 / math.log(10) * power.clamp(min=MIN_POWER).log()
