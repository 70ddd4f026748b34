"""The MMAudio network: video, text and noise to a velocity in latent space (arXiv 2412.15322).

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
from mmaudio.model.initialization import initialise
from mmaudio.model.layers import MLP, Conv1d, TimeEmbedding, rotary_table
from mmaudio.model.state_dict import Released, is_meta, load_reconciled

IGNORED_KEYS = {"t_embed.freqs", "latent_rot", "clip_rot"}
"""Computed tables that old files hold."""


@dataclass(frozen=True)
class Conditions:
    """Projected conditions, which depend neither on the latent nor on the time."""

    clip_f: Tensor  # (B, V, D)
    sync_f: Tensor  # (B, N, D), resampled to the latent's tokens
    text_f: Tensor  # (B, L, D)
    clip_c: Tensor  # (B, D)
    text_c: Tensor  # (B, D)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five tensors in the order of the fields."""
        return self.clip_f, self.sync_f, self.text_f, self.clip_c, self.text_c

    @property
    def batch(self) -> int:
        """B."""
        return self.clip_f.shape[0]

    def cat(self, other: Conditions) -> Conditions:
        """Both, one after the other along the batch."""
        return Conditions(*(torch.cat(pair) for pair in zip(self.tensors(), other.tensors(), strict=True)))

    def index(self, rows: Tensor | slice) -> Conditions:
        """The given rows of the batch."""
        return Conditions(*(tensor[rows] for tensor in self.tensors()))

    def repeat(self, times: int) -> Conditions:
        """Every row `times` times in a row, without a copy of a single row: (B * times, ...)."""
        if self.batch == 1:
            return Conditions(*(tensor.expand(times, *tensor.shape[1:]) for tensor in self.tensors()))
        return Conditions(*(tensor.repeat_interleave(times, dim=0) for tensor in self.tensors()))


