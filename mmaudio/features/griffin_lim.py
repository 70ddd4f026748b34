"""Griffin-Lim: a vocoder without weights, for the embedded model.

Source: fast Griffin-Lim (Perraudin and others, 2013), as torchaudio has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import griffinlim

from mmaudio.features.loading import load_reconciled
from mmaudio.features.mel import mel_bank
from mmaudio.model.spec import CodecSpec

ITERATIONS = 32
MOMENTUM = 0.99


class GriffinLim(nn.Module):
    """Log-mel -> waveform: magnitudes by the mel bank's pseudo-inverse, phases by alternating projections."""

    inverse: Tensor
    window: Tensor

    def __init__(self, spec: CodecSpec, iterations: int = ITERATIONS) -> None:
        super().__init__()
        self.spec = spec
        self.iterations = iterations
        self.register_buffer("inverse", torch.linalg.pinv(mel_bank(spec)), persistent=False)
        self.register_buffer("window", torch.hann_window(spec.n_fft), persistent=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, mels, frames) -> samples in [-1, 1], (B, 1, frames * hop), float32. The same every time."""
        spec = self.spec
        magnitude = (mel.float() * math.log(spec.log_base)).exp()
        magnitude = (self.inverse @ magnitude).clamp(min=0)
        waveform: Tensor = griffinlim(
            # frame k stands for sample hop (k + 1/2); Griffin-Lim centres its frames on multiples of the hop, so with
            # one more frame at either end its output reaches half a hop beyond the clip on both sides
            F.pad(magnitude, (1, 1), mode="replicate"),
            self.window,
            spec.n_fft,
            spec.hop,
            spec.n_fft,
            power=1.0,
            n_iter=self.iterations,
            momentum=MOMENTUM,
            length=None,
            rand_init=False,
        )
        half = spec.hop // 2
        return waveform[:, None, half:-half].clamp(-1, 1)

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """There are no weights: raises WeightsError for a state dict that is not empty."""
        load_reconciled(self, state, f"vocoder {self.spec.name}")
