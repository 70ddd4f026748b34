"""An estimate, before the first step, of the memory that training needs: weights, optimizer, activations, data."""

from __future__ import annotations

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.draws import build_fixed_draws
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import base_samples_beside, compute_losses
from mmaudio.lora import base_values
from mmaudio.utils.memory import free_memory


def format_memory_line(
    state: TrainState, train: ClipDataset, validation: ClipDataset | None, config: TrainConfig
) -> str:
    """The estimate in words; activations are measured on one clip and on two."""
    trainable_bytes = sum(parameter.nbytes for parameter in state.trainable_parameters().values())
    one_clip, two_clips = (measure_activation_bytes(state, train, config, count) for count in (1, 2))
    size = state.micro_batch or config.batch_size
    device = next(state.model.parameters()).device
    num_passes = -(-config.effective_batch_size // size)
    beside = base_samples_beside(size, num_passes, config.base_samples_per_step, config, device)
    base_tensors = base_values.get(state.model).tensors()
    sizes = {
        "weights": sum(tensor.nbytes for tensor in (*state.model.parameters(), *base_tensors)),
        "gradients and optimizer": trainable_bytes * (4 if state.ema is not None else 3),
        "activations": one_clip + (two_clips - one_clip) * (size + beside - 1),
        "data": sum(dataset.nbytes() for dataset in (train, validation) if dataset is not None),
    }
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
    line = f"memory:     about {sum(sizes.values()) / 1e9:.2f} GB ({listed})"
    free = free_memory(device)
    if sizes["gradients and optimizer"] + sizes["activations"] <= free:
        return line
    return f"{line}; only {free / 1e9:.2f} GB are free: lower batch_size and raise gradient_accumulation_steps"


def measure_activation_bytes(state: TrainState, dataset: ClipDataset, config: TrainConfig, count: int) -> int:
    """Bytes that autograd saves for the backward pass of `count` clips, without the weights; draws nothing random."""
    parameter_storages = {parameter.untyped_storage().data_ptr() for parameter in state.model.parameters()}
    saved_bytes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        """Count a saved tensor's storage once, unless it is a weight's."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_storages:
            saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its history, an operation that saves its own output would never be freed

    draws = build_fixed_draws(count, dataset.mean.shape[1:]).to(dataset.mean.device)
    state.model.eval()  # without dropout, whose masks add little
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        compute_losses(state.network, dataset, draws, compute_dtype(dataset.mean.device, config.amp))
    return sum(saved_bytes.values())
