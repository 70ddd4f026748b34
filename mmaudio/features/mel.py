"""The mel spectrogram that the VAE compresses and the vocoder inverts.

Source: HiFi-GAN's and BigVGAN's front ends (arXiv 2010.05646, 2206.04658), with the sizes of `CodecSpec`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from mmaudio.errors import DataError
from mmaudio.model.spec import CodecSpec, codec_spec

FLOOR = 1e-5
"""Smallest mel magnitude: the logarithm's floor."""


def mel_bank(spec: CodecSpec) -> Tensor:
    """Slaney mel filters with Slaney's area norm: (mels, n_fft / 2 + 1)."""
    low, high = spec.mel_range
    bank: Tensor = melscale_fbanks(
        spec.n_fft // 2 + 1, low, high, spec.mels, spec.rate, norm="slaney", mel_scale="slaney"
    )
    return bank.T.contiguous()


class MelSpectrogram(nn.Module):
    """Waveform -> logarithm of the mel magnitudes.

    The frames are not centred on multiples of the hop: frame k stands for the sample hop (k + 1/2).

    The Fourier transform is taken in float64: where a sound has nothing, as above a low-pass filter's limit, float32
    leaves its own rounding, which differs between processors and which the logarithm shows (1e-3 at 44.1 kHz, and 1e-2
    beside pure tones). The rest is harmless in float32. 8 s at 44.1 kHz take 15 ms on a CPU core, and 10 MB more.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        self.padding = (spec.n_fft - spec.hop) // 2
        self.register_buffer("window", torch.hann_window(spec.n_fft), persistent=False)
        self.register_buffer("bank", mel_bank(spec), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Samples in [-1, 1], (B, samples) -> (B, mels, samples // hop), float32 in `spec.log_base` units.

        Samples outside the range are clamped. Raises DataError for fewer samples than the reflected edge needs.
        """
        if waveform.shape[-1] <= self.padding:
            raise DataError(f"{waveform.shape[-1]} samples: a mel spectrogram takes more than {self.padding}")
        samples = F.pad(waveform.float().double().clamp(-1, 1), (self.padding, self.padding), mode="reflect")
        window = self.window.double()
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                samples, self.spec.n_fft, self.spec.hop, window=window, center=False, return_complex=True
            )
            magnitude = (torch.view_as_real(spectrum).float().square().sum(-1) + 1e-9).sqrt()
            mel = torch.matmul(self.bank, magnitude)
        return mel.clamp(min=FLOOR).log() / math.log(self.spec.log_base)


def build_mel(mode: str) -> MelSpectrogram:
    """The mel spectrogram of the codec `mode` (`16k`, `44k`, ...); raises ConfigError naming the nearest one."""
    return MelSpectrogram(codec_spec(mode))
