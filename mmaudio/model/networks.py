"""The MMAudio network, which predicts the flow velocity of audio latents from video and text (arXiv 2412.15322).

    network = build_network("small_16k")
    network.load_released(state)
    conditions = network.preprocess_conditions(clip_f, sync_f, text_f)  # once per clip
    velocity = network.predict_velocity(latent, t, conditions)          # once per solver step

B batch, N latent tokens, V CLIP tokens, S sync tokens, L text tokens, C latent channels, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmaudio.errors import ConfigError, DataError
from mmaudio.model import spec as specs
from mmaudio.model.blocks import FinalLayer, JointBlock, TransformerBlock
from mmaudio.model.initialization import init_weights
from mmaudio.model.layers import MLP, Conv1d, TimeEmbedding, rotary_table
from mmaudio.model.state_dict import ReleasedModule, is_meta, load_strict

IGNORED_KEYS = {"t_embed.freqs", "latent_rot", "clip_rot"}
"""Computed tables in old files."""


@dataclass(frozen=True)
class Conditions:
    """Projected conditions, independent of latent and time."""

    clip_f: Tensor  # (B, V, D)
    sync_f: Tensor  # (B, S, D)
    text_f: Tensor  # (B, L, D)
    clip_c: Tensor  # (B, D)
    text_c: Tensor  # (B, D)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five tensors in the order of the fields."""
        return self.clip_f, self.sync_f, self.text_f, self.clip_c, self.text_c

    @property
    def batch_size(self) -> int:
        """Batch size B."""
        return self.clip_f.shape[0]

    def cat(self, other: Conditions) -> Conditions:
        """Concatenate along the batch."""
        return Conditions(*(torch.cat(pair) for pair in zip(self.tensors(), other.tensors(), strict=True)))

    def select(self, rows: Tensor | slice) -> Conditions:
        """Select rows of the batch."""
        return Conditions(*(tensor[rows] for tensor in self.tensors()))

    def repeat(self, times: int) -> Conditions:
        """Repeat every row `times` times: (B * times, ...); a single row is expanded without a copy."""
        if self.batch_size == 1:
            return Conditions(*(tensor.expand(times, *tensor.shape[1:]) for tensor in self.tensors()))
        return Conditions(*(tensor.repeat_interleave(times, dim=0) for tensor in self.tensors()))


