"""Synchformer's visual branch, the encoder of motion: a Motionformer with divided space-time attention.

Source: arXiv 2401.16423 (Synchformer), arXiv 2106.05392 (Motionformer); keys as in the released checkpoint.

Legend: B clips, S segments of 16 frames, T time steps of a segment (8), P patches of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from mmaudio.errors import DataError
from mmaudio.features.attention import BatchFirstAttention
from mmaudio.features.frame_resize import resize_frames
from mmaudio.model.spec import FRAMES_PER_SEGMENT, SEGMENT_STEP, SYNC_ENCODERS, SyncSpec, lookup
from mmaudio.model.state_dict import ReleasedModule, load_strict

EPS = 1e-6
"""Epsilon of every LayerNorm."""
MLP_RATIO = 4
INIT_STD = 0.02
AUDIO_PREFIXES = ("afeat_extractor.", "vproj.", "aproj.", "transformer.")
"""Key prefixes of the audio branch and the offset classifier in the released file."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, tokens, d).

    For training on a CPU, plain matrix products: for sequences as short as these (9 and 17 tokens) the fused kernel's
    backward pass is 2 to 8 times slower, in bfloat16 above all.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        out: Tensor = scores.softmax(-1) @ v
        return out
    return F.scaled_dot_product_attention(q, k, v)


class DividedAttention(nn.Module):
    """Attention over time or space: the class token attends to all tokens, a patch to its group and the class token."""

    def __init__(self, width: int, num_heads: int, axis: str) -> None:
        """`axis`: `time` (a patch attends to the same place in all frames) or `space` (to its frame)."""
        super().__init__()
        self.num_heads = num_heads
        self.axis = axis
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, time_steps: int) -> Tensor:
        """(B, 1 + T P, D) -> (B, 1 + T P, D); `time_steps` is T."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        class_out = attend(q[:, :, :1], k, v)  # (B, heads, 1, d)
        grouped = "(b p) h t d" if self.axis == "time" else "(b t) h p d"

        def group(tokens: Tensor) -> Tensor:
            """Patches by the axis of attention: (B, heads, 1 + T P, d) -> (groups, heads, tokens, d)."""
            return rearrange(tokens[:, :, 1:], f"b h (t p) d -> {grouped}", t=time_steps)

        def with_class(tokens: Tensor) -> Tensor:
            """The same, with the class token before each group's patches."""
            patches = group(tokens)
            copies = patches.shape[0] // tokens.shape[0]
            return torch.cat([repeat(tokens[:, :, :1], "b h one d -> (b copies) h one d", copies=copies), patches], 2)

        patches = attend(group(q), with_class(k), with_class(v))
        patches = rearrange(patches, f"{grouped} -> b (t p) (h d)", b=len(x), t=time_steps)
        out: Tensor = self.proj(torch.cat([rearrange(class_out, "b h one d -> b one (h d)"), patches], dim=1))
        return out


class Mlp(nn.Module):
    """Two linears with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention over time, attention over space, MLP; each pre-normed and added."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = DividedAttention(width, num_heads, "space")
        self.timeattn = DividedAttention(width, num_heads, "time")
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)
        self.norm3 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, time_steps: int) -> Tensor:
        """(B, 1 + T P, D) -> (B, 1 + T P, D); `time_steps` is T."""
        x = x + self.timeattn(self.norm3(x), time_steps)
        x = x + self.attn(self.norm1(x), time_steps)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class FramePool(nn.Module):
    """One pre-norm transformer encoder layer, computed at its class token only: the patches of a frame -> its feature.

    The keys are those of `nn.TransformerEncoderLayer`.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.self_attn = BatchFirstAttention(width, num_heads, batch_first=True)
        self.linear1 = nn.Linear(width, MLP_RATIO * width)
        self.linear2 = nn.Linear(MLP_RATIO * width, width)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.norm2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, patches: Tensor) -> Tensor:
        """(frames, P, D) -> (frames, D)."""
        token = self.cls_token.expand(len(patches), -1, -1)
        normed = self.norm1(torch.cat([token, patches], dim=1))
        attended, _ = self.self_attn(normed[:, :1], normed, normed, need_weights=False)
        x = (token + attended)[:, 0]
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return out


