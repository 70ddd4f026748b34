"""Conditional flow matching on straight paths from noise (t = 0) to data (t = 1), as pure functions.

Training: `sample_posterior`, `training_times`, `condition_dropout_masks`, `velocity_loss`. Validation:
`logit_normal_quantiles`. Sampling: `integrate`, with the velocity of `guidance.guided_velocity`.
B batch, N latent tokens, C latent channels. Source: arXiv 2412.15322.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mmaudio.errors import ConfigError
from mmaudio.model.networks import Conditions, MMAudio

Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(latent (B, N, C), t of no dimension) -> (B, N, C)."""

EARLY_POWER = 3
"""Early times of training are a uniform draw to this power."""

SOLVERS = ("euler", "midpoint", "heun")
"""Of fixed steps: the first is of first order; the others, of second, evaluate the velocity twice per step."""


def logit_normal_times(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n random flow times in (0, 1), the sigmoid of standard normals: (n,), float32, on the generator's device."""
    device = generator.device if generator is not None else None
    return torch.randn(n, generator=generator, device=device).sigmoid()


def training_times(n: int, early: float, generator: torch.Generator) -> Tensor:
    """n random flow times in [0, 1): logit-normal, but each with probability `early` the cube of a uniform draw.

    Cubes lie near the noise: nearly half are below 0.1, of logit-normal times one in seventy. There the solver's first
    steps decide which sound it will be. (n,), float32, on the generator's device.
    """
    times = logit_normal_times(n, generator)
    if not early:
        return times
    is_early, uniform = torch.rand(2, n, generator=generator, device=generator.device)
    return torch.where(is_early < early, uniform**EARLY_POWER, times)


def logit_normal_quantiles(n: int) -> Tensor:
    """The middle quantiles of n equal shares of the logit-normal distribution: (n,), float32, on the CPU.

    The mean loss at these times estimates the mean loss at the random times of training.
    """
    shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    normal_quantiles: Tensor = torch.special.ndtri(shares)
    return normal_quantiles.sigmoid().float()


def condition_dropout_masks(
    n: int, p_video: float, p_text: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Masks of samples to train without video and without text, for classifier-free guidance: (n,), (n,) bool.

    CLIP and sync features are dropped together with probability `p_video`; the text, independently, with `p_text`. The
    masks are on the generator's device.
    """
    device = generator.device if generator is not None else None
    draws = torch.rand(2, n, generator=generator, device=device)
    no_video, no_text = draws < torch.tensor([[p_video], [p_text]], device=device)
    return no_video, no_text


def sample_posterior(mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
    """Sample the codec's posterior, mean + std * eps; the result is not normalised yet."""
    return mean + std * eps


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Point of the path, (1 - t) noise + t data: (B, N, C) at the times t (B,)."""
    return torch.lerp(noise, data, t[:, None, None].to(noise.dtype))


def velocity_loss(network: MMAudio, latent: Tensor, conditions: Conditions, t: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the predicted velocity over tokens and channels, one value per sample: (B,), float32.

    `latent` and `noise` (B, N, C), the latent normalised; t (B,).
    """
    velocity = network.predict_velocity(interpolate(noise, latent, t), t, conditions)
    return mean_squared_error(velocity, latent - noise)


def mean_squared_error(velocity: Tensor, expected: Tensor) -> Tensor:
    """Over tokens and channels, in float32: two (B, N, C) -> (B,)."""
    return (velocity.float() - expected.float()).square().mean((1, 2))


def check_solver(num_steps: int | None, method: str) -> None:
    """Raise ConfigError for less than one step, or for an unknown method."""
    if num_steps is not None and num_steps < 1:
        raise ConfigError(f"steps={num_steps}: the solver takes at least 1; 25 is usual")
    if method not in SOLVERS:
        raise ConfigError(f"method={method!r}: unknown; there are: {', '.join(SOLVERS)}")


def integrate(
    velocity: Velocity,
    x0: Tensor,
    num_steps: int,
    method: str = "euler",
    progress: Callable[[range], Iterable[int]] = iter,
    first_step: int = 0,
    on_step: Callable[[int, Tensor], object] = lambda number, x: None,
) -> Tensor:
    """Integrate dx/dt = velocity from x0 (B, N, C) at t = 0 to t = 1 in equal steps, which pass through `progress`.

    `euler` (first order) evaluates the velocity once per step, `midpoint` and `heun` (second order) twice. `on_step`
    gets the number of finished steps and x, from which a call with them as `first_step` and x0 goes on. Raises
    ConfigError as `check_solver` does.
    """
    check_solver(num_steps, method)
    x, dt = x0, 1.0 / num_steps
    for step in progress(range(first_step, num_steps)):
        t = torch.full((), step * dt, dtype=torch.float32, device=x.device)
        slope = velocity(x, t).to(x.dtype)
        if method == "midpoint":
            slope = velocity(x + 0.5 * dt * slope, t + 0.5 * dt).to(x.dtype)
        elif method == "heun":
            slope = (slope + velocity(x + dt * slope, t + dt).to(x.dtype)) / 2
        x = x + dt * slope
        on_step(step + 1, x)
    return x
