"""Error of bfloat16 autocast: loss and gradient of the same samples, beside float32.

    python -m benchmarks.bf16_error                       # small_16k, rank 64, on the CPU
    python -m benchmarks.bf16_error --model tiny_16k
    python -m benchmarks.bf16_error --device cuda

Random weights and features, so nothing is downloaded. Every clip is measured at eight flow times, as in validation.

S samples: clips times flow times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.random_inputs import random_features, random_network, seeded_generator
from benchmarks.timing import describe_device
from mmaudio import cli
from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import ClipDataset, build_dataset
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.state import TrainState, new_state
from mmaudio.finetune.step import compute_losses
from mmaudio.finetune.validation import build_validation_set
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.spec import MODELS

LEVELS = 8
MICRO_BATCH_SIZE = 4
"""Samples that go through the network together."""
ADAPTER_STD = 0.02
"""Standard deviation of the adapter's B matrices: at zero, A would have no gradient."""


@dataclass(frozen=True)
class PrecisionError:
    """Losses and gradients of the same samples in float32 and in bfloat16."""

    float32_losses: Tensor  # (S,)
    bfloat16_losses: Tensor  # (S,)
    float32_gradient: Tensor  # of the mean loss, flat
    bfloat16_gradient: Tensor

    @property
    def mean_loss_error(self) -> float:
        """Difference of the mean losses, as a fraction of float32's."""
        reference = self.float32_losses.mean()
        return float((self.bfloat16_losses.mean() - reference) / reference)

    @property
    def max_loss_error(self) -> float:
        """Largest difference of a sample's loss, as a fraction of its float32 loss."""
        return float(((self.bfloat16_losses - self.float32_losses) / self.float32_losses).abs().max())

    @property
    def gradient_error(self) -> float:
        """Norm of the gradients' difference, as a fraction of float32's norm."""
        return float((self.bfloat16_gradient - self.float32_gradient).norm() / self.float32_gradient.norm())


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Measure the error of bfloat16 in a training step's loss and gradient.")
    parser.prog = "python -m benchmarks.bf16_error"
    parser.add_argument("--model", default="small_16k", choices=list(MODELS), help="the base model")
    parser.add_argument("--clips", type=int, default=8, help="how many, each at eight flow times")
    parser.add_argument("--rank", type=int, default=64, help="of the adapter")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return parser


def main(arguments: list[str]) -> int:
    """Measure and print."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, clips=1, rank=1)
    device = cli.pick_device(args.device)
    error = measure(args.model, args.clips, args.rank, device)
    print(
        f"{args.model}, LoRA rank {args.rank}, {len(error.float32_losses)} samples; "
        f"{describe_device(device)}, torch {torch.__version__}"
    )
    print(f"loss      float32 {error.float32_losses.mean():.5f}, bfloat16 {error.bfloat16_losses.mean():.5f}")
    mean_error, max_error = error.mean_loss_error, error.max_loss_error
    print(f"          difference {mean_error:+.1e} of the mean, at most {max_error:.1e} of a sample's")
    print(f"gradient  difference {error.gradient_error:.1e} of its length")
    return 0


def measure(model: str, clips: int, rank: int, device: torch.device) -> PrecisionError:
    """Both precisions on random clips, through a random network with a non-zero adapter."""
    features = random_features(model, clips)
    lora = LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=0.0)
    state = new_state(random_network(model).to(device), TrainConfig(model=model, lora=lora), clips)
    generator = seeded_generator(2)
    for name, weight in state.trainable_parameters().items():
        if ".lora_B." in name:
            weight.data += ADAPTER_STD * torch.randn(weight.shape, generator=generator).to(device)
    dataset = build_dataset(state.network, features, device)
    return compare(state, dataset, build_validation_set(dataset, features.ids, LEVELS).draws)


def compare(state: TrainState, dataset: ClipDataset, draws: Draws) -> PrecisionError:
    """Loss and gradient of the drawn samples in both precisions; overwrites the parameters' gradients."""
    float32_losses, float32_gradient = _losses_and_gradient(state, dataset, draws, torch.float32)
    bfloat16_losses, bfloat16_gradient = _losses_and_gradient(state, dataset, draws, torch.bfloat16)
    return PrecisionError(float32_losses, bfloat16_losses, float32_gradient, bfloat16_gradient)


def _losses_and_gradient(
    state: TrainState, dataset: ClipDataset, draws: Draws, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Losses (S,) and the gradient of their mean, on the CPU."""
    state.model.eval()
    state.optimizer.zero_grad()
    micro_losses = []
    for micro_draws in draws.split(MICRO_BATCH_SIZE):
        losses = compute_losses(state.network, dataset, micro_draws.to(dataset.mean.device), dtype)
        torch.autograd.backward(losses.sum() / len(draws))
        micro_losses.append(losses.detach())
    weights = state.trainable_parameters().values()
    gradients = [weight.grad.flatten() for weight in weights if weight.grad is not None]
    return torch.cat(micro_losses).cpu(), torch.cat(gradients).cpu()


if __name__ == "__main__":
    cli.run(main)
