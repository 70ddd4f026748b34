"""How long a training step takes, beside plain peft on plain modules.

    python -m benchmarks.training                                    # small_16k, rank 64, batch 4, on the CPU
    python -m benchmarks.training --batch 32 --device cuda --cuda_graph --compile
    python -m benchmarks.training --model large_44k_v2 --batch 8 --checkpointing --device cuda
    python -m benchmarks.training --model tiny_16k --full            # every weight is trained

Random weights and features, so nothing is downloaded. The trainer's step is the one that training runs, running average
and all; plain peft projects the features anew at every step and keeps no average. Each round runs both once, in turn;
medians are printed. The flops are those that the objective needs, products alone: what is computed again, or projected
again, does not count. The memory is what a process holds at most for one of them, its weights included; on a GPU what
torch has reserved there. A warm-up of WARM_UP steps comes first, which compiles and records.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.baseline_training import PlainTraining
from benchmarks.generation import machine, random_network
from mmaudio import cli
from mmaudio.config import TrainConfig
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import Features, FeatureSet, feature_set
from mmaudio.finetune.cuda_graph import batch_for
from mmaudio.finetune.dataset import material
from mmaudio.finetune.diagnostics import flops_per_clip
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import train_step
from mmaudio.finetune.trainer import ready
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.spec import MODELS, SECONDS, model_spec
from mmaudio.utils.matmul_speed import matmul_speed
from mmaudio.utils.progress import progress

WARM_UP = 2
PLAIN, OURS = "plain peft", "this trainer"


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Time a training step beside plain peft on plain modules.")
    made.prog = "python -m benchmarks.training"
    made.add_argument("--model", default="small_16k", choices=list(MODELS), help="the base model")
    made.add_argument("--batch", type=int, default=4, help="clips of a step")
    made.add_argument("--rank", type=int, default=64, help="of the adapter; alpha is twice that")
    made.add_argument("--dropout", type=float, default=0.1, help="of the adapter's inputs")
    made.add_argument("--full", action="store_true", help="train every weight instead of an adapter")
    made.add_argument("--checkpointing", action="store_true", help="recompute activations, both of them")
    made.add_argument("--compile", action="store_true", help="the trainer's compile=true")
    made.add_argument("--cuda_graph", action="store_true", help="the trainer's cuda_graph=true")
    made.add_argument("--float32", action="store_true", help="no bfloat16")
    made.add_argument("--rounds", type=int, default=5, help="how often each one steps")
    made.add_argument("--threads", type=int, help="processor threads; torch's own choice where not given")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return made


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    args = parser().parse_args(arguments)
    cli.at_least(args, batch=1, rank=1, rounds=1, threads=1)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = cli.pick_device(args.device)
    config, features = training_config(args), random_features(args.model, args.batch)
    contestants = [plain_peft(config, features, device), this_trainer(config, features, device)]
    for _ in progress(range(args.rounds), args.rounds, "rounds"):
        for contestant in contestants:
            contestant.seconds.append(timed(contestant.step, device))
    dtype = compute_dtype(device, config.amp)
    print(heading(config, dtype))
    print(f"{machine(device)}, torch {torch.__version__}; medians of {args.rounds} rounds")
    ceiling = matmul_speed(device, dtype)
    needed = contestants[1].flops
    print(f"a step needs {needed / 1e12:.3g} Tflop; matrix products reach {ceiling / 1e12:.3g} Tflop/s")
    for contestant in contestants:
        print(contestant.line(config.batch_size, needed / ceiling))
    ratios = [ours / plain for plain, ours in zip(*(each.seconds for each in contestants), strict=True)]
    plain, ours = (statistics.median(each.seconds) for each in contestants)
    print(f"{OURS} takes {ours / plain:.2f} of the time ({min(ratios):.2f} to {max(ratios):.2f} by round)")
    return 0


def training_config(args: Namespace) -> TrainConfig:
    """The trainer's settings for the command line's."""
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
    """What is measured."""
    lora = config.lora
    kind = f"LoRA rank {lora.rank}, dropout {lora.dropout:g}" if lora.enabled else lora.kind
    extras = [name for name in ("gradient_checkpointing", "compile", "cuda_graph") if getattr(config, name)]
    what = [config.model, f"batch {config.batch_size}", kind, str(dtype).removeprefix("torch."), *extras]
    return ", ".join(what)


@dataclass
class Contestant:
    """One of the two, and what was measured of it."""

    name: str
    step: Callable[[], object]
    flops: float
    """Of a step; 0 where another's count."""
    memory: float | None
    """Bytes; None where it cannot be measured."""
    seconds: list[float] = field(default_factory=list)

    def line(self, batch: int, least: float) -> str:
        """A row of the table; `least` is the time in seconds that the flops would take at the ceiling."""
        median = statistics.median(self.seconds)
        memory = "" if self.memory is None else f"   {self.memory / 1e9:.2f} GB at most"
        return (
            f"{self.name:<14}{median:8.3f} s {1 / median:9.2f} steps/s {batch / median:9.2f} samples/s"
            f"{100 * least / median:8.1f} % of the ceiling{memory}"
        )


