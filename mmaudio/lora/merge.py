"""An adapter merged for deployment: the released file's keys and types, and proof that it computes the same.

merged = merged_copy(model, dtypes)  # the adapted model stays as it is
torch.save(merged.state, path)
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
"""How far a merged network's velocity may be from the adapted one's, as a share of the largest value, by the type that
the weights are rounded to; 1e-4 and 5e-2 are also what the golden values are compared with."""


@dataclass(frozen=True)
class Merged:
    """A merged network and what its file holds."""

    network: MMAudio
    """Without an adapter; it computes in float32, on its own device, with the values of `state`."""
    state: dict[str, Tensor]
    """The released keys in the types of the base's file, on the CPU."""
    difference: float
    """Largest deviation of the velocity from the adapted network's, as a share of its largest value."""
    dtype: torch.dtype
    """The coarsest type in `state`, whose rounding that is."""


def merged_copy(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Merged:
    """Merge a copy of `model` in float32, at the strength that is set, and round it to `dtypes`, by released key.

    Both compute the velocity at one random input on the CPU in float32. Raises WeightsError where it is not finite, or
    differs by more than the types' rounding explains.
    """
    device = next(model.parameters()).device
    working = copy.deepcopy(model)
    network = adapted_network(working).to("cpu", torch.float32).eval()
    expected = velocity_at_random(network)
    merge(working)
    state = {key: value.detach().to(dtypes[key]) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    got, largest = velocity_at_random(network), expected.abs().max()
    difference = float((got - expected).abs().max() / largest.clamp_min(torch.finfo(torch.float32).tiny))
    coarsest = max(set(dtypes.values()), key=lambda dtype: torch.finfo(dtype).eps)
    allowed = TOLERANCES.get(coarsest, TOLERANCES[torch.bfloat16])
    if not difference <= allowed:  # not a number, too
        raise WeightsError(
            f"merged and rounded to the base's {str(coarsest).removeprefix('torch.')}, the velocity differs by "
            f"{difference:.1e} of its largest value, more than {allowed:.0e}; nothing is written. The adapter is very "
            "strong: use it unmerged, or at a lower strength"
        )
    return Merged(network.to(device).requires_grad_(False), state, difference, coarsest)


@torch.no_grad()
def velocity_at_random(network: MMAudio, seed: int = 0) -> Tensor:
    """The velocity (1, N, C) at standard normal inputs of the network's current lengths, t = 0.5."""
    generator = torch.Generator().manual_seed(seed)
    spec, size = network.spec, network.lengths
    shapes = (
        (size.latent, spec.latent_dim),
        (size.clip, spec.clip_dim),
        (size.sync, spec.sync_dim),
        (spec.text_tokens, spec.text_dim),
    )
    inputs = (torch.randn(1, *shape, generator=generator) for shape in shapes)
    velocity: Tensor = network(*inputs, torch.tensor([0.5]))
    return velocity
