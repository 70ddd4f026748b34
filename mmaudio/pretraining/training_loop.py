"""The training loop that all stages share: Muon and AdamW, warm-up and cosine, EMA, and checkpoints to go on from.

The random numbers of a step depend on the seed and the step alone, so a run that is stopped and started again ends with
the same weights.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmaudio.errors import TrainingError
from mmaudio.pretraining.gpu_steps import HeldSteps, Objective
from mmaudio.pretraining.muon import Optimizers

Log = Callable[[str], None]
State = dict[str, Tensor]
Loss = Callable[..., Tensor]


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
    """Compile the loss on a CPU: nearly twice as fast there; needs a C++ compiler."""
    record: bool = True
    """On a GPU: record a step once and replay it, which spares the start of every kernel."""
    save_every: int = 250
    log_every: int = 50

    def share_at(self, step: int) -> float:
        """Share of the highest learning rate at step 0, 1, ..."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * done))

    def compiled(self, loss: Loss, device: torch.device) -> Loss:
        """The function, compiled where the recipe says so; on a GPU the step is recorded instead."""
        return torch.compile(loss, dynamic=False) if self.compile and device.type == "cpu" else loss


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """The random numbers of one part of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + part * 500_000_009)


def train(
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    path: Path,
    seed: int,
    log: Log,
) -> State:
    """Train `module` on `loss_of(generator)` and return its final state, which is also loaded into it and saved.

    On a GPU `loss_of` is an Objective. `path` holds the result; `path` with `.part` behind it what is needed to go on,
    on any device. Raises TrainingError where the loss is not finite: at once on a CPU, on a GPU at the next line of the
    log and before anything is saved.
    """
    device = next(module.parameters()).device
    if path.exists():
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state)
        log(f"{path.stem}: trained before; remove {path} to train it anew")
        return state
    optimizer = Optimizers(module, recipe, recordable=device.type != "cpu")
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    part = path.with_name(path.name + ".part")
    first = _resume(part, module, optimizer, average)
    steps = steps_of(module, optimizer, average, loss_of, recipe, seed)
    began = time.monotonic()
    for step in range(first, recipe.steps):
        steps.step(step)
        saving = (step + 1) % recipe.save_every == 0
        if (step + 1) % recipe.log_every == 0 or step == first or (saving and device.type != "cpu"):
            loss = steps.mean_loss(step)
            rate = (time.monotonic() - began) / (step + 1 - first)
            log(f"{path.stem}: step {step + 1}/{recipe.steps}, loss {loss:.4f}, {rate:.3g} s a step")
        if saving:
            saved = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            _save({**saved, "step": step + 1}, part)
    steps.mean_loss(recipe.steps - 1)
    count, seconds = max(0, recipe.steps - first), time.monotonic() - began
    log(f"{path.stem}: {count} steps in {seconds:.1f} s, {count / max(seconds, 1e-9):.2f} steps/s")
    module.load_state_dict(average)
    module.eval()
    _save({name: value.cpu() for name, value in average.items()}, path)
    part.unlink(missing_ok=True)
    return average


def steps_of(
    module: nn.Module,
    optimizer: Optimizers,
    average: State,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    seed: int,
) -> PlainSteps | HeldSteps:
    """How steps are computed where the module is."""
    if next(module.parameters()).device.type == "cpu":
        return PlainSteps(module, optimizer, average, loss_of, recipe, seed)
    if not isinstance(loss_of, Objective):
        raise TypeError("on a GPU a loss is an Objective: its draws go there by themselves")
    return HeldSteps(module, optimizer, average, loss_of, recipe, functools.partial(step_generator, seed))


class PlainSteps:
    """Steps on a CPU, each part of a batch in a thread of its own."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizers,
        average: State,
        loss_of: Callable[[torch.Generator], Tensor],
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.module, self.optimizer, self.average = module, optimizer, average
        self.loss_of, self.recipe, self.seed = loss_of, recipe, seed
        self.pool, self.cores = ThreadPoolExecutor(recipe.parts), torch.get_num_threads()
        self.total, self.count = 0.0, 0

    def step(self, step: int) -> None:
        """Compute step 0, 1, ..."""
        self.total += _step(
            self.module, self.optimizer, self.loss_of, self.recipe, self.seed, step, self.pool, self.cores
        )
        self.count += 1
        _average(self.average, self.module, self.recipe.ema * min(1.0, (step + 1) / (step + 10)))

    def mean_loss(self, step: int) -> float:
        """The mean loss since the last call, at the end of that step."""
        total, count, self.total, self.count = self.total, self.count, 0.0, 0
        return total / max(1, count)


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
    state = torch.load(part, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["average"].items():
        average[name].copy_(value)
    return int(state["step"])


def _save(state: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    torch.save(state, temporary)
    temporary.replace(path)
