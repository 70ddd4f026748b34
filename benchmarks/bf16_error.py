"""What bfloat16 changes: loss and gradient of the same samples in float32 and under autocast.

    python -m benchmarks.bf16_error                       # small_16k, rank 64, on the CPU
    python -m benchmarks.bf16_error --model tiny_16k
    python -m benchmarks.bf16_error --device cuda

Random weights and features, so nothing is downloaded. Every clip is measured at eight flow times, as validation does.

S samples: clips times flow times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.generation import machine, random_network
from benchmarks.training import random_features
from mmaudio import cli
from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import Material, material
from mmaudio.finetune.state import Draws, TrainState, new_state
from mmaudio.finetune.step import losses
from mmaudio.finetune.validation import held_out
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.spec import MODELS

LEVELS = 8
AT_ONCE = 4
"""Samples that go through the network together."""
SPREAD = 0.02
"""Deviation of the values that the adapter's B matrices get: at zero, A would have no gradient."""


@dataclass(frozen=True)
class Rounding:
    """The same samples in both."""

    full: Tensor  # (S,) losses in float32
    rounded: Tensor  # (S,) losses in bfloat16
    full_gradient: Tensor  # of the mean loss, flat
    rounded_gradient: Tensor

    @property
    def mean(self) -> float:
        """Difference of the mean losses, as a share of float32's."""
        return float((self.rounded.mean() - self.full.mean()) / self.full.mean())

    @property
    def largest(self) -> float:
        """Largest difference of a sample's loss, as a share of its own."""
        return float(((self.rounded - self.full) / self.full).abs().max())

    @property
    def gradient(self) -> float:
        """Length of the gradients' difference, as a share of float32's."""
        return float((self.rounded_gradient - self.full_gradient).norm() / self.full_gradient.norm())


def main(arguments: list[str]) -> int:
    """Measure and print."""
    made = cli.Parser("Measure what bfloat16 changes in a training step's loss and gradient.")
    made.prog = "python -m benchmarks.bf16_error"
    made.add_argument("--model", default="small_16k", choices=list(MODELS), help="the base model")
    made.add_argument("--clips", type=int, default=8, help="how many, each at eight flow times")
    made.add_argument("--rank", type=int, default=64, help="of the adapter")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    args = made.parse_args(arguments)
    cli.at_least(args, clips=1, rank=1)
    device = cli.pick_device(args.device)
    found = measure(args.model, args.clips, args.rank, device)
    print(
        f"{args.model}, LoRA rank {args.rank}, {len(found.full)} samples; {machine(device)}, torch {torch.__version__}"
    )
    print(f"loss      float32 {found.full.mean():.5f}, bfloat16 {found.rounded.mean():.5f}")
    print(f"          difference {found.mean:+.1e} of the mean, at most {found.largest:.1e} of a sample's")
    print(f"gradient  difference {found.gradient:.1e} of its length")
    return 0


def measure(model: str, clips: int, rank: int, device: torch.device) -> Rounding:
    """Both precisions on random clips, through a random network with an adapter that does something."""
    features = random_features(model, clips)
    lora = LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=0.0)
    state = new_state(random_network(model).to(device), TrainConfig(model=model, lora=lora), clips)
    generator = torch.Generator().manual_seed(2)
    for name, weight in state.trained().items():
        if ".lora_B." in name:
            weight.data += SPREAD * torch.randn(weight.shape, generator=generator).to(device)
    chosen = material(state.network, features, device)
    return compare(state, chosen, held_out(chosen, features.ids, LEVELS).draws)


def compare(state: TrainState, clips: Material, draws: Draws) -> Rounding:
    """Loss and gradient of the drawn samples in both precisions; the gradient of the parameters is used up."""
    full, full_gradient = _computed(state, clips, draws, torch.float32)
    rounded, rounded_gradient = _computed(state, clips, draws, torch.bfloat16)
    return Rounding(full, rounded, full_gradient, rounded_gradient)


def _computed(state: TrainState, clips: Material, draws: Draws, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses (S,) and the gradient of their mean, on the CPU."""
    state.model.eval()
    state.optimizer.zero_grad()
    parts = []
    for start in range(0, len(draws.t), AT_ONCE):
        own = draws.rows(slice(start, start + AT_ONCE)).to(clips.mean.device)
        part = losses(state.network, clips, own, dtype)
        torch.autograd.backward(part.sum() / len(draws.t))
        parts.append(part.detach())
    gradients = [weight.grad.flatten() for weight in state.trained().values() if weight.grad is not None]
    return torch.cat(parts).cpu(), torch.cat(gradients).cpu()


if __name__ == "__main__":
    cli.run(main)
