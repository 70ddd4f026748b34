"""Muon for the matrices of transformer blocks, and AdamW for all other weights."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from mmaudio.pretraining.recipe import Recipe

BLOCK_WEIGHT = re.compile(r"(blocks|spatial_attn_agg)\..*weight$")
"""Names of the weights that Muon may take: those of transformer blocks, not of inputs, embeddings and outputs."""


class MuonAdamW:
    """Both optimizers of a module, and the schedule of their learning rates."""

    def __init__(self, module: nn.Module, recipe: Recipe, capturable: bool = False) -> None:
        """`capturable`: learning rates are tensors on the module's device, and no step waits for it."""
        trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.muon_weights = [
            value
            for name, value in trainable.items()
            if recipe.muon_learning_rate and BLOCK_WEIGHT.search(name) and value.ndim > 1
        ]
        # Muon takes matrices: a convolution's weight is one over its inputs and taps, on the same memory
        self.matrices = [nn.Parameter(value.data.flatten(1)) for value in self.muon_weights]
        muon_ids = {id(value) for value in self.muon_weights}
        adamw_weights = [value for value in trainable.values() if id(value) not in muon_ids]
        self.recipe, decay = recipe, recipe.weight_decay
        self.learning_rates: list[Any] = [recipe.learning_rate, recipe.muon_learning_rate]
        if capturable:
            device = next(module.parameters()).device
            self.learning_rates = [torch.tensor(rate, device=device) for rate in self.learning_rates]
        on_gpu = capturable and self.learning_rates[0].is_cuda
        flags = {"fused": True, "capturable": True} if on_gpu else {}
        adamw_rate, muon_rate = self.learning_rates
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(adamw_weights, adamw_rate, betas=(0.9, 0.95), weight_decay=decay, **flags)
        ]
        if self.matrices:
            muon_class = CapturableMuon if capturable else torch.optim.Muon
            self.optimizers.append(muon_class(self.matrices, muon_rate, decay, adjust_lr_fn="match_rms_adamw"))

    def step(self, step: int) -> None:
        """Update the weights by their gradients, at the learning rates of step 0, 1, ..."""
        self.set_learning_rates(step)
        self.apply_gradients()

    def set_learning_rates(self, step: int) -> None:
        """Set the learning rates of step 0, 1, ..."""
        peaks = (self.recipe.learning_rate, self.recipe.muon_learning_rate)
        for optimizer, rate, peak in zip(self.optimizers, self.learning_rates, peaks, strict=False):
            if isinstance(rate, Tensor):
                rate.fill_(peak * self.recipe.learning_rate_factor(step))
                continue
            for group in optimizer.param_groups:
                group["lr"] = peak * self.recipe.learning_rate_factor(step)

    def apply_gradients(self) -> None:
        """Update the weights by their gradients."""
        for weight, matrix in zip(self.muon_weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of each optimizer."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore `state_dict`, which may come from another device."""
        rates = self.learning_rates[: len(self.optimizers)]
        for optimizer, state, rate in zip(self.optimizers, states, rates, strict=True):
            current = [{name: group.get(name) for name in ("fused", "capturable")} for group in optimizer.param_groups]
            for group, flags in zip(state["param_groups"], current, strict=True):
                # the device of the restored step counts depends on the stored flags
                group.update({name: flag for name, flag in flags.items() if name in group})
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = rate


class CapturableMuon(torch.optim.Muon):
    """torch's Muon with the learning rate as a tensor, and batched products for the matrices of one shape."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the matrices by their gradients."""
        assert closure is None
        for group in self.param_groups:
            matrices_by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    matrices_by_shape[matrix.shape].append(matrix)
            for shape, matrices in matrices_by_shape.items():
                step_size = group["lr"] * (0.2 * math.sqrt(max(shape)))  # match_rms_adamw
                directions = torch.stack([self._nesterov_direction(matrix, group) for matrix in matrices])
                for matrix, update in zip(matrices, orthogonalize(directions, group), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update * step_size)

    def _nesterov_direction(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with Nesterov's momentum."""
        assert matrix.grad is not None
        state, momentum = self.state[matrix], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(buffer, momentum)


def orthogonalize(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """Newton-Schulz iteration in bfloat16: (K, rows, columns) -> the same with singular values near 1."""
    a, b, c = group["ns_coefficients"]
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
