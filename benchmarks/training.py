"""Time and memory of a training step, beside plain peft on plain modules.

    python -m benchmarks.training                                    # small_16k, rank 64, batch 4, on the CPU
    python -m benchmarks.training --batch 32 --device cuda --compile
    python -m benchmarks.training --model large_44k_v2 --batch 8 --checkpointing --device cuda
    python -m benchmarks.training --model tiny_16k --full            # every weight is trained

Random weights and features, so nothing is downloaded. The trainer's step is the one that training runs, EMA included;
plain peft projects the features anew at every step and has no EMA. Each round runs both once, in turn; medians are
printed. The flops are those that the objective needs, products alone: recomputation and repeated projections do not
count. The memory is the peak of a process for one of them, its weights included; on a GPU it is what torch has
reserved. WARM_UP_STEPS steps come first, which compile and capture.
"""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.baseline_training import PlainTraining
from benchmarks.peak_memory import PeakMemory
from benchmarks.random_inputs import random_features, random_network
from benchmarks.timing import describe_device, time_rounds
from mmaudio import cli
from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import FeatureSet
from mmaudio.finetune.cuda_graph import build_accumulator
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.diagnostics import count_flops_per_clip
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import train_step
from mmaudio.finetune.trainer import prepare_network
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.spec import MODELS
from mmaudio.utils.matmul_speed import measure_matmul_speed

WARM_UP_STEPS = 2
PLAIN, TRAINER = "plain peft", "this trainer"


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Time a training step beside plain peft on plain modules.")
    parser.prog = "python -m benchmarks.training"
    parser.add_argument("--model", default="small_16k", choices=list(MODELS), help="the base model")
    parser.add_argument("--batch", type=int, default=4, help="batch size")
    parser.add_argument("--rank", type=int, default=64, help="of the adapter; alpha is twice that")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the adapter's inputs")
    parser.add_argument("--full", action="store_true", help="train every weight instead of an adapter")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, both of them")
    parser.add_argument("--compile", action="store_true", help="the trainer's compile=true")
    parser.add_argument("--cuda_graph", action=BooleanOptionalAction, help="the trainer's cuda_graph")
    parser.add_argument("--float32", action="store_true", help="no bfloat16")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant steps")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's default if absent")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return parser


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, batch=1, rank=1, rounds=1, threads=1)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = cli.pick_device(args.device)
    config, features = build_config(args), random_features(args.model, args.batch)
    plain = build_plain_contestant(config, features, device)
    trainer, flops = build_trainer_contestant(config, features, device)
    timings = time_rounds({PLAIN: plain.step, TRAINER: trainer.step}, args.rounds, device)
    dtype = compute_dtype(device, config.amp)
    matmul_speed = measure_matmul_speed(device, dtype)
    print(heading(config, dtype))
    print(f"{describe_device(device)}, torch {torch.__version__}; medians of {args.rounds} rounds")
    print(f"a step needs {flops / 1e12:.3g} Tflop; matrix products reach {matmul_speed / 1e12:.3g} Tflop/s")
    for name, contestant in ((PLAIN, plain), (TRAINER, trainer)):
        print(format_row(name, timings[name].median, contestant.memory, config.batch_size, flops / matmul_speed))
    pairs = zip(timings[TRAINER].seconds, timings[PLAIN].seconds, strict=True)
    ratios = [trainer_seconds / plain_seconds for trainer_seconds, plain_seconds in pairs]
    ratio = timings[TRAINER].median / timings[PLAIN].median
    print(f"{TRAINER} takes {ratio:.2f} of the time ({min(ratios):.2f} to {max(ratios):.2f} by round)")
    return 0


def build_config(args: Namespace) -> TrainConfig:
    """The trainer's configuration for the command line."""
    lora = LoRAConfig(rank=args.rank, alpha=2.0 * args.rank, dropout=args.dropout, enabled=not args.full)
    return TrainConfig(
        model=args.model,
        batch_size=args.batch,
        gradient_accumulation_steps=1,
        lora=lora,
        amp=not args.float32,
        gradient_checkpointing=args.checkpointing,
        compile=args.compile,
        cuda_graph=args.cuda_graph,
    )


def heading(config: TrainConfig, dtype: torch.dtype) -> str:
    """The measured settings in words."""
    lora = config.lora
    method = f"LoRA rank {lora.rank}, dropout {lora.dropout:g}" if lora.enabled else lora.method_name
    extras = [name for name in ("gradient_checkpointing", "compile", "cuda_graph") if getattr(config, name)]
    words = [config.model, f"batch {config.batch_size}", method, str(dtype).removeprefix("torch."), *extras]
    return ", ".join(words)


def format_row(name: str, seconds: float, memory: float | None, batch_size: int, ideal_seconds: float) -> str:
    """A row of the table; `ideal_seconds` is the time of a step's flops at the speed of matrix products."""
    memory_cell = "" if memory is None else f"   {memory / 1e9:.2f} GB at most"
    return (
        f"{name:<14}{seconds:8.3f} s {1 / seconds:9.2f} steps/s {batch_size / seconds:9.2f} samples/s"
        f"{100 * ideal_seconds / seconds:8.1f} % of the ceiling{memory_cell}"
    )


@dataclass
class Contestant:
    """A training step, after its warm-up."""

    step: Callable[[], object]
    memory: float | None
    """Peak bytes of the warm-up; None where it cannot be measured."""


def build_plain_contestant(config: TrainConfig, features: FeatureSet, device: torch.device) -> Contestant:
    """Plain peft on plain modules."""
    peak_memory = PeakMemory(device)
    network, dtype = random_network(config.model), compute_dtype(device, config.amp)
    training = PlainTraining(network, features, config, device, dtype)
    return Contestant(training.step, peak_memory.measure(training.step, WARM_UP_STEPS))


def build_trainer_contestant(
    config: TrainConfig, features: FeatureSet, device: torch.device
) -> tuple[Contestant, float]:
    """The trainer's step and state, and the flops of a step."""
    peak_memory = PeakMemory(device)
    network = random_network(config.model).to(device)
    state = new_state(network, config, len(features))
    dataset, distributed = build_dataset(network, features, device), Distributed(device=device)
    flops = config.batch_size * count_flops_per_clip(state, dataset, config)
    prepare_network(state, config, device)
    accumulate = build_accumulator(dataset, config)

    def step() -> object:
        """One training step, as training takes it."""
        return train_step(state, dataset, config, distributed, accumulate)

    return Contestant(step, peak_memory.measure(step, WARM_UP_STEPS)), flops


if __name__ == "__main__":
    cli.run(main)
