"""Training diagnostics: LoRA update norms, peak memory, model FLOPs utilisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.draws import build_fixed_draws
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import compute_losses
from mmaudio.lora import base_values
from mmaudio.lora.peft_layers import ADAPTER_NAME, lora_layers
from mmaudio.model.blocks import block_name
from mmaudio.utils.matmul_speed import measure_matmul_speed

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@torch.no_grad()
def compute_adapter_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norm of what training has added to the weights, by block; zero for a fresh adapter.

    With DoRA that is the change of direction and, beside it, of the magnitudes.
    """
    values, parameters = base_values.get(model), dict(model.named_parameters())
    squared_norms = [
        (name, float((parameters[name] - base.to(parameters[name])).square().sum()))
        for name, base in values.base.items()
        if parameters[name].requires_grad
    ]
    squared_norms += [
        (name, _squared_norm(layer, values.pissa_factors.get(name))) for name, layer in lora_layers(model).items()
    ]
    sums: dict[str, float] = {}
    for name, squared_norm in squared_norms:
        block = block_name(name)
        sums[block] = sums.get(block, 0.0) + squared_norm
    return {block: math.sqrt(total) for block, total in sums.items()}


def _squared_norm(layer: LoraLayer, pissa_factors: tuple[Tensor, Tensor] | None) -> float:
    """Squared norm of scale * B A, less PiSSA's initial product, from the products of the factors with themselves."""
    a, b = (half[ADAPTER_NAME].weight.flatten(1).float() for half in (layer.lora_A, layer.lora_B))  # (r, in), (out, r)
    b = layer.scaling[ADAPTER_NAME] * b
    if pissa_factors is not None:
        a, b = torch.cat([a, pissa_factors[0]]), torch.cat([b, -pissa_factors[1]], 1)
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))


@dataclass(frozen=True)
class UtilizationMeter:
    """Conversion of clips per second to model FLOPs utilisation."""

    flops_per_clip: float
    matmul_flops_per_second: float
    """Of a large matrix product, measured."""

    def utilisation(self, clips_per_second: float) -> float:
        """Model FLOPs utilisation, 0 to 1; operations that gradient checkpointing repeats do not count."""
        return self.flops_per_clip * clips_per_second / self.matmul_flops_per_second


def build_utilization_meter(state: TrainState, dataset: ClipDataset, config: TrainConfig) -> UtilizationMeter:
    """Count the operations and measure the matrix-product speed of the dataset's device."""
    device = dataset.mean.device
    speed = measure_matmul_speed(device, compute_dtype(device, config.amp))
    return UtilizationMeter(count_flops_per_clip(state, dataset, config), speed)


def count_flops_per_clip(state: TrainState, dataset: ClipDataset, config: TrainConfig) -> float:
    """Operations of the matrix products, convolutions and attention of one clip, forward and backward."""
    network, device = state.network, dataset.mean.device
    checkpointing, network.gradient_checkpointing = network.gradient_checkpointing, False
    draws = build_fixed_draws(1, dataset.mean.shape[1:]).to(device)
    state.model.eval()
    try:
        # attention as plain matrix products: the counter knows those
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            losses = compute_losses(network, dataset, draws, compute_dtype(device, config.amp))
            torch.autograd.backward(losses.sum())
    finally:
        network.gradient_checkpointing = checkpointing
        state.optimizer.zero_grad()
    return float(counter.get_total_flops())


def peak_memory_gb(device: torch.device) -> float | None:
    """Peak GPU memory of this process so far, in GB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
