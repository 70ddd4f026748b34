"""BigVGAN's generator, the vocoder of the released models.

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
from mmaudio.model.state_dict import ReleasedModule, is_meta, load_strict

KERNEL_SIZES = (3, 7, 11)
"""Of the residual blocks of a stage."""
DILATIONS = (1, 3, 5)
FILTER_TAPS = 12
"""Length of the resampling filter."""
BLOCK = 32
"""Positions, at the lower rate, of a block that a filter's matrix is multiplied with."""
CHUNK = 1 << 18
"""Elements that are filtered at a time, so that they stay in the cache."""
ALL = slice(None)
CONTEXT_FRAMES = 32
"""Mel frames on either side beyond which nothing reaches a sample: 31 with 16k, 17 with 44k."""
CURRENT_NAMES = {"weight_g": "original0", "weight_v": "original1"}
"""torch's current names of a weight norm's magnitude and direction, by the former ones."""
PARAMETRIZED = "parametrizations.weight."


def compute_resampling_filter() -> Tensor:
    """Compute the low-pass filter for a factor of two: cutoff 0.25, half width 0.3, sum 1, (1, 1, 12)."""
    attenuation = 2.285 * (FILTER_TAPS // 2 - 1) * torch.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    taps = window * torch.sinc((torch.arange(FILTER_TAPS) - (FILTER_TAPS - 1) / 2) / 2)
    return (taps / taps.sum())[None, None]


class SnakeBeta(nn.Module):
    """x + sin^2(x e^alpha) / e^beta, with alpha and beta per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, channels: slice = ALL) -> Tensor:
        """(B, C, T) -> (B, C, T), of these channels."""
        alpha, beta = (parameter[channels, None].exp() for parameter in (self.alpha, self.beta))
        return x + torch.sin(x * alpha).square() / (beta + 1e-9)


class Resampler(nn.Module):
    """Holder of the resampling filter."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", compute_resampling_filter())


