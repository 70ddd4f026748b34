"""Weight initialization for training the network from scratch, as in DiT (arXiv 2212.09748, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02
"""Standard deviation of the learned embeddings and of the weights of the time embedding."""


def init_weights(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialize every weight of an MMAudio network in place, in the order of its modules.

    Linears and convolutions: Xavier uniform over the flattened matrix (out, in * k), biases zero. Time embedding and
    learned embeddings: normal with standard deviation 0.02. Every `adaLN_modulation` and the final convolution: zero,
    so that the blocks are the identity and the velocity is zero.
    """
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv1d)):
            continue
        if "adaLN_modulation" in name or name == "final_layer.conv":
            nn.init.zeros_(module.weight)
        elif name.startswith("t_embed."):
            nn.init.normal_(module.weight, std=EMBEDDING_STD, generator=generator)
        else:
            _xavier_uniform_flat(module.weight, generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters(recurse=False):
        assert name.startswith(("empty_", "sync_pos_emb")), name
        nn.init.normal_(parameter, std=EMBEDDING_STD, generator=generator)


def _xavier_uniform_flat(weight: Tensor, generator: torch.Generator | None) -> None:
    fan_in = math.prod(weight.shape[1:])
    bound = math.sqrt(6 / (fan_in + weight.shape[0]))
    nn.init.uniform_(weight, -bound, bound, generator=generator)
