"""Solvers of the flow: those of fixed steps, and dopri5, which chooses its steps (an extra, torchdiffeq).

    latents, counts = solve(velocity, noise, "dopri5", 0)

Legend: B batch, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.flow_matching import SOLVERS, Velocity, check_solver, integrate

ADAPTIVE = "dopri5"
"""Dormand-Prince, of fifth order, with an estimate of its error."""
METHODS = (*SOLVERS, ADAPTIVE)
TOLERANCE = 1e-3
"""Error of one of its steps, RMS over a sample's latents, in units of their standard deviation."""
MAX_STEPS = 1000
"""Steps of dopri5 after which it has failed: a dozen are usual."""
PERCENT = 100


@dataclass(frozen=True)
class SolverCounts:
    """What a solver has taken."""

    steps: int = 0
    evaluations: int = 0
    """Of the velocity."""


def check_method(num_steps: int | None, method: str) -> None:
    """Raise ConfigError for an unknown method, a number of steps that it does not take, or a package that is absent."""
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: unknown; there are: {', '.join(METHODS)}")
    if method != ADAPTIVE:
        check_solver(num_steps, method)
    elif num_steps is not None:
        raise ConfigError(f"steps={num_steps}: {ADAPTIVE} chooses its steps; leave steps out, or take another method")
    elif find_spec("torchdiffeq") is None:
        raise ConfigError(
            f'method={ADAPTIVE} needs torchdiffeq, which is not here; pip install "mmaudio-lora[solvers]", or take heun'
        )


def progress_label(method: str) -> str:
    """What the items that pass through the progress of `solve` are."""
    return "solver, percent" if method == ADAPTIVE else "solver steps"


def solve(
    velocity: Velocity,
    x0: Tensor,
    method: str,
    num_steps: int,
    progress: Callable[[range], Iterable[int]] = iter,
    position: Tensor | None = None,
    on_step: Callable[[Tensor, Tensor], object] = lambda position, x: None,
) -> tuple[Tensor, SolverCounts]:
    """Integrate dx/dt = velocity from x0 (B, N, C) at t = 0 to t = 1; x there, and what it took.

    `num_steps` is not for dopri5. `on_step` gets the position on the way and x, from which a call with them as
    `position` and x0 goes on. Raises ConfigError as `check_method`, WeightsError where dopri5 finds no step.
    """
    num_evaluations = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        """The velocity; each evaluation is counted."""
        nonlocal num_evaluations
        num_evaluations += 1
        return velocity(x, t)

    if method == ADAPTIVE:
        x, num_steps = _integrate_adaptively(counted, x0, progress, position, on_step)
        return x, SolverCounts(num_steps, num_evaluations)
    first = 0 if position is None else int(position)
    x = integrate(counted, x0, num_steps, method, progress, first, lambda step, x: on_step(torch.tensor(step), x))
    return x, SolverCounts(num_steps - first, num_evaluations)


def _integrate_adaptively(
    velocity: Velocity,
    x0: Tensor,
    progress: Callable[[range], Iterable[int]],
    position: Tensor | None,
    on_step: Callable[[Tensor, Tensor], object],
) -> tuple[Tensor, int]:
    """x at t = 1, and the number of steps. A position is the time and the length of the next step, float64."""
    from torchdiffeq import odeint  # an extra

    start, first_step = (0.0, None) if position is None else position.tolist()
    flow = _AdaptiveFlow(velocity, progress, on_step)
    try:
        solution = odeint(
            flow,
            x0,
            torch.tensor([start, 1.0], dtype=torch.float64, device=x0.device),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            method=ADAPTIVE,
            options={"first_step": first_step, "step_t": [1.0], "norm": largest_rms, "max_num_steps": MAX_STEPS},
        )
    except AssertionError as error:  # steps too short, too many, or values that are not finite
        raise WeightsError(
            f"{ADAPTIVE}: no step on which the velocity is smooth ({str(error).partition(':')[0]}); lower guidance or "
            "the adapter's strength, or take another method"
        ) from error
    flow.show_progress(1.0)
    return solution[-1], flow.num_steps


def largest_rms(x: Tensor) -> Tensor:
    """Root mean square of each sample of (B, N, C), of which the largest counts: no sample is worse than alone."""
    return x.square().mean((1, 2)).max().sqrt()


class _AdaptiveFlow:
    """The velocity as torchdiffeq calls it, which tells before each step where it is."""

    def __init__(
        self,
        velocity: Velocity,
        progress: Callable[[range], Iterable[int]],
        on_step: Callable[[Tensor, Tensor], object],
    ) -> None:
        self.velocity, self.on_step, self.num_steps = velocity, on_step, 0
        self.bar, self.position = iter(progress(range(PERCENT))), 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.velocity(x, t.float()).to(x.dtype)

    def callback_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        """Called before a step of the length `dt` is tried."""
        self.show_progress(float(t))
        self.on_step(torch.stack([t, dt]).double().cpu(), x)

    def callback_accept_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        """Called after a step."""
        self.num_steps += 1

    def show_progress(self, t: float) -> None:
        """Take as many items of the progress as the time `t` is percent."""
        while self.position <= t * PERCENT:
            next(self.bar, None)
            self.position += 1
