"""Muon for the matrices of transformer blocks and AdamW for all else, as the recipe's stages use them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmaudio.pretraining.training_loop import Recipe

INNER = re.compile(r"(blocks|spatial_attn_agg)\..*weight$")
"""Names of the weights that Muon may take: of transformer blocks, not of inputs, embeddings and outputs."""


class Optimizers:
    """Muon for the matrices of transformer blocks, where the recipe has it, and AdamW for all else."""

    def __init__(self, module: nn.Module, recipe: Recipe, recordable: bool = False) -> None:
        """`recordable`: learning rates are tensors on the module's device, and no step waits for it."""
        named = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.inner = [value for name, value in named.items() if recipe.muon and INNER.search(name) and value.ndim > 1]
        # Muon takes matrices: a convolution's weight is one over its inputs and taps, on the same memory
        self.matrices = [nn.Parameter(value.data.flatten(1)) for value in self.inner]
        taken = {id(value) for value in self.inner}
        rest = [value for value in named.values() if id(value) not in taken]
        self.recipe, decay = recipe, recipe.weight_decay
        self.rates: list[Any] = [recipe.learning_rate, recipe.muon]
        if recordable:
            self.rates = [torch.tensor(rate, device=next(module.parameters()).device) for rate in self.rates]
        on_gpu = recordable and self.rates[0].is_cuda
        flags = {"fused": True, "capturable": True} if on_gpu else {}
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, self.rates[0], betas=(0.9, 0.95), weight_decay=decay, **flags)
        ]
        if self.matrices:
            kind = RecordableMuon if recordable else torch.optim.Muon
            self.parts.append(kind(self.matrices, self.rates[1], decay, adjust_lr_fn="match_rms_adamw"))

    def step(self, step: int) -> None:
        """Move the weights along their gradients, at the learning rates of step 0, 1, ..."""
        self.set_rates(step)
        self.move()

    def set_rates(self, step: int) -> None:
        """The learning rates of step 0, 1, ..."""
        highest = (self.recipe.learning_rate, self.recipe.muon)
        for part, rate, high in zip(self.parts, self.rates, highest, strict=False):
            if isinstance(rate, Tensor):
                rate.fill_(high * self.recipe.share_at(step))
                continue
            for group in part.param_groups:
                group["lr"] = high * self.recipe.share_at(step)

    def move(self) -> None:
        """Move the weights along their gradients."""
        for value, matrix in zip(self.inner, self.matrices, strict=True):
            matrix.grad = None if value.grad is None else value.grad.flatten(1)
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """What is needed to go on."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from `state_dict`, of whatever device."""
        for part, state, rate in zip(self.parts, states, self.rates[: len(self.parts)], strict=True):
            own = [{name: group.get(name) for name in ("fused", "capturable")} for group in part.param_groups]
            for group, flags in zip(state["param_groups"], own, strict=True):
                # torch reads from the stored flags where the count of steps belongs
                group.update({name: flag for name, flag in flags.items() if name in group})
            part.load_state_dict(state)
            for group in part.param_groups:
                group["lr"] = rate


class RecordableMuon(torch.optim.Muon):
    """torch's Muon with the learning rate as a tensor, and one product for all matrices of a shape."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the matrices along their gradients."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for shape, matrices in shapes.items():
                size = group["lr"] * (0.2 * math.sqrt(max(shape)))  # match_rms_adamw
                updates = orthogonal(torch.stack([self._direction(matrix, group) for matrix in matrices]), group)
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update * size)

    def _direction(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with Nesterov's momentum."""
        assert matrix.grad is not None
        state, momentum = self.state[matrix], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(buffer, momentum)


def orthogonal(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """Newton-Schulz's iteration in bfloat16: (K, rows, columns) with singular values near 1."""
    a, b, c = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
