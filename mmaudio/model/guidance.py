"""Classifier-free guidance of the sampled velocity (arXiv 2207.12598), as a pure function.

B batch, N latent tokens, C latent channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmaudio.model.flow_matching import Velocity
from mmaudio.model.networks import Conditions, MMAudio


def guided_velocity(network: MMAudio, cond: Conditions, uncond: Conditions | None, guidance_scale: float) -> Velocity:
    """Velocity under classifier-free guidance: v_uncond + w (v_cond - v_uncond), w the scale, both in one batch.

    The two velocities are combined in the latent's dtype: a scale of 4.5 would multiply the rounding of bfloat16. A
    scale of 1 or less, or no `uncond`, is the conditional velocity.
    """
    if uncond is None or guidance_scale <= 1:
        return lambda latent, t: network.predict_velocity(latent, t, cond)
    both = cond.cat(uncond)

    def velocity(latent: Tensor, t: Tensor) -> Tensor:
        """Guided velocity of a latent (B, T, C) at flow time t: (B, T, C)."""
        velocities = network.predict_velocity(latent, t, both)
        v_cond, v_uncond = velocities.to(latent.dtype).chunk(2)
        return torch.lerp(v_uncond, v_cond, guidance_scale)

    return velocity
