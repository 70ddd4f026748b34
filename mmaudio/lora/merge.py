"""Merging of an adapter into the base weights, with the released keys and dtypes, and a check of the output.

merged = merge_copy(model, dtypes)  # the adapted model is unchanged
torch.save(merged.state_dict, path)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmaudio.errors import WeightsError
from mmaudio.lora.adapter import adapted_network, merge
from mmaudio.model.networks import MMAudio

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest accepted deviation of the merged network's velocity, relative to the largest value, by dtype of the weights.
1e-4 and 5e-2 are also the tolerances of the golden values."""


@dataclass(frozen=True)
class MergedNetwork:
    """A merged network and its state dict."""

    network: MMAudio
    """Without an adapter, in float32 on its device, with the values of `state_dict`."""
    state_dict: dict[str, Tensor]
    """The released keys in the dtypes of the base file, on the CPU."""
    max_difference: float
    """Largest deviation from the adapted network's velocity, relative to its largest value."""
    dtype: torch.dtype
    """Coarsest dtype in `state_dict`, whose rounding dominates `max_difference`."""


def merge_copy(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> MergedNetwork:
    """Merge a copy of `model` in float32 at its current strength and round it to `dtypes`, given by released key.

    Adapted and merged network are compared at one random input on the CPU in float32. Raises WeightsError for a
    velocity that is not finite or differs by more than TOLERANCES.
    """
    device = next(model.parameters()).device
    model_copy = copy.deepcopy(model)
    network = adapted_network(model_copy).to("cpu", torch.float32).eval()
    expected = velocity_at_random_input(network)
    merge(model_copy)
    state_dict = {key: value.detach().to(dtypes[key]) for key, value in network.state_dict().items()}
    network.load_state_dict(state_dict)
    velocity, largest = velocity_at_random_input(network), expected.abs().max()
    max_difference = float((velocity - expected).abs().max() / largest.clamp_min(torch.finfo(torch.float32).tiny))
    coarsest = max(set(dtypes.values()), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = TOLERANCES.get(coarsest, TOLERANCES[torch.bfloat16])
    if not max_difference <= tolerance:  # also true for NaN
        raise WeightsError(
            f"merged and rounded to the base's {str(coarsest).removeprefix('torch.')}, the velocity differs by "
            f"{max_difference:.1e} of its largest value, more than {tolerance:.0e}; nothing is written. The adapter is "
            "very strong: use it unmerged, or at a lower strength"
        )
    return MergedNetwork(network.to(device).requires_grad_(False), state_dict, max_difference, coarsest)


@torch.no_grad()
def velocity_at_random_input(network: MMAudio, seed: int = 0) -> Tensor:
    """Velocity (1, N, C) at standard normal inputs of the network's current lengths and t = 0.5."""
    generator = torch.Generator().manual_seed(seed)
    spec, lengths = network.spec, network.lengths
    shapes = (
        (lengths.latent_tokens, spec.latent_dim),
        (lengths.clip_tokens, spec.clip_dim),
        (lengths.sync_tokens, spec.sync_dim),
        (spec.text_tokens, spec.text_dim),
    )
    inputs = (torch.randn(1, *shape, generator=generator) for shape in shapes)
    velocity: Tensor = network(*inputs, torch.tensor([0.5]))
    return velocity
