"""The training loop that all stages share: Muon and AdamW, warm-up and cosine, EMA, and checkpoints to go on from.

The random numbers of a step depend on the seed and the step alone, so a run that is stopped and started again ends with
the same weights.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmaudio.errors import TrainingError

Log = Callable[[str], None]
State = dict[str, Tensor]
Loss = Callable[..., Tensor]
INNER = re.compile(r"(blocks|spatial_attn_agg)\..*weight$")
"""Names of the weights that Muon may take: of transformer blocks, not of inputs, embeddings and outputs."""


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained."""

    steps: int
    learning_rate: float
    """AdamW's, at its highest."""
    muon: float = 0.0
    """Learning rate of Muon (arXiv 2502.16982), which takes over the matrices inside transformer blocks and needs fewer
    steps than AdamW there; 0: AdamW takes all."""
    warmup: int = 100
    final_share: float = 0.03
    """Learning rate at the end, as a share of the highest."""
    weight_decay: float = 1e-4
    ema: float = 0.0
    """Decay of the averaged weights, which are the result; 0: the last weights are."""
    parts: int = 2
    """Parts that a batch is drawn and computed in, each by a thread of its own: on few cores and small tensors that is
    nearly twice as fast as threads inside the operations. A compiled loss is fastest in one part."""
    bf16: bool = True
    """Autocast to bfloat16."""
    compile: bool = False
    """Compile the loss: nearly twice as fast on a CPU; needs a C++ compiler."""
    save_every: int = 250
    log_every: int = 50

    def share_at(self, step: int) -> float:
        """Share of the highest learning rate at step 0, 1, ..."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * done))

    def compiled(self, loss: Loss) -> Loss:
        """The function, compiled where the recipe says so."""
        return torch.compile(loss, dynamic=False) if self.compile else loss


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """The random numbers of one part of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + part * 500_000_009)


class Optimizers:
    """Muon for the matrices of transformer blocks, where the recipe has it, and AdamW for all else."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        named = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.inner = [value for name, value in named.items() if recipe.muon and INNER.search(name) and value.ndim > 1]
        # Muon takes matrices: a convolution's weight is one over its inputs and taps, on the same memory
        self.matrices = [nn.Parameter(value.data.flatten(1)) for value in self.inner]
        taken = {id(value) for value in self.inner}
        rest = [value for value in named.values() if id(value) not in taken]
        self.recipe, decay = recipe, recipe.weight_decay
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=decay)
        ]
        if self.matrices:
            muon = torch.optim.Muon(self.matrices, recipe.muon, decay, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)

    def step(self, step: int) -> None:
        """Move the weights along their gradients, at the learning rates of step 0, 1, ..."""
        for value, matrix in zip(self.inner, self.matrices, strict=True):
            matrix.grad = None if value.grad is None else value.grad.flatten(1)
        for part, highest in zip(self.parts, (self.recipe.learning_rate, self.recipe.muon), strict=False):
            for group in part.param_groups:
                group["lr"] = highest * self.recipe.share_at(step)
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """What is needed to go on."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def train(
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    path: Path,
    seed: int,
    log: Log,
) -> State:
    """Train `module` on `loss_of(generator)` and return its final state, which is also loaded into it and saved.

    `path` holds the result; `path` with `.part` behind it what is needed to go on. Raises TrainingError where the loss
    is not finite.
    """
    if path.exists():
        state: State = torch.load(path, weights_only=True)
        module.load_state_dict(state)
        return state
    optimizer = Optimizers(module, recipe)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    part = path.with_name(path.name + ".part")
    first = _resume(part, module, optimizer, average)
    total, count, began = 0.0, 0, time.monotonic()
    pool, cores = ThreadPoolExecutor(recipe.parts), torch.get_num_threads()
    for step in range(first, recipe.steps):
        loss = _step(module, optimizer, loss_of, recipe, seed, step, pool, cores)
        total, count = total + loss, count + 1
        _average(average, module, recipe.ema * min(1.0, (step + 1) / (step + 10)))
        if (step + 1) % recipe.log_every == 0 or step == first:
            rate = (time.monotonic() - began) / (step + 1 - first)
            log(f"{path.stem}: step {step + 1}/{recipe.steps}, loss {total / count:.4f}, {rate:.3f} s a step")
            total, count = 0.0, 0
        if (step + 1) % recipe.save_every == 0:
            saved = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            _save({**saved, "step": step + 1}, part)
    module.load_state_dict(average)
    module.eval()
    _save(average, path)
    part.unlink(missing_ok=True)
    return average


def _step(
    module: nn.Module,
    optimizer: Optimizers,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    seed: int,
    step: int,
    pool: Executor,
    cores: int,
) -> float:
    """One step; returns its loss."""
    module.train()
    parameters = [value for value in module.parameters() if value.requires_grad]
    device = parameters[0].device.type

    def gradients(part: int) -> tuple[float, tuple[Tensor | None, ...]]:
        torch.set_num_threads(max(1, cores // recipe.parts))
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
            loss = loss_of(step_generator(seed, step, part))
        return float(loss.detach()), torch.autograd.grad(loss, parameters, allow_unused=True)

    # one part stays in this thread: a second team of OpenMP threads would make both of them sleep at every barrier
    run = map if recipe.parts == 1 else pool.map
    losses, parts = zip(*run(gradients, range(recipe.parts)), strict=True)
    for parameter, *found in zip(parameters, *parts, strict=True):
        given = [gradient for gradient in found if gradient is not None]
        parameter.grad = torch.stack(given).sum(0) / recipe.parts if given else None
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    value: float = sum(losses) / recipe.parts
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        raise TrainingError(f"step {step}: loss {value}, gradient norm {float(norm)}; lower the learning rate")
    optimizer.step(step)
    return value


def _average(average: State, module: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the module's."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value.detach(), 1 - decay)
        else:
            average[name].copy_(value)


def _resume(part: Path, module: nn.Module, optimizer: Optimizers, average: State) -> int:
    """Load what an interrupted run left, if any; returns the step to go on with."""
    if not part.exists():
        return 0
    state = torch.load(part, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    average.update(state["average"])
    return int(state["step"])


def _save(state: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    torch.save(state, temporary)
    temporary.replace(path)