class PatchEmbed(nn.Module):
    """The projection of patches; with one frame per patch it is 2-D."""

    def __init__(self, proj: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj


class Motionformer(nn.Module):
    """A segment of frames -> one feature per two frames."""

    def __init__(self, spec: SyncSpec) -> None:
        super().__init__()
        side, width = spec.patch_size, spec.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + spec.grid_size**2, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, FRAMES_PER_SEGMENT // spec.tubelet_size, width))
        self.patch_embed = PatchEmbed(nn.Conv2d(3, width, side, side))  # in the released file, but unused
        kernel = (spec.tubelet_size, side, side)
        self.patch_embed_3d = PatchEmbed(nn.Conv3d(3, width, kernel, kernel))
        self.blocks = nn.ModuleList(Block(width, spec.num_heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.spatial_attn_agg = FramePool(width, spec.num_heads)

    def forward(self, segments: Tensor) -> Tensor:
        """(B, 16, 3, H, W) -> (B, 8, D)."""
        x = self.embed(segments)
        time_steps = self.temp_embed.shape[1]
        for block in self.blocks:
            x = block(x, time_steps)
        frames = rearrange(self.norm(x[:, 1:]), "b (t p) d -> (b t) p d", t=time_steps)
        pooled: Tensor = self.spatial_attn_agg(frames)
        return rearrange(pooled, "(b t) d -> b t d", t=time_steps)

    def embed(self, segments: Tensor) -> Tensor:
        """(B, 16, 3, H, W) -> class token and patches with their positions (B, 1 + T P, D)."""
        proj = self.patch_embed_3d.proj
        dt, dh, dw = proj.kernel_size
        # stride = kernel: a linear of the unfolded patches, much faster than Conv3d on a CPU
        patches = rearrange(segments, "b (t dt) c (h dh) (w dw) -> b t (h w) (c dt dh dw)", dt=dt, dh=dh, dw=dw)
        tokens = F.linear(patches, proj.weight.flatten(1), proj.bias)
        tokens = tokens + self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([class_token, rearrange(tokens, "b t p d -> b (t p) d")], dim=1)


class Synchformer(ReleasedModule):
    """The visual branch, with the key prefix of the released file."""

    def __init__(self, spec: SyncSpec) -> None:
        import torchvision.transforms.v2.functional  # noqa: F401, before the threads that resize need it

        super().__init__()
        self.spec = spec
        self.vfeat_extractor = Motionformer(spec)
        self.apply(_init_weights)

    def forward(self, segments: Tensor) -> Tensor:
        """Normalised frames (B, S, 16, 3, H, W) -> features (B, S, 8, D), each segment on its own."""
        features: Tensor = self.vfeat_extractor(rearrange(segments, "b s t c h w -> (b s) t c h w"))
        return rearrange(features, "(b s) t d -> b s t d", b=len(segments))

    def preprocess(self, frames: Tensor) -> Tensor:
        """RGB uint8 (frames, 3, H, W) -> float32 (frames, 3, size, size) in [-1, 1]: resized and normalised."""
        return normalize_frames(self.resize(frames))

    def resize(self, frames: Tensor) -> Tensor:
        """RGB uint8 (frames, 3, H, W) -> uint8 (frames, 3, size, size): shorter edge resized, centre crop.

        Raises DataError as `resize_frames`.
        """
        from torchvision.transforms.v2 import functional as vision  # slow to import

        size = self.spec.image_size
        cropped: Tensor = vision.center_crop(resize_frames(frames, (size,)), [size, size])
        return cropped.contiguous()  # frees the memory outside the crop

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load the released file's visual branch; raises WeightsError that names the first keys that do not fit."""
        variants = {name: partial(Synchformer, spec) for name, spec in SYNC_ENCODERS.items()}
        load_strict(self, state, f"Synchformer {self.spec.name}", AUDIO_PREFIXES, variants)


def normalize_frames(frames: Tensor) -> Tensor:
    """Frames as uint8 -> float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def split_segments(frames: Tensor) -> Tensor:
    """Frames at 25 fps (T, 3, H, W) -> overlapping segments (S, 16, 3, H, W) with a stride of 8 frames, as a view.

    Frames after the last whole segment are dropped; raises DataError below 16 frames.
    """
    if len(frames) < FRAMES_PER_SEGMENT:
        raise DataError(f"{len(frames)} frames: one Synchformer segment takes {FRAMES_PER_SEGMENT}")
    return rearrange(frames.unfold(0, FRAMES_PER_SEGMENT, SEGMENT_STEP), "s c h w t -> s t c h w")


def build_synchformer(name: str = "synchformer") -> Synchformer:
    """Build the visual branch `name` with fresh weights; ConfigError names the nearest known one."""
    return Synchformer(lookup(SYNC_ENCODERS, name, "synchformer"))


def _init_weights(module: nn.Module) -> None:
    """Draw normal weights of 0.02 and set biases to zero.

    The public initialisation also zeroes the 3-D patch embedding, so that an untrained encoder ignores its input.
    """
    for name, value in module.named_parameters(recurse=False):
        if name.endswith("bias"):
            nn.init.zeros_(value)
        elif not isinstance(module, nn.LayerNorm):
            nn.init.trunc_normal_(value, std=INIT_STD)
