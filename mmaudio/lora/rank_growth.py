"""A larger rank for an adapter in training that computes what it computed: A gets new rows, B columns of zeros.

r old rank, R new rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from mmaudio.lora.adapter import drawn
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import ADAPTER, PREFIX, lora_layers
from mmaudio.lora.targets import layer_settings


@dataclass(frozen=True)
class Growth:
    """What happened to one parameter."""

    axis: int
    """Of the rank: 0 in A (R, in, ...), 1 in B (out, R, ...)."""
    factor: float
    """What the old values were multiplied by, where the adapter's scale has changed."""
    added: Tensor
    """The new values, behind the old ones."""

    def apply(self, values: Tensor) -> Tensor:
        """Another copy of the parameter's old values, such as their running average, grown alike."""
        return torch.cat([values * self.factor, self.added.to(values)], self.axis)

    def apply_to_moment(self, moment: Tensor, power: int) -> Tensor:
        """An optimizer's running mean of the gradient to the `power`: scaled against the values, zero for new ones."""
        return torch.cat([moment / self.factor**power, torch.zeros_like(self.added, dtype=moment.dtype)], self.axis)


def grow(
    model: nn.Module, config: LoRAConfig, targets: Sequence[str], generator: torch.Generator | None = None
) -> dict[str, Growth]:
    """Give every layer the rank and scale of `config`; what happened to every parameter that a new one replaces.

    New rows of A are drawn as a new adapter's are, or zero without a `generator`. No rank gets smaller.
    """
    settings, found = layer_settings(config, targets), {}
    for name, layer in lora_layers(model).items():
        new, a, b = settings[name], layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        more = new.rank - layer.r[ADAPTER]
        factor = layer.scaling[ADAPTER] / new.scale
        layer.r[ADAPTER], layer.lora_alpha[ADAPTER], layer.scaling[ADAPTER] = new.rank, new.alpha, new.scale
        if not more and factor == 1:
            continue
        assert more >= 0
        shape = (new.rank, *a.weight.shape[1:])
        rows = torch.zeros(shape) if generator is None else drawn(shape, generator)
        rows = rows[new.rank - more :].to(a.weight)
        columns = b.weight.new_zeros(b.weight.shape[0], more, *b.weight.shape[2:])
        for half, growth in ((a, Growth(0, 1.0, rows)), (b, Growth(1, factor, columns))):
            half.weight = nn.Parameter(growth.apply(half.weight.detach()))  # graphs may still know the old one's shape
            found[f"{PREFIX}{name}.lora_{'A' if half is a else 'B'}.{ADAPTER}.weight"] = growth
        _tell_sizes(a, b, new.rank)
    if isinstance(model, PeftModel):
        model.peft_config[ADAPTER].r, model.peft_config[ADAPTER].lora_alpha = config.rank, config.alpha
    return found


def _tell_sizes(a: nn.Module, b: nn.Module, rank: int) -> None:
    """The sizes that linears and convolutions say of themselves."""
    for module, linear, convolution in ((a, "out_features", "out_channels"), (b, "in_features", "in_channels")):
        setattr(module, linear if isinstance(module, nn.Linear) else convolution, rank)