class MMAudio(ReleasedModule):
    """Flow-matching transformer of `spec`; a codec is needed only for `set_duration`.

    A new network is initialized for training from scratch: every block is the identity and the velocity is zero.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, spec: specs.NetworkSpec, codec: specs.CodecSpec | None = None) -> None:
        super().__init__()
        self.spec, self.codec = spec, codec
        self.gradient_checkpointing = False
        """Recompute the activations of every block in the backward pass instead of storing them."""
        self.set_lengths(spec.latent_tokens, spec.clip_tokens, spec.sync_tokens)
        width, hidden = spec.width, spec.width * spec.mlp_ratio

        self.sync_pos_emb = nn.Parameter(torch.empty(1, 1, specs.TOKENS_PER_SEGMENT, spec.sync_dim))
        self.register_buffer("latent_mean", torch.zeros(1, 1, spec.latent_dim))
        self.register_buffer("latent_std", torch.ones(1, 1, spec.latent_dim))
        self.empty_string_feat = nn.Parameter(torch.empty(spec.text_tokens, spec.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.empty(1, spec.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.empty(1, spec.sync_dim))

        activation = nn.SiLU if spec.v2 else nn.SELU
        pre_mlp = (nn.SiLU(),) if spec.v2 else ()
        self.audio_input_proj = nn.Sequential(
            Conv1d(spec.latent_dim, width, 7, padding=3), activation(), MLP(width, hidden, kernel_size=7)
        )
        self.clip_input_proj = nn.Sequential(
            nn.Linear(spec.clip_dim, width), *pre_mlp, MLP(width, hidden, kernel_size=3)
        )
        self.sync_input_proj = nn.Sequential(
            Conv1d(spec.sync_dim, width, 7, padding=3), activation(), MLP(width, hidden, kernel_size=3)
        )
        self.text_input_proj = nn.Sequential(nn.Linear(spec.text_dim, width), *pre_mlp, MLP(width, hidden))
        self.clip_cond_proj = nn.Linear(width, width)
        self.text_cond_proj = nn.Linear(width, width)
        self.global_cond_mlp = MLP(width, hidden)
        self.t_embed = TimeEmbedding(width, width if spec.v2 else 256, period=1.0 if spec.v2 else 10_000.0)

        self.joint_blocks = nn.ModuleList(
            JointBlock(width, spec.num_heads, hidden, last=index == spec.num_joint_blocks - 1)
            for index in range(spec.num_joint_blocks)
        )
        self.fused_blocks = nn.ModuleList(
            TransformerBlock(width, spec.num_heads, hidden, kernel_size=3) for _ in range(spec.num_fused_blocks)
        )
        self.final_layer = FinalLayer(width, spec.latent_dim)
        if not is_meta(self):  # drawing weights on the meta device would make torch import its compiler
            self.init_weights()

    # --- lengths

    def set_lengths(self, latent_tokens: int, clip_tokens: int, sync_tokens: int) -> None:
        """Set the token counts N, V and S, on which only the rotary tables depend.

        Raises ConfigError for a number of sync tokens that is not a multiple of 8, the tokens of a segment.
        """
        if min(latent_tokens, clip_tokens, sync_tokens) < 1 or sync_tokens % specs.TOKENS_PER_SEGMENT:
            lengths = f"{latent_tokens}/{clip_tokens}/{sync_tokens}"
            raise ConfigError(f"lengths {lengths}: at least 1 each, sync tokens in multiples of 8")
        audio_samples = latent_tokens * self.codec.hop_length * 2 if self.codec else 0
        self.lengths = specs.Lengths(latent_tokens, clip_tokens, sync_tokens, audio_samples)
        """Current token counts; `audio_samples` is 0 without a codec."""

    def set_duration(self, seconds: float) -> None:
        """Set the token counts for `seconds`; ConfigError for a duration that is too short, or without a codec."""
        if self.codec is None:
            raise ConfigError("set_duration: this network has no codec, so no sampling rate; use set_lengths")
        lengths = specs.compute_lengths(self.codec, seconds)
        self.set_lengths(lengths.latent_tokens, lengths.clip_tokens, lengths.sync_tokens)

    # --- conditions

    def empty_clip(self, batch_size: int) -> Tensor:
        """Learned CLIP embedding of no video, expanded to all tokens: (B, V, clip_dim)."""
        return self.empty_clip_feat.expand(batch_size, self.lengths.clip_tokens, -1)

    def empty_sync(self, batch_size: int) -> Tensor:
        """Learned sync embedding of no video, expanded to all tokens: (B, S, sync_dim)."""
        return self.empty_sync_feat.expand(batch_size, self.lengths.sync_tokens, -1)

    def empty_text(self, batch_size: int) -> Tensor:
        """Learned embeddings of no text: (B, L, text_dim)."""
        return self.empty_string_feat.expand(batch_size, -1, -1)

    def empty_conditions(self, batch_size: int, negative_text: Tensor | None = None) -> Conditions:
        """Conditions of no video and no text, or of a negative prompt's features (1 or B, L, text_dim)."""
        text = self.empty_text(1) if negative_text is None else negative_text
        rows = text.shape[0]
        conditions = self.preprocess_conditions(self.empty_clip(rows), self.empty_sync(rows), text)
        return conditions.repeat(batch_size) if rows == 1 else conditions

    def preprocess_conditions(self, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> Conditions:
        """Project raw features (B, V, clip_dim), (B, S, sync_dim), (B, L, text_dim).

        Raises DataError on other shapes.
        """
        self._check_features(clip_f, sync_f, text_f)
        clip_f = self.clip_input_proj(clip_f)
        text_f = self.text_input_proj(text_f)
        segments = rearrange(sync_f, "b (s k) c -> b s k c", k=specs.TOKENS_PER_SEGMENT)
        sync_f = self.sync_input_proj((segments + self.sync_pos_emb).flatten(1, 2))  # (B, S, D)
        clip_c, text_c = self.clip_cond_proj(clip_f.mean(1)), self.text_cond_proj(text_f.mean(1))
        return Conditions(clip_f, sync_f, text_f, clip_c, text_c)

    def _check_features(self, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> None:
        spec, lengths = self.spec, self.lengths
        for name, features, tokens, width in (
            ("clip", clip_f, lengths.clip_tokens, spec.clip_dim),
            ("sync", sync_f, lengths.sync_tokens, spec.sync_dim),
            ("text", text_f, spec.text_tokens, spec.text_dim),
        ):
            if features.ndim != 3 or features.shape[1:] != (tokens, width):
                raise DataError(
                    f"{name} features of shape {tuple(features.shape)}: this network takes (batch, {tokens}, {width}); "
                    "check the model's name and the duration (set_duration)"
                )

    # --- velocity

    def predict_velocity(self, latent: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Velocity (B, N, C) at the normalised latent (B, N, C) and the times t, (B,) or one for all, in [0, 1].

        Latents for several times as many conditions are repeated, after what depends on them alone.
        """
        tokens, batch = latent.shape[1], max(latent.shape[0], conditions.batch_size)
        if tokens != self.lengths.latent_tokens:
            expected = self.lengths.latent_tokens
            raise DataError(f"latent of {tokens} tokens: the network is set to {expected} (set_duration)")
        if conditions.sync_f.shape[1] != self.lengths.sync_tokens:
            raise DataError(
                f"conditions of {conditions.sync_f.shape[1]} sync tokens: the network is set to "
                f"{self.lengths.sync_tokens} (set_duration)"
            )
        clip, text = conditions.clip_f, conditions.text_f
        global_cond = self.t_embed(t.expand(batch)) + self.global_cond_mlp(conditions.clip_c + conditions.text_c)
        global_cond = global_cond[:, None]  # (B, 1, D)
        token_cond, positions = self._token_conditions(global_cond + conditions.sync_f)
        head_dim = self.spec.width // self.spec.num_heads
        latent_table = rotary_table(tokens, head_dim, 1.0, latent.device)
        clip_table = rotary_table(clip.shape[1], head_dim, tokens / clip.shape[1], latent.device)

        x = self.audio_input_proj(latent)
        x = x if len(x) == batch else x.repeat(batch // len(x), 1, 1)
        for block in self.joint_blocks:
            streams = x, clip, text
            x, clip, text = self._run_block(
                block, *streams, global_cond, token_cond, latent_table, clip_table, positions
            )
        for block in self.fused_blocks:
            x = self._run_block(block, x, token_cond, latent_table, positions)
        velocity: Tensor = self.final_layer(x, global_cond)
        return velocity

    def _token_conditions(self, sync_cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """The conditions (B, N, D) of the latent's tokens from those of the sync tokens (B, S, D).

        Where several tokens share one and no gradient of it is needed: `sync_cond` itself, and the row of every token
        (N,), so that blocks compute its modulation once.
        """
        sync_tokens, tokens = sync_cond.shape[1], self.lengths.latent_tokens
        if specs.modulated_rows(sync_tokens, tokens) < tokens and not self._trains_modulation(sync_cond):
            rows = torch.arange(sync_tokens, dtype=torch.float32, device=sync_cond.device)
            return sync_cond, resample_tokens(rows[None, :, None], tokens).flatten().long()
        return resample_tokens(sync_cond, tokens).contiguous(), None

    def _trains_modulation(self, condition: Tensor) -> bool:
        """Whether a gradient of the modulation of the latent's tokens is needed, or of its condition."""
        if not torch.is_grad_enabled():
            return False
        blocks = (*(block.latent_block for block in self.joint_blocks), *self.fused_blocks)
        return condition.requires_grad or any(
            weight.requires_grad for block in blocks for weight in block.adaLN_modulation.parameters()
        )

    def _run_block(self, block: nn.Module, *inputs: Tensor | None) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(self, latent: Tensor, clip_f: Tensor, sync_f: Tensor, text_f: Tensor, t: Tensor) -> Tensor:
        """Velocity (B, N, C) from the latent, raw features and times (B,)."""
        return self.predict_velocity(latent, t, self.preprocess_conditions(clip_f, sync_f, text_f))

    # --- latents and weights

    def normalize(self, latent: Tensor) -> Tensor:
        """Convert latents from the codec's to the network's scale."""
        return (latent - self.latent_mean) / self.latent_std

    def unnormalize(self, latent: Tensor) -> Tensor:
        """Convert latents from the network's to the codec's scale."""
        return latent * self.latent_std + self.latent_mean

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load a released state dict; raises WeightsError if keys or shapes differ.

        Values are cast to the module's dtype; a network on the meta device takes the tensors themselves.
        """
        state = {key: value for key, value in state.items() if key not in IGNORED_KEYS}
        variants = {name: partial(build_network, name) for name in specs.MODELS}
        load_strict(self, state, "network", variants=variants)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize the weights for training from scratch, as in DiT (arXiv 2212.09748, section 3.2)."""
        init_weights(self, generator)


def resample_tokens(rows: Tensor, tokens: int) -> Tensor:
    """Rows (B, S, D) resampled along time to `tokens`, each the nearest one: (B, tokens, D)."""
    return F.interpolate(rows.transpose(1, 2), tokens, mode="nearest-exact").transpose(1, 2)


def build_network(name: str) -> MMAudio:
    """Build the network of the base model `name` with new weights, for 8 s; ConfigError for an unknown name.

    Under `torch.device("meta")` no weights are drawn and no memory is allocated until `load_released`.
    """
    model = specs.model_spec(name)
    return MMAudio(model.network, model.codec)
