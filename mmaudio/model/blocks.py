"""The network's transformer blocks: one stream, three streams attended jointly, and the final layer.

B batch, N latent tokens, V CLIP tokens, L text tokens, D width, H heads, d head width, C latent channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmaudio.model.layers import MLP, Conv1d, SelfAttention, attend, modulated_norm, token_layer


class TransformerBlock(nn.Module):
    """One stream's block, modulated by a condition of shape (B, 1 or N, D).

    `kernel` 3 for the latent and CLIP streams, 1 for text. `inputs_only`: a stream that ends here, and only gives
    its q, k, v to the others.
    """

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, inputs_only: bool = False) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        if not inputs_only:
            self.linear1 = token_layer(width, width, kernel)
            self.ffn = MLP(width, hidden, kernel)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (2 if inputs_only else 6) * width))

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Shift and scale of the attention, then (in a whole block) its gate, and shift, scale, gate of the MLP."""
        both: Tensor = self.adaLN_modulation(condition)
        return both.chunk(both.shape[-1] // condition.shape[-1], dim=-1)

    def attention_inputs(
        self, x: Tensor, modulation: tuple[Tensor, ...], table: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of the modulated stream, each (B, H, N, d)."""
        shift, scale = modulation[:2]
        queries, keys, values = self.attn(modulated_norm(x, shift, scale), table)
        return queries, keys, values

    def update(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """The stream after its attention output and its MLP: (B, N, D)."""
        gate, shift_mlp, scale_mlp, gate_mlp = modulation[2:]
        x = torch.addcmul(x, gate, self.linear1(attended))
        return torch.addcmul(x, gate_mlp, self.ffn(modulated_norm(x, shift_mlp, scale_mlp)))

    def forward(self, x: Tensor, condition: Tensor, table: Tensor | None) -> Tensor:
        """Self-attention and MLP on one stream: (B, N, D)."""
        modulation = self.modulation(condition)
        return self.update(x, attend(*self.attention_inputs(x, modulation, table)), modulation)


class JointBlock(nn.Module):
    """Latent, CLIP and text streams, attended jointly. The `last` one updates the latent stream only."""

    def __init__(self, width: int, heads: int, hidden: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.latent_block = TransformerBlock(width, heads, hidden, kernel=3)
        self.clip_block = TransformerBlock(width, heads, hidden, kernel=3, inputs_only=last)
        self.text_block = TransformerBlock(width, heads, hidden, kernel=1, inputs_only=last)

    def forward(
        self,
        latent: Tensor,  # (B, N, D)
        clip: Tensor,  # (B, V, D)
        text: Tensor,  # (B, L, D)
        shared: Tensor,  # (B, 1, D)
        per_token: Tensor,  # (B, N, D)
        latent_table: Tensor,
        clip_table: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three streams after the block; the last block returns CLIP and text as they came."""
        modulations = (
            self.latent_block.modulation(per_token),
            self.clip_block.modulation(shared),
            self.text_block.modulation(shared),
        )
        inputs = (
            self.latent_block.attention_inputs(latent, modulations[0], latent_table),
            self.clip_block.attention_inputs(clip, modulations[1], clip_table),
            self.text_block.attention_inputs(text, modulations[2], None),
        )
        queries, keys, values = zip(*inputs, strict=True)
        keys_all, values_all = torch.cat(keys, dim=2), torch.cat(values, dim=2)  # (B, H, N + V + L, d)
        if self.last:  # nobody reads the attention of the other streams' queries
            attended = attend(queries[0], keys_all, values_all)
            return self.latent_block.update(latent, attended, modulations[0]), clip, text
        attended = attend(torch.cat(queries, dim=2), keys_all, values_all)
        latent_a, clip_a, text_a = torch.split(attended, [latent.shape[1], clip.shape[1], text.shape[1]], dim=1)
        return (
            self.latent_block.update(latent, latent_a, modulations[0]),
            self.clip_block.update(clip, clip_a, modulations[1]),
            self.text_block.update(text, text_a, modulations[2]),
        )


class FinalLayer(nn.Module):
    """Modulated norm and a convolution to the latent's channels, modulated by the shared condition (B, 1, D)."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.conv = Conv1d(width, latent_dim, 7, padding=3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        velocity: Tensor = self.conv(modulated_norm(x, shift, scale))
        return velocity