class MMAudio(Released):
    """The flow-matching transformer of `spec`; with a codec it can also set its lengths from a duration.

    A new network is initialised for training from scratch: every block starts as the identity and the velocity at zero.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, spec: specs.NetworkSpec, codec: specs.CodecSpec | None = None) -> None:
        super().__init__()
        self.spec, self.codec = spec, codec
        self.gradient_checkpointing = False
        """Recompute every block's activations in the backward pass instead of keeping them."""
        self.set_lengths(spec.latent_tokens, spec.clip_tokens, spec.sync_tokens)
        width, hidden = spec.width, spec.width * spec.mlp_ratio

        self.sync_pos_emb = nn.Parameter(torch.empty(1, 1, specs.TOKENS_PER_SEGMENT, spec.sync_dim))
        self.register_buffer("latent_mean", torch.zeros(1, 1, spec.latent_dim))
        self.register_buffer("latent_std", torch.ones(1, 1, spec.latent_dim))
        self.empty_string_feat = nn.Parameter(torch.empty(spec.text_tokens, spec.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.empty(1, spec.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.empty(1, spec.sync_dim))

        first = nn.SiLU if spec.v2 else nn.SELU
        between = (nn.SiLU(),) if spec.v2 else ()
        self.audio_input_proj = nn.Sequential(
            Conv1d(spec.latent_dim, width, 7, padding=3), first(), MLP(width, hidden, kernel=7)
        )
        self.clip_input_proj = nn.Sequential(nn.Linear(spec.clip_dim, width), *between, MLP(width, hidden, kernel=3))
        self.sync_input_proj = nn.Sequential(
            Conv1d(spec.sync_dim, width, 7, padding=3), first(), MLP(width, hidden, kernel=3)
        )
        self.text_input_proj = nn.Sequential(nn.Linear(spec.text_dim, width), *between, MLP(width, hidden))
        self.clip_cond_proj = nn.Linear(width, width)
        self.text_cond_proj = nn.Linear(width, width)
        self.global_cond_mlp = MLP(width, hidden)
        self.t_embed = TimeEmbedding(width, width if spec.v2 else 256, period=1.0 if spec.v2 else 10_000.0)

        self.joint_blocks = nn.ModuleList(
            JointBlock(width, spec.heads, hidden, last=i == spec.joint_blocks - 1) for i in range(spec.joint_blocks)
        )
        self.fused_blocks = nn.ModuleList(
            TransformerBlock(width, spec.heads, hidden, kernel=3) for _ in range(spec.fused_blocks)
        )
        self.final_layer = FinalLayer(width, spec.latent_dim)
        if not is_meta(self):  # drawing there would make torch import its compiler
            self.initialise()

    # --- lengths

    def set_lengths(self, latent: int, clip: int, sync: int) -> None:
        """Sets the token counts N, V and S; only the rotary tables depend on them.

        Raises ConfigError for a sync count that is no multiple of a segment's 8 tokens.
        """
        if min(latent, clip, sync) < 1 or sync % specs.TOKENS_PER_SEGMENT:
            raise ConfigError(f"lengths {latent}/{clip}/{sync}: at least 1 each, sync tokens in multiples of 8")
        samples = latent * self.codec.hop * 2 if self.codec else 0
        self.lengths = specs.Lengths(latent, clip, sync, samples)
        """Current token counts; `samples` is 0 for a network without a codec."""

    def set_duration(self, seconds: float) -> None:
        """Sets the lengths for `seconds`; raises ConfigError where they are too few or the codec is unknown."""
        if self.codec is None:
            raise ConfigError("set_duration: this network has no codec, so no sampling rate; use set_lengths")
        lengths = specs.lengths(self.codec, seconds)
        self.set_lengths(lengths.latent, lengths.clip, lengths.sync)

    # --- conditions

    def empty_clip(self, batch: int) -> Tensor:
        """The learned row that stands for no video, over all CLIP tokens: (B, V, clip_dim)."""
        return self.empty_clip_feat.expand(batch, self.lengths.clip, -1)

    def empty_sync(self, batch: int) -> Tensor:
        """The learned row that stands for no video, over all sync tokens: (B, S, sync_dim)."""
        return self.empty_sync_feat.expand(batch, self.lengths.sync, -1)

    def empty_text(self, batch: int) -> Tensor:
        """The learned rows that stand for no text: (B, L, text_dim)."""
        return self.empty_string_feat.expand(batch, -1, -1)

    def empty_conditions(self, batch: int, negative_text: Tensor | None = None) -> Conditions:
        """Conditions of no video and no text, or of a negative prompt's features (1 or B, L, text_dim)."""
        text = self.empty_text(1) if negative_text is None else negative_text
        rows = text.shape[0]
        conditions = self.preprocess_conditions(self.empty_clip(rows), self.empty_sync(rows), text)
        return conditions.repeat(batch) if rows == 1 else conditions

    def preprocess_conditions(self, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> Conditions:
        """Projects raw features (B, V, clip_dim), (B, S, sync_dim), (B, L, text_dim).

        Raises DataError on other shapes.
        """
        self._check_features(clip_f, sync_f, text_f)
        clip_f = self.clip_input_proj(clip_f)
        text_f = self.text_input_proj(text_f)
        segments = rearrange(sync_f, "b (s k) c -> b s k c", k=specs.TOKENS_PER_SEGMENT)
        sync_f = self.sync_input_proj((segments + self.sync_pos_emb).flatten(1, 2))  # (B, S, D)
        sync_f = F.interpolate(sync_f.transpose(1, 2), self.lengths.latent, mode="nearest-exact").transpose(1, 2)
        clip_c, text_c = self.clip_cond_proj(clip_f.mean(1)), self.text_cond_proj(text_f.mean(1))
        return Conditions(clip_f, sync_f, text_f, clip_c, text_c)

    def _check_features(self, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> None:
        spec, size = self.spec, self.lengths
        for name, features, tokens, width in (
            ("clip", clip_f, size.clip, spec.clip_dim),
            ("sync", sync_f, size.sync, spec.sync_dim),
            ("text", text_f, spec.text_tokens, spec.text_dim),
        ):
            if features.ndim != 3 or features.shape[1:] != (tokens, width):
                raise DataError(
                    f"{name} features of shape {tuple(features.shape)}: this network takes (batch, {tokens}, {width}); "
                    "check the model's name and the duration (set_duration)"
                )

    # --- velocity

    def predict_velocity(self, latent: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Velocity (B, N, C) at the normalised latent (B, N, C) and the times t, (B,) or one for all, in [0, 1]."""
        batch, tokens, _ = latent.shape
        if tokens != self.lengths.latent:
            raise DataError(f"latent of {tokens} tokens: the network is set to {self.lengths.latent} (set_duration)")
        clip, text = conditions.clip_f, conditions.text_f
        shared = self.t_embed(t.expand(batch)) + self.global_cond_mlp(conditions.clip_c + conditions.text_c)
        shared = shared[:, None]  # (B, 1, D)
        per_token = (shared + conditions.sync_f).contiguous()  # (B, N, D)
        head = self.spec.width // self.spec.heads
        latent_table = rotary_table(tokens, head, 1.0, latent.device)
        clip_table = rotary_table(clip.shape[1], head, tokens / clip.shape[1], latent.device)

        x = self.audio_input_proj(latent)
        for block in self.joint_blocks:
            x, clip, text = self._run(block, x, clip, text, shared, per_token, latent_table, clip_table)
        for block in self.fused_blocks:
            x = self._run(block, x, per_token, latent_table)
        velocity: Tensor = self.final_layer(x, shared)
        return velocity

    def _run(self, block: nn.Module, *inputs: Tensor) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(self, latent: Tensor, clip_f: Tensor, sync_f: Tensor, text_f: Tensor, t: Tensor) -> Tensor:
        """Velocity (B, N, C) from the latent, raw features and times (B,)."""
        return self.predict_velocity(latent, t, self.preprocess_conditions(clip_f, sync_f, text_f))

    # --- latents and weights

    def normalize(self, latent: Tensor) -> Tensor:
        """The codec's latents to the network's scale."""
        return (latent - self.latent_mean) / self.latent_std

    def unnormalize(self, latent: Tensor) -> Tensor:
        """The network's latents to the codec's scale."""
        return latent * self.latent_std + self.latent_mean

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Loads a released state dict, key by key; raises WeightsError where keys or shapes differ.

        Values take the module's dtype; a network on the meta device takes the given tensors themselves.
        """
        state = {key: value for key, value in state.items() if key not in IGNORED_KEYS}
        variants = {name: partial(build_network, name) for name in specs.MODELS}
        load_reconciled(self, state, "network", variants=variants)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draws weights for training from scratch (as DiT does: arXiv 2212.09748, section 3.2)."""
        initialise(self, generator)


def build_network(name: str) -> MMAudio:
    """The network of the base model `name` with new weights, for 8 s; raises ConfigError for an unknown name.

    Built under `torch.device("meta")` it draws no weights and takes no memory until `load_released`.
    """
    model = specs.model_spec(name)
    return MMAudio(model.network, model.codec)