def plain_peft(config: TrainConfig, features: FeatureSet, device: torch.device) -> Contestant:
    """Plain peft, after its first steps."""
    gauge = Gauge(device)
    training = PlainTraining(random_network(config.model), features, config, device, compute_dtype(device, config.amp))
    return Contestant(PLAIN, training.step, 0.0, gauge.most(training.step))


def this_trainer(config: TrainConfig, features: FeatureSet, device: torch.device) -> Contestant:
    """The trainer's own step with its own state, after its first steps."""
    gauge = Gauge(device)
    network = random_network(config.model).to(device)
    state = new_state(network, config, len(features))
    clips, team = material(network, features, device), Team(device=device)
    flops = config.batch_size * flops_per_clip(state, clips, config)
    ready(state, config, device)

    batch = batch_for(clips, config)

    def step() -> object:
        return train_step(state, clips, config, team, batch)

    return Contestant(OURS, step, flops, gauge.most(step))


class Gauge:
    """The memory that a process holds for something, from the gauge's making on: a GPU's, else the process's own."""

    STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self._held("VmRSS")

    def most(self, step: Callable[[], object]) -> float | None:
        """The most bytes in WARM_UP runs of `step`, less what was held before; None where that cannot be measured."""
        self._held("VmRSS")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # of what is held now, unused or not
        elif self.RESET.exists():
            self.RESET.write_text("5")
        for _ in range(WARM_UP):
            step()
        peak = self._held("VmHWM")
        return None if peak is None or self.before is None else peak - self.before

    def _held(self, line: str) -> float | None:
        """`VmRSS` is what is held now, after all that is unused has been given back, `VmHWM` the most."""
        if line == "VmRSS":
            gc.collect()
        if self.device.type == "cuda":
            if line == "VmHWM":
                return float(torch.cuda.max_memory_reserved(self.device))
            torch.cuda.empty_cache()
            return float(torch.cuda.memory_reserved(self.device))
        if not self.STATUS.exists():
            return None
        if line == "VmRSS":
            ctypes.CDLL(None).malloc_trim(0)
        rows = dict(row.split(":", 1) for row in self.STATUS.read_text().splitlines())
        return 1024.0 * int(rows[line].split()[0])


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def random_features(model: str, clips: int) -> FeatureSet:
    """Features of so many clips of `model`, standard normal."""
    spec, generator = model_spec(model).network, torch.Generator().manual_seed(1)

    def draw(tokens: int, width: int) -> Tensor:
        return torch.randn(clips, tokens, width, generator=generator)

    features = Features(
        draw(spec.latent_tokens, spec.latent_dim),
        draw(spec.latent_tokens, spec.latent_dim).abs(),
        draw(spec.clip_tokens, spec.clip_dim),
        draw(spec.sync_tokens, spec.sync_dim),
        draw(spec.text_tokens, spec.text_dim),
    )
    rows = [Clip(f"{i}", "video.mp4", 0.0, SECONDS, "a sound", "train", 0.0, -20.0, 0.0) for i in range(clips)]
    return feature_set(features, rows, model)


if __name__ == "__main__":
    cli.run(main)
