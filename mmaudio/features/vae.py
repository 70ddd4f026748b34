"""The VAE of the codec: mel spectrograms to latents at half the frame rate, and back.

A 1-D convolutional autoencoder whose layers preserve magnitudes.
Source: EDM2, arXiv 2312.02696; keys as in the released checkpoints.

Legend: B batch, C channels, T mel frames, N = T / 2 latent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.errors import WeightsError
from mmaudio.model.spec import CODECS, CodecSpec, codec_spec
from mmaudio.model.state_dict import ReleasedModule, load_strict

WIDTH_MULTIPLIERS = (1, 2, 4)
"""Widths of the levels, as multiples of the first."""
ENCODER_BLOCKS = 2
DECODER_BLOCKS = 3
RESIDUAL_WEIGHT = 0.3
"""Share of the second operand in a magnitude-preserving sum."""
EPS = 1e-4
MAX_ACTIVATION = 256.0
"""Outputs of blocks are clamped to +-MAX_ACTIVATION."""
SILU_GAIN = 0.596
"""Root mean square of silu over a standard normal."""


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal distribution over latents."""

    mean: Tensor
    """(B, C, N)"""
    std: Tensor
    """(B, C, N)"""

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised sample for standard normal `noise` (B, C, N)."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, one value per latent: (B, C, N)."""
        variance = self.std.square()
        return 0.5 * (self.mean.square() + variance - 1 - variance.log())


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of a standard normal input."""
    return F.silu(x) / SILU_GAIN


def mp_sum(a: Tensor, b: Tensor) -> Tensor:
    """Mix of 0.7 a and 0.3 b that keeps the magnitude of independent operands."""
    return torch.lerp(a, b, RESIDUAL_WEIGHT) / math.hypot(1 - RESIDUAL_WEIGHT, RESIDUAL_WEIGHT)


def pixel_norm(x: Tensor) -> Tensor:
    """Scale every position of (B, C, T) to unit mean square over the channels."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    out: Tensor = x / (EPS + norm / math.sqrt(x.shape[1])).to(x.dtype)
    return out


class MPConv(nn.Module):
    """Convolution without bias that uses the direction of its weight alone.

    The effective weight is derived from the raw one at every call, so that a state dict always holds the raw one, in
    training and out of it; at full size that is a few percent of a decoding on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(B, in_channels, T) -> (B, out_channels, T); `gain` scales the result."""
        weight = self.weight.float()
        root = math.sqrt(weight[0].numel())
        norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
        scale = gain / (root * EPS + norm)
        return F.conv1d(x, (weight * scale).to(x.dtype), padding=weight.shape[-1] // 2)


class ResBlock(nn.Module):
    """Pixel norm, two convolutions, and a magnitude-preserving sum with the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = MPConv(in_channels, out_channels, 3)
        self.conv2 = MPConv(out_channels, out_channels, 3)
        self.nin_shortcut = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) -> (B, out_channels, T)."""
        x = pixel_norm(x)
        hidden = self.conv2(mp_silu(self.conv1(mp_silu(x))))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return mp_sum(x, hidden).clamp(-MAX_ACTIVATION, MAX_ACTIVATION)


class Attention(nn.Module):
    """One head of attention along time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = MPConv(width, 3 * width, 1)
        self.proj_out = MPConv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        q, k, v = (pixel_norm(tensor) for tensor in rearrange(self.qkv(x), "b (c three) t -> three b c t", three=3))
        weights = (torch.einsum("b c i, b c j -> b i j", q, k) / math.sqrt(x.shape[1])).softmax(-1)
        return mp_sum(x, self.proj_out(torch.einsum("b i j, b c j -> b c i", weights, v)))


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the largest width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    """Halve the frame rate by averaging."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = MPConv(width, width, 1)
        self.conv2 = MPConv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T / 2)."""
        out: Tensor = self.conv2(F.avg_pool1d(self.conv1(x), 2))
        return out


class Upsample(nn.Module):
    """Double the frame rate by repeating."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = MPConv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, 2 N)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
        return out


