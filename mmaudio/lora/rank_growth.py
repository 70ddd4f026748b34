"""Rank growth of an adapter in training without a change of its output: A gets new rows, B columns of zeros.

r old rank, R new rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmaudio.lora.adapter import draw_lora_a
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import ADAPTER_NAME, KEY_PREFIX, is_peft_model, lora_layers
from mmaudio.lora.targets import layer_settings


@dataclass(frozen=True)
class RankGrowth:
    """Growth of one parameter."""

    axis: int
    """Axis of the rank: 0 in A (R, in, ...), 1 in B (out, R, ...)."""
    factor: float
    """Factor on the old values, which compensates a change of the adapter's scale."""
    added: Tensor
    """New values, appended to the old ones."""

    def apply(self, values: Tensor) -> Tensor:
        """Grow the parameter's old values, or a tensor like them such as their EMA."""
        return torch.cat([values * self.factor, self.added.to(values)], self.axis)

    def apply_to_moment(self, moment: Tensor, power: int) -> Tensor:
        """Grow an optimizer's moment of the gradient to the `power`: divided by the factor, zero for new values."""
        return torch.cat([moment / self.factor**power, torch.zeros_like(self.added, dtype=moment.dtype)], self.axis)


def grow_rank(
    model: nn.Module, config: LoRAConfig, targets: Sequence[str], generator: torch.Generator | None = None
) -> dict[str, RankGrowth]:
    """Give every layer the rank and scale of `config` through new parameters; returns their growth by name.

    New rows of A are initialized like those of a new adapter, or to zero without a `generator`. No rank may shrink.
    """
    settings, growths = layer_settings(config, targets), {}
    for name, layer in lora_layers(model).items():
        new, a, b = settings[name], layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        added_ranks = new.rank - layer.r[ADAPTER_NAME]
        factor = layer.scaling[ADAPTER_NAME] / new.scale
        layer.r[ADAPTER_NAME], layer.lora_alpha[ADAPTER_NAME] = new.rank, new.alpha
        layer.scaling[ADAPTER_NAME] = new.scale
        if not added_ranks and factor == 1:
            continue
        assert added_ranks >= 0
        shape = (new.rank, *a.weight.shape[1:])
        rows = torch.zeros(shape) if generator is None else draw_lora_a(shape, generator)
        rows = rows[new.rank - added_ranks :].to(a.weight)
        columns = b.weight.new_zeros(b.weight.shape[0], added_ranks, *b.weight.shape[2:])
        for half, growth in ((a, RankGrowth(0, 1.0, rows)), (b, RankGrowth(1, factor, columns))):
            # a new parameter, since autograd graphs may contain the old one's shape
            half.weight = nn.Parameter(growth.apply(half.weight.detach()))
            growths[f"{KEY_PREFIX}{name}.lora_{'A' if half is a else 'B'}.{ADAPTER_NAME}.weight"] = growth
        _set_sizes(a, b, new.rank)
    if is_peft_model(model):
        model.peft_config[ADAPTER_NAME].r, model.peft_config[ADAPTER_NAME].lora_alpha = config.rank, config.alpha
    return growths


def _set_sizes(a: nn.Module, b: nn.Module, rank: int) -> None:
    """Set the size attributes of the A and B modules."""
    for module, linear, convolution in ((a, "out_features", "out_channels"), (b, "in_features", "in_channels")):
        setattr(module, linear if isinstance(module, nn.Linear) else convolution, rank)
