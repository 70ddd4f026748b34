"""Transformer blocks of the network: single stream, joint attention over three streams, and the final layer.

B batch, N latent tokens, V CLIP tokens, L text tokens, D width, H heads, d head width, C latent channels.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from mmaudio.model.layers import MLP, Conv1d, SelfAttention, add_gated, attend_heads, modulated_norm, token_layer


def block_name(name: str) -> str:
    """Block of a parameter or module by its dotted name: `joint_blocks.0`, ..., or `other` outside of the blocks."""
    match = re.search(r"(joint|fused)_blocks\.\d+", name)
    return match.group() if match else "other"


class TransformerBlock(nn.Module):
    """Transformer block of one stream, modulated by a condition of shape (B, 1 or N, D), or of fewer rows.

    `kernel_size` is 3 for the latent and CLIP streams, 1 for text. A block with `inputs_only` computes q, k, v for the
    other streams, and its own stream ends there.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, kernel_size: int, inputs_only: bool = False) -> None:
        super().__init__()
        self.attn = SelfAttention(width, num_heads)
        if not inputs_only:
            self.linear1 = token_layer(width, width, kernel_size)
            self.ffn = MLP(width, hidden, kernel_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (2 if inputs_only else 6) * width))

    def modulation(self, condition: Tensor, positions: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shift and scale of the attention; without `inputs_only` also its gate, and shift, scale, gate of the MLP.

        `positions` (N,) are the rows of the condition that the tokens have; None: one each, or one for all.
        """
        modulation: Tensor = self.adaLN_modulation(condition)
        if positions is not None:
            modulation = modulation.index_select(1, positions)
        return modulation.chunk(modulation.shape[-1] // condition.shape[-1], dim=-1)

    def attention_inputs(
        self, x: Tensor, modulation: tuple[Tensor, ...], table: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of the modulated stream, each (B, H, N, d)."""
        shift, scale = modulation[:2]
        queries, keys, values = self.attn(modulated_norm(x, shift, scale), table)
        return queries, keys, values

    def update(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Add the attention output and the MLP to the stream: (B, N, D)."""
        gate, shift_mlp, scale_mlp, gate_mlp = modulation[2:]
        x = add_gated(x, gate, self.linear1(attended))
        return add_gated(x, gate_mlp, self.ffn(modulated_norm(x, shift_mlp, scale_mlp)))

    def forward(self, x: Tensor, condition: Tensor, table: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Self-attention and MLP on one stream: (B, N, D)."""
        modulation = self.modulation(condition, positions)
        return self.update(x, attend_heads(*self.attention_inputs(x, modulation, table)), modulation)


class JointBlock(nn.Module):
    """Joint attention over latent, CLIP and text streams. The `last` block updates only the latent stream."""

    def __init__(self, width: int, num_heads: int, hidden: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.latent_block = TransformerBlock(width, num_heads, hidden, kernel_size=3)
        self.clip_block = TransformerBlock(width, num_heads, hidden, kernel_size=3, inputs_only=last)
        self.text_block = TransformerBlock(width, num_heads, hidden, kernel_size=1, inputs_only=last)

    def forward(
        self,
        latent: Tensor,  # (B, N, D)
        clip: Tensor,  # (B, V, D)
        text: Tensor,  # (B, L, D)
        global_cond: Tensor,  # (B, 1, D)
        token_cond: Tensor,  # (B, N, D), or fewer rows
        latent_table: Tensor,
        clip_table: Tensor,
        positions: Tensor | None = None,  # (N,), the rows of token_cond that the latent's tokens have
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three streams after the block; the last block returns CLIP and text unchanged."""
        modulations = (
            self.latent_block.modulation(token_cond, positions),
            self.clip_block.modulation(global_cond),
            self.text_block.modulation(global_cond),
        )
        inputs = (
            self.latent_block.attention_inputs(latent, modulations[0], latent_table),
            self.clip_block.attention_inputs(clip, modulations[1], clip_table),
            self.text_block.attention_inputs(text, modulations[2], None),
        )
        queries, keys, values = zip(*inputs, strict=True)
        keys_all, values_all = torch.cat(keys, dim=2), torch.cat(values, dim=2)  # (B, H, N + V + L, d)
        if self.last:  # the attention of the other streams' queries is not used
            attended = attend_heads(queries[0], keys_all, values_all)
            return self.latent_block.update(latent, attended, modulations[0]), clip, text
        attended = attend_heads(torch.cat(queries, dim=2), keys_all, values_all)
        latent_a, clip_a, text_a = torch.split(attended, [latent.shape[1], clip.shape[1], text.shape[1]], dim=1)
        return (
            self.latent_block.update(latent, latent_a, modulations[0]),
            self.clip_block.update(clip, clip_a, modulations[1]),
            self.text_block.update(text, text_a, modulations[2]),
        )


class FinalLayer(nn.Module):
    """Norm modulated by the global condition (B, 1, D), then a convolution to the latent channels."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.conv = Conv1d(width, latent_dim, 7, padding=3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        velocity: Tensor = self.conv(modulated_norm(x, shift, scale))
        return velocity