class Upsample(Resampler):
    """Double the sample rate."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, 2 T)."""
        rows = F.pad(rearrange(x, "b c t -> (b c) 1 t"), (5, 5), mode="replicate")
        rows = 2 * F.conv_transpose1d(rows, self.filter.to(x.dtype), stride=2)[..., 15:-15]
        return rearrange(rows, "(b c) 1 t -> b c t", c=x.shape[1])

    def as_product(self, x: Tensor) -> Tensor:
        """`forward` as a matrix product over blocks of positions."""
        reach = FILTER_TAPS // 2
        taps, matrix = 2 * self.filter.flatten().flip(0), x.new_zeros(2 * BLOCK, BLOCK + reach)
        strides = 2 * (BLOCK + reach) + 1, 1
        for phase in range(2):
            offset = phase * (BLOCK + reach + 1)
            matrix.as_strided((BLOCK, reach), strides, offset).copy_(taps[phase::2])
        return _multiply_blocks(x, matrix, BLOCK, reach // 2)[..., : 2 * x.shape[2]]


class LowPass(Resampler):
    """Low-pass filter with a stride of two."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2 T) -> (B, C, T)."""
        rows = F.pad(rearrange(x, "b c t -> (b c) 1 t"), (5, 6), mode="replicate")
        rows = F.conv1d(rows, self.filter.to(x.dtype), stride=2)
        return rearrange(rows, "(b c) 1 t -> b c t", c=x.shape[1])

    def as_product(self, x: Tensor) -> Tensor:
        """`forward` as a matrix product over blocks of positions."""
        width = 2 * BLOCK + FILTER_TAPS - 2
        matrix = x.new_zeros(BLOCK, width)
        matrix.as_strided((BLOCK, FILTER_TAPS), (width + 2, 1)).copy_(self.filter.flatten())
        return _multiply_blocks(x, matrix, 2 * BLOCK, FILTER_TAPS // 2 - 1)[..., : x.shape[2] // 2]


def _multiply_blocks(x: Tensor, matrix: Tensor, step: int, before: int) -> Tensor:
    """Multiply blocks of x (B, C, T), one per `step` positions, by a matrix (out, width): (B, C, blocks * out).

    A block begins `before` positions early; beyond its ends x has the value there.
    """
    num_blocks, width = -(-x.shape[2] // step), matrix.shape[1]
    after = num_blocks * step + width - step - before - x.shape[2]
    blocks = F.pad(x, (before, after), mode="replicate").unfold(2, width, step)
    return F.linear(blocks.reshape(-1, width), matrix).view(*x.shape[:2], -1)


class Downsample(nn.Module):
    """Halve the sample rate."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2 T) -> (B, C, T)."""
        out: Tensor = self.lowpass(x)
        return out


class Activation(nn.Module):
    """SnakeBeta at twice the sample rate, against aliasing of the harmonics that it adds.

    On a CPU, without gradients, the filters are matrix products over blocks of positions, for some channels at a time:
    convolutions of one channel take two to three times as long there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsample()
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        if x.device.type != "cpu" or torch.is_grad_enabled():
            plain: Tensor = self.downsample(self.act(self.upsample(x)))
            return plain
        out, size = torch.empty_like(x), max(1, CHUNK // (x.shape[0] * x.shape[2]))
        for start in range(0, x.shape[1], size):
            channels = slice(start, start + size)
            doubled = self.upsample.as_product(x[:, channels])
            out[:, channels] = self.downsample.lowpass.as_product(self.act(doubled, channels))
        return out


class ResBlock(nn.Module):
    """Three pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            """A convolution of the block, weight-normalised."""
            padding = dilation * (kernel - 1) // 2
            layer: nn.Module = weight_norm(nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=padding))
            return layer

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in DILATIONS)
        self.convs2 = nn.ModuleList(conv(1) for _ in DILATIONS)
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(DILATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        activations = zip(self.activations[::2], self.activations[1::2], strict=True)
        for conv1, conv2, (before, between) in zip(self.convs1, self.convs2, activations, strict=True):
            x = x + conv2(between(conv1(before(x))))
        return x


class BigVGAN(ReleasedModule):
    """Log-mel -> waveform. A new one has weight norm; loading folds it into plain weights."""

    context_frames: int = CONTEXT_FRAMES

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.vocoder_width
        self.conv_pre = weight_norm(nn.Conv1d(spec.n_mels, width, 7, padding=3))
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(spec.upsample_rates, spec.upsample_kernel_sizes, strict=True):
            padding = (kernel - rate) // 2
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=padding)
            self.ups.append(nn.Sequential(weight_norm(up)))
            width //= 2
            self.resblocks.extend(ResBlock(width, kernel) for kernel in KERNEL_SIZES)
        self.activation_post = Activation(width)
        self.conv_post = weight_norm(nn.Conv1d(width, 1, 7, padding=3, bias=spec.vocoder_tanh))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, mels, frames) -> samples in [-1, 1], (B, 1, frames * hop_length), float32."""
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[stage * len(KERNEL_SIZES) : (stage + 1) * len(KERNEL_SIZES)]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        waveform: Tensor = self.conv_post(self.activation_post(x)).float()
        return waveform.tanh() if self.spec.vocoder_tanh else waveform.clamp(-1, 1)

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load a generator's state dict: with weight norm under torch's former or current names, or folded.

        On the meta device the tensors of `state` become the parameters, folded in place. Raises WeightsError that names
        the first keys that do not fit.
        """
        self.remove_weight_norm()
        same_vocoder = [spec for spec in CODECS.values() if spec.vocoder == self.spec.vocoder]
        variants = {spec.name: partial(_build_folded, spec) for spec in same_vocoder}
        folded = fold_weight_norm(state, in_place=is_meta(self))
        load_strict(self, folded, f"vocoder {self.spec.name}", variants=variants)

    def remove_weight_norm(self) -> None:
        """Fold weight norm into plain weights, for good."""
        for module in self.modules():
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")


def _build_folded(spec: CodecSpec) -> BigVGAN:
    vocoder = BigVGAN(spec)
    vocoder.remove_weight_norm()
    return vocoder


@torch.no_grad()
def fold_weight_norm(state: Mapping[str, Tensor], in_place: bool = False) -> dict[str, Tensor]:
    """Fold every weight norm into the plain weight g v / |v|, |v| over all but the first dimension.

    `in_place`: the weight takes the memory of v where that is float32.
    """
    renamed = {_current_name(key): value for key, value in state.items()}
    folded = {}
    for key, value in renamed.items():
        layer, prefix, tensor = key.rpartition(PARAMETRIZED)
        direction = f"{layer}{PARAMETRIZED}original1"
        if not prefix or direction not in renamed:
            folded[key] = value
        elif tensor == "original0":
            v = renamed[direction].detach().float()
            scale = value.float() / torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
            folded[f"{layer}weight"] = v.mul_(scale) if in_place else v * scale
    return folded


def _current_name(key: str) -> str:
    layer, _, name = key.rpartition(".")
    return f"{layer}.{PARAMETRIZED}{CURRENT_NAMES[name]}" if name in CURRENT_NAMES else key
