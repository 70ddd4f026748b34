"""What a run measures of itself besides losses: the adapter's size by block, memory, operations per second.

B clips at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import Draws, TrainState
from mmaudio.finetune.step import losses
from mmaudio.lora import base_values
from mmaudio.lora.peft_layers import ADAPTER, lora_layers
from mmaudio.utils.matmul_speed import matmul_speed


@torch.no_grad()
def update_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norm of what training has added to the weights, by block; zero for a fresh adapter.

    Of DoRA that is the change of direction and, beside it, of the magnitudes.
    """
    squares: dict[str, float] = {}
    kept, parameters = base_values.of(model), dict(model.named_parameters())
    trained = {name: parameters[name] - value.to(parameters[name]) for name, value in kept.base.items()}
    parts = [(name, float(change.square().sum())) for name, change in trained.items() if parameters[name].requires_grad]
    parts += [(name, _squared_norm(layer, kept.taken_out.get(name))) for name, layer in lora_layers(model).items()]
    for name, square in parts:
        found = re.search(r"(joint|fused)_blocks\.\d+", name)
        block = found.group() if found else "other"
        squares[block] = squares.get(block, 0.0) + square
    return {name: math.sqrt(value) for name, value in squares.items()}


def _squared_norm(layer: LoraLayer, taken_out: tuple[Tensor, Tensor] | None) -> float:
    """Of scale * B A, less what PiSSA took out, from the products of the factors with themselves."""
    a, b = (half[ADAPTER].weight.flatten(1).float() for half in (layer.lora_A, layer.lora_B))  # (r, in), (out, r)
    b = layer.scaling[ADAPTER] * b
    if taken_out is not None:
        a, b = torch.cat([a, taken_out[0]]), torch.cat([b, -taken_out[1]], 1)
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))


@dataclass(frozen=True)
class Meter:
    """From steps per second to the share of the machine's matrix-product speed that they use."""

    flops_per_clip: float
    ceiling: float
    """Operations per second of a large matrix product."""

    def utilisation(self, clips_per_second: float) -> float:
        """Model flops utilisation, 0 to 1; operations that checkpointing repeats do not count."""
        return self.flops_per_clip * clips_per_second / self.ceiling


def meter(state: TrainState, clips: Material, config: TrainConfig) -> Meter:
    """Count and time on the device that the clips are on."""
    device = clips.mean.device
    ceiling = matmul_speed(device, compute_dtype(device, config.amp))
    return Meter(flops_per_clip(state, clips, config), ceiling)


def flops_per_clip(state: TrainState, clips: Material, config: TrainConfig) -> float:
    """Operations of the matrix products, convolutions and attention of one clip, forward and backward."""
    kept, state.network.gradient_checkpointing = state.network.gradient_checkpointing, False
    state.model.eval()
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows its products
            one = losses(state.network, clips, sample_draws(clips, 1), compute_dtype(clips.mean.device, config.amp))
            torch.autograd.backward(one.sum())
    finally:
        state.network.gradient_checkpointing = kept
        state.optimizer.zero_grad()
    return float(counter.get_total_flops())


def sample_draws(clips: Material, count: int) -> Draws:
    """Draws that use up nothing random, for measuring: the first clip `count` times at the middle of the flow."""
    no, none = torch.zeros(count, dtype=torch.bool), torch.zeros(count, *clips.mean.shape[1:])
    first, middle = torch.zeros(count, dtype=torch.int64), torch.full((count,), 0.5)
    return Draws(first, none, none, middle, no, no, 0).to(clips.mean.device)


def device_memory(device: torch.device) -> float | None:
    """The most that this process has held of the GPU's memory so far, in GB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
