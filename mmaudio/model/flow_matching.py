"""Conditional flow matching on straight paths from noise (t = 0) to data (t = 1), as pure functions.

Training: `sample_posterior`, `logit_normal_times`, `drop_conditions`, `velocity_loss`. Sampling: `guided`, `integrate`.
B batch, N latent tokens, C latent channels; V, S, L tokens of CLIP, sync and text. Facts: arXiv 2412.15322.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mmaudio.errors import ConfigError
from mmaudio.model.networks import Conditions, MMAudio

Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(latent (B, N, C), t of no dimension) -> (B, N, C)."""

SOLVERS = ("euler", "midpoint")


def logit_normal_times(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n flow times in (0, 1), the sigmoid of standard normals: (n,), float32, on the generator's device."""
    device = generator.device if generator is not None else None
    return torch.randn(n, generator=generator, device=device).sigmoid()


def sample_posterior(mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
    """A latent drawn from the codec's posterior, mean + std * eps; still to be normalised."""
    return mean + std * eps


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The path's point (1 - t) noise + t data: (B, N, C) at the times (B,)."""
    return torch.lerp(noise, data, t[:, None, None].to(noise.dtype))


def velocity_loss(network: MMAudio, latent: Tensor, conditions: Conditions, t: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the predicted velocity over tokens and channels, one value per sample: (B,), float32.

    `latent` and `noise` (B, N, C), the latent normalised; t (B,).
    """
    predicted = network.predict_velocity(interpolate(noise, latent, t), t, conditions)
    return (predicted.float() - (latent - noise).float()).square().mean((1, 2))


def drop_conditions(
    network: MMAudio,
    clip_f: Tensor,
    sync_f: Tensor,
    text_f: Tensor,
    generator: torch.Generator | None = None,
    p: float = 0.1,
    p_text: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw features with the learned empty rows in place of some samples', for classifier-free guidance.

    CLIP and sync features go together with probability `p` per sample; the text, independently, with `p_text` (None:
    `p`). The draws come from the generator, on its device; gradients reach the empty rows.
    """
    batch, device = clip_f.shape[0], generator.device if generator is not None else None
    draws = torch.rand(2, batch, 1, 1, generator=generator, device=device).to(clip_f.device)
    no_video, no_text = draws[0] < p, draws[1] < (p if p_text is None else p_text)
    return (
        torch.where(no_video, network.empty_clip(batch).to(clip_f.dtype), clip_f),
        torch.where(no_video, network.empty_sync(batch).to(sync_f.dtype), sync_f),
        torch.where(no_text, network.empty_text(batch).to(text_f.dtype), text_f),
    )


def guided(network: MMAudio, conditions: Conditions, empty: Conditions | None, strength: float) -> Velocity:
    """Velocity under classifier-free guidance: w v(conditions) + (1 - w) v(empty), both in one batch.

    The network's two velocities are combined in the latent's dtype: a guidance of 4.5 would multiply bf16's rounding.
    A strength of 1 is the conditional velocity; less, or no empty conditions, means no guidance, the same.
    """
    if empty is None or strength <= 1:
        return lambda latent, t: network.predict_velocity(latent, t, conditions)
    both = conditions.cat(empty)

    def velocity(latent: Tensor, t: Tensor) -> Tensor:
        velocities = network.predict_velocity(torch.cat([latent, latent]), t, both)
        given, free = velocities.to(latent.dtype).chunk(2)
        return torch.lerp(free, given, strength)

    return velocity


def check_solver(steps: int | None, method: str) -> None:
    """ConfigError for no steps, or a method that is none of SOLVERS."""
    if steps is not None and steps < 1:
        raise ConfigError(f"steps={steps}: the solver takes at least 1; 25 is usual")
    if method not in SOLVERS:
        raise ConfigError(f"method={method!r}: unknown; there are: {', '.join(SOLVERS)}")


def integrate(
    velocity: Velocity,
    x0: Tensor,
    steps: int,
    method: str = "euler",
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Solves dx/dt = velocity from x0 (B, N, C) at t = 0 to t = 1 in equal steps, which pass through `progress`.

    `euler` (first order) calls the velocity once a step, `midpoint` (second order) twice. Raises ConfigError as
    `check_solver` does.
    """
    check_solver(steps, method)
    x, dt = x0, 1.0 / steps
    for step in progress(range(steps)):
        t = torch.full((), step * dt, dtype=torch.float32, device=x.device)
        slope = velocity(x, t).to(x.dtype)
        if method == "midpoint":
            slope = velocity(x + 0.5 * dt * slope, t + 0.5 * dt).to(x.dtype)
        x = x + dt * slope
    return x
