"""BigVGAN's generator: the released models' vocoder.

Source: arXiv 2206.04658; keys as in the released checkpoints.

Legend: B batch, C channels, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from mmaudio.model.spec import CODECS, CodecSpec
from mmaudio.model.state_dict import Released, is_meta, load_reconciled

KERNELS = (3, 7, 11)
"""Kernel of each of a stage's residual blocks."""
DILATIONS = (1, 3, 5)
TAPS = 12
"""Length of the resampling filter."""
OLD_NAMES = {"weight_g": "original0", "weight_v": "original1"}
"""Torch's former names of a weight-normalised weight's magnitude and direction."""
PARAMETRIZED = "parametrizations.weight."


def resampling_filter() -> Tensor:
    """Low-pass for a factor of two, cutoff 0.25, half width 0.3, normalised to sum 1: (1, 1, 12)."""
    attenuation = 2.285 * (TAPS // 2 - 1) * torch.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    taps = window * torch.sinc((torch.arange(TAPS) - (TAPS - 1) / 2) / 2)
    return (taps / taps.sum())[None, None]


class SnakeBeta(nn.Module):
    """x + sin^2(x e^alpha) / e^beta, with alpha and beta per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> the same."""
        return x + torch.sin(x * self.alpha.exp()[:, None]).square() / (self.beta.exp()[:, None] + 1e-9)


class Upsample(nn.Module):
    """Twice the rate."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", resampling_filter())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, 2 T)."""
        rows = F.pad(rearrange(x, "b c t -> (b c) 1 t"), (5, 5), mode="replicate")
        rows = 2 * F.conv_transpose1d(rows, self.filter.to(x.dtype), stride=2)[..., 15:-15]
        return rearrange(rows, "(b c) 1 t -> b c t", c=x.shape[1])


class LowPass(nn.Module):
    """Low-pass, then every other sample."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", resampling_filter())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2 T) -> (B, C, T)."""
        rows = F.pad(rearrange(x, "b c t -> (b c) 1 t"), (5, 6), mode="replicate")
        rows = F.conv1d(rows, self.filter.to(x.dtype), stride=2)
        return rearrange(rows, "(b c) 1 t -> b c t", c=x.shape[1])


class Downsample(nn.Module):
    """Half the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2 T) -> (B, C, T)."""
        out: Tensor = self.lowpass(x)
        return out


class Activation(nn.Module):
    """SnakeBeta at twice the rate, so that the harmonics it makes do not fold back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsample()
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> the same."""
        out: Tensor = self.downsample(self.act(self.upsample(x)))
        return out


class ResBlock(nn.Module):
    """Three pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            padding = dilation * (kernel - 1) // 2
            layer: nn.Module = weight_norm(nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=padding))
            return layer

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in DILATIONS)
        self.convs2 = nn.ModuleList(conv(1) for _ in DILATIONS)
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(DILATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> the same."""
        activations = zip(self.activations[::2], self.activations[1::2], strict=True)
        for conv1, conv2, (before, between) in zip(self.convs1, self.convs2, activations, strict=True):
            x = x + conv2(between(conv1(before(x))))
        return x


class BigVGAN(Released):
    """Log-mel -> waveform. Fresh, it holds weight-normalised weights; loading folds them into plain ones."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.vocoder_width
        self.conv_pre = weight_norm(nn.Conv1d(spec.mels, width, 7, padding=3))
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(spec.upsample_rates, spec.upsample_kernels, strict=True):
            padding = (kernel - rate) // 2
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=padding)
            self.ups.append(nn.Sequential(weight_norm(up)))
            width //= 2
            self.resblocks.extend(ResBlock(width, kernel) for kernel in KERNELS)
        self.activation_post = Activation(width)
        self.conv_post = weight_norm(nn.Conv1d(width, 1, 7, padding=3, bias=spec.vocoder_tanh))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, mels, frames) -> samples in [-1, 1], (B, 1, frames * hop), float32."""
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[stage * len(KERNELS) : (stage + 1) * len(KERNELS)]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        waveform: Tensor = self.conv_post(self.activation_post(x)).float()
        return waveform.tanh() if self.spec.vocoder_tanh else waveform.clamp(-1, 1)

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load a generator's state dict, weight-normalised under torch's former or present names, or folded.

        On the meta device the given tensors become the vocoder's own, changed in place where they are folded. Raises
        WeightsError that names the first keys that do not fit.
        """
        self.make_plain()
        same_kind = [spec for spec in CODECS.values() if spec.vocoder == self.spec.vocoder]
        variants = {spec.name: partial(_plain, spec) for spec in same_kind}
        folded = fold(state, in_place=is_meta(self))
        load_reconciled(self, folded, f"vocoder {self.spec.name}", variants=variants)

    def make_plain(self) -> None:
        """Compute plain weights from the weight-normalised ones, once and for all."""
        for module in self.modules():
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")


def _plain(spec: CodecSpec) -> BigVGAN:
    vocoder = BigVGAN(spec)
    vocoder.make_plain()
    return vocoder


@torch.no_grad()
def fold(state: Mapping[str, Tensor], in_place: bool = False) -> dict[str, Tensor]:
    """Replace every weight-normalised pair by the plain weight g v / |v|, |v| over all but the first dimension.

    `in_place`: where v is float32 the weight takes its memory, so that there is no second copy.
    """
    renamed = {_present_name(key): value for key, value in state.items()}
    folded = {}
    for key, value in renamed.items():
        layer, parametrized, part = key.rpartition(PARAMETRIZED)
        direction = f"{layer}{PARAMETRIZED}original1"
        if not parametrized or direction not in renamed:
            folded[key] = value
        elif part == "original0":
            v = renamed[direction].detach().float()
            scale = value.float() / torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
            folded[f"{layer}weight"] = v.mul_(scale) if in_place else v * scale
    return folded


def _present_name(key: str) -> str:
    layer, _, name = key.rpartition(".")
    return f"{layer}.{PARAMETRIZED}{OLD_NAMES[name]}" if name in OLD_NAMES else key
