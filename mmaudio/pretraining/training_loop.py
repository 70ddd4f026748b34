"""Training loop of every stage: Muon and AdamW, warm-up and cosine, EMA, and checkpoints to resume from.

The random numbers of a step depend on the seed and the step alone, so a run that is stopped and resumed ends with the
same weights.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mmaudio.pretraining.cpu_steps import CpuSteps
from mmaudio.pretraining.gpu_steps import GpuSteps
from mmaudio.pretraining.muon import MuonAdamW
from mmaudio.pretraining.objective import Objective, step_generator
from mmaudio.pretraining.recipe import Recipe
from mmaudio.utils.files import atomic_write

Log = Callable[[str], None]
"""Writes one line of the log."""
State = dict[str, Tensor]

# Separate from mmaudio.finetune.loop on purpose. That loop trains an adapter over epochs of a user's clips, with
# validation, early stopping, several processes and the state of random generators in its checkpoints. This one trains
# all weights of four different modules on batches drawn from a seed per step, with two optimizers, micro-batches in
# threads on a CPU, whole steps as a CUDA graph, and an EMA that includes buffers.


def train(
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    path: Path,
    seed: int,
    log: Log,
) -> State:
    """Train `module` on `loss_of(generator)` and return its final state, which is also loaded into it and saved.

    On a GPU `loss_of` is an Objective. `path` holds the result; `path` with `.part` behind it the checkpoint, which
    resumes on any device. Raises TrainingError where the loss is not finite: at once on a CPU, on a GPU at the next
    line of the log and before anything is saved.
    """
    device = next(module.parameters()).device
    if path.exists():
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state)
        log(f"{path.stem}: trained before; remove {path} to train it anew")
        return state
    optimizer = MuonAdamW(module, recipe, capturable=device.type != "cpu")
    ema = {name: value.detach().clone() for name, value in module.state_dict().items()}
    checkpoint = path.with_name(path.name + ".part")
    first_step = load_checkpoint(checkpoint, module, optimizer, ema)
    steps = build_steps(module, optimizer, ema, loss_of, recipe, seed)
    start_time = time.monotonic()
    for step in range(first_step, recipe.steps):
        steps.run(step)
        is_save_step = (step + 1) % recipe.save_every == 0
        if (step + 1) % recipe.log_every == 0 or step == first_step or (is_save_step and device.type != "cpu"):
            loss = steps.mean_loss(step)
            seconds_per_step = (time.monotonic() - start_time) / (step + 1 - first_step)
            log(f"{path.stem}: step {step + 1}/{recipe.steps}, loss {loss:.4f}, {seconds_per_step:.3g} s a step")
        if is_save_step:
            save_checkpoint(checkpoint, module, optimizer, ema, step + 1)
    steps.mean_loss(recipe.steps - 1)
    count, seconds = max(0, recipe.steps - first_step), time.monotonic() - start_time
    log(f"{path.stem}: {count} steps in {seconds:.1f} s, {count / max(seconds, 1e-9):.2f} steps/s")
    module.load_state_dict(ema)
    module.eval()
    with atomic_write(path) as temporary:
        torch.save({name: value.cpu() for name, value in ema.items()}, temporary)
    checkpoint.unlink(missing_ok=True)
    return ema


def build_steps(
    module: nn.Module,
    optimizer: MuonAdamW,
    ema: State,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    seed: int,
) -> CpuSteps | GpuSteps:
    """The steps for the module's device."""
    generator_for = functools.partial(step_generator, seed)
    if next(module.parameters()).device.type == "cpu":
        return CpuSteps(module, optimizer, ema, loss_of, recipe, generator_for)
    if not isinstance(loss_of, Objective):
        raise TypeError("on a GPU a loss is an Objective: its draws are copied to the device")
    return GpuSteps(module, optimizer, ema, loss_of, recipe, generator_for)


def load_checkpoint(path: Path, module: nn.Module, optimizer: MuonAdamW, ema: State) -> int:
    """Restore the checkpoint of an interrupted run, if there is one, and return the step to resume at."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["average"].items():
        ema[name].copy_(value)
    return int(state["step"])


def save_checkpoint(path: Path, module: nn.Module, optimizer: MuonAdamW, ema: State, step: int) -> None:
    """Save what `load_checkpoint` restores."""
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": ema, "step": step}
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