class Level(nn.Module):
    """Residual blocks of one width, then a change of the frame rate if `downsample` or `upsample` is set."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(num_blocks)
        )
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) -> (B, out_channels, T, or half or twice that)."""
        for layer in (*self.block, self.downsample, self.upsample):
            if layer is not None:
                x = layer(x)
        return x


class Encoder(nn.Module):
    """Normalised mel (B, mels, T) -> mean and log variance (B, 2 latent channels, N)."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        widths = [multiplier * spec.vae_width for multiplier in WIDTH_MULTIPLIERS]
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = MPConv(spec.n_mels, widths[0], 3)
        self.down = nn.ModuleList(
            Level(below, width, ENCODER_BLOCKS) for below, width in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.down[0].downsample = Downsample(widths[0])
        self.mid = MidBlock(widths[-1])
        self.conv_out = MPConv(widths[-1], 2 * spec.latent_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, mels, T) -> (B, 2 latent channels, N)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(mp_silu(self.mid(x)), 1 + self.learnable_gain)
        return out


class Decoder(nn.Module):
    """Latents (B, latent channels, N) -> normalised mel (B, mels, T)."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        widths = [multiplier * spec.vae_width for multiplier in WIDTH_MULTIPLIERS]
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = MPConv(spec.latent_dim, widths[-1], 3)
        self.mid = MidBlock(widths[-1])
        self.up = nn.ModuleList(
            Level(above, width, DECODER_BLOCKS) for width, above in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.up[1].upsample = Upsample(widths[1])
        self.conv_out = MPConv(widths[0], spec.n_mels, 3)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent channels, N) -> (B, mels, T)."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(mp_silu(x), 1 + self.learnable_gain)
        return out


class VAE(ReleasedModule):
    """Encoder and decoder between log-mel spectrograms and latents.

    `data_mean` and `data_std` (1, mels, 1) normalise the mel; they belong to the checkpoint and are 0 and 1 until set.
    """

    data_mean: Tensor
    data_std: Tensor

    def __init__(self, spec: CodecSpec, drop_encoder: bool = False, drop_decoder: bool = False) -> None:
        """`drop_encoder`: leave the encoder out, for a model that only generates; `drop_decoder`: for extraction."""
        super().__init__()
        self.spec = spec
        self.register_buffer("data_mean", torch.zeros(1, spec.n_mels, 1))
        self.register_buffer("data_std", torch.ones(1, spec.n_mels, 1))
        self.encoder = None if drop_encoder else Encoder(spec)
        self.decoder = None if drop_decoder else Decoder(spec)

    def encode(self, mel: Tensor) -> Posterior:
        """Log-mel (B, mels, T), T even -> the latents' distribution, mean and std (B, C, T / 2) in float32.

        Raises WeightsError without an encoder.
        """
        if self.encoder is None:
            raise WeightsError("this VAE was built with drop_encoder=True; build it whole to encode")
        moments: Tensor = self.encoder((mel - self.data_mean) / self.data_std)
        mean, log_variance = moments.float().chunk(2, dim=1)
        return Posterior(mean, (log_variance.clamp(-30, 20) / 2).exp())

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, N) -> log-mel (B, mels, 2 N) in float32. Raises WeightsError without a decoder."""
        if self.decoder is None:
            raise WeightsError("this VAE was built with drop_decoder=True; build it whole to decode")
        normalised: Tensor = self.decoder(z)
        return normalised.float() * self.data_std + self.data_mean

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load a released file (raw weights); raises WeightsError that names the first keys that do not fit."""
        dropped = self.encoder is None, self.decoder is None
        ignored = [prefix for prefix, is_dropped in zip(("encoder.", "decoder."), dropped, strict=True) if is_dropped]
        variants = {name: partial(VAE, spec, *dropped) for name, spec in CODECS.items()}
        load_strict(self, state, f"VAE {self.spec.name}", ignored, variants)


def build_vae(mode: str, drop_encoder: bool = False, drop_decoder: bool = False) -> VAE:
    """Build the VAE of the codec `mode` with fresh weights; ConfigError names the nearest codec."""
    return VAE(codec_spec(mode), drop_encoder, drop_decoder)
