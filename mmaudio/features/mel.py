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

MIN_MAGNITUDE = 1e-5
"""Floor of the mel magnitude, before its logarithm."""


def mel_filterbank(spec: CodecSpec) -> Tensor:
    """Compute Slaney mel filters with Slaney's area norm: (n_mels, n_fft / 2 + 1)."""
    low, high = spec.mel_range
    bank: Tensor = melscale_fbanks(
        spec.n_fft // 2 + 1, low, high, spec.n_mels, spec.sample_rate, norm="slaney", mel_scale="slaney"
    )
    return bank.T.contiguous()


class MelSpectrogram(nn.Module):
    """Waveform -> logarithm of the mel magnitudes.

    Frames are not centred on multiples of hop_length: frame k is centred on the sample hop_length (k + 1/2).

    The Fourier transform is in float64: in empty bands, as above the cutoff of a low-pass filter, float32 leaves
    rounding noise, which differs between processors and is visible in the logarithm (1e-3 at 44.1 kHz, and 1e-2 beside
    pure tones). Everything else is in float32. 8 s at 44.1 kHz take 15 ms on a CPU core, and 10 MB more.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        self.padding = (spec.n_fft - spec.hop_length) // 2
        self.register_buffer("window", torch.hann_window(spec.n_fft), persistent=False)
        self.register_buffer("bank", mel_filterbank(spec), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Samples in [-1, 1], (B, samples) -> (B, n_mels, samples // hop_length), float32 in `spec.log_base` units.

        Samples outside the range are clamped. Raises DataError for fewer samples than the reflection padding needs.
        """
        if waveform.shape[-1] <= self.padding:
            raise DataError(f"{waveform.shape[-1]} samples: a mel spectrogram takes more than {self.padding}")
        samples = F.pad(waveform.float().double().clamp(-1, 1), (self.padding, self.padding), mode="reflect")
        window = self.window.double()
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                samples, self.spec.n_fft, self.spec.hop_length, window=window, center=False, return_complex=True
            )
            magnitude = (torch.view_as_real(spectrum).float().square().sum(-1) + 1e-9).sqrt()
            mel = torch.matmul(self.bank, magnitude)
        return mel.clamp(min=MIN_MAGNITUDE).log() / math.log(self.spec.log_base)


def build_mel(mode: str) -> MelSpectrogram:
    """Build the mel spectrogram of the codec `mode` (`16k`, `44k`, ...); ConfigError names the nearest one."""
    return MelSpectrogram(codec_spec(mode))
