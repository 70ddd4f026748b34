"""How long the network takes to sample, beside the same network written plainly of PyTorch's modules.

    python -m benchmarks.generation --model small_16k

Random weights, so nothing is downloaded; every step is guided, both branches in one batch. What is timed is the solver
alone: no encoders, no decoder. Each round runs every contestant once; the medians are printed, and how far each one's
latents are from the plain float32 ones.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.baseline_network import PlainNetwork
from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.generation.generate import LONGEST, SHORTEST
from mmaudio.model.flow_matching import guided, integrate
from mmaudio.model.networks import Conditions, MMAudio, build_network
from mmaudio.model.spec import MODELS, SECONDS, model_spec
from mmaudio.model.weight_dtype import weights_in
from mmaudio.utils.progress import progress

REFERENCE = "plain PyTorch, float32"
CPU_INFO = Path("/proc/cpuinfo")


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Time the network's sampling beside plain PyTorch modules.")
    made.prog = "python -m benchmarks.generation"
    made.add_argument("--model", default="small_16k", choices=list(MODELS), help="the base model")
    made.add_argument("--seconds", type=float, default=SECONDS, help="duration of the sound")
    made.add_argument("--steps", type=int, default=25, help="Euler steps")
    made.add_argument("--batch", type=int, default=1, help="sounds at once")
    made.add_argument("--rounds", type=int, default=3, help="how often each contestant runs")
    made.add_argument("--threads", type=int, help="processor threads; torch's own choice where not given")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return made


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    args = parser().parse_args(arguments)
    cli.at_least(args, steps=1, batch=1, rounds=1, threads=1)
    if not SHORTEST <= args.seconds <= LONGEST:
        raise ConfigError(f"--seconds {args.seconds:g}: {SHORTEST:g} to {LONGEST:g}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = cli.pick_device(args.device)
    contestants = build_contestants(args.model, args.seconds, args.steps, args.batch, device)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    latents: dict[str, Tensor] = {}
    for _ in progress(range(args.rounds), args.rounds, "rounds"):
        for name, run in contestants.items():
            start = time.perf_counter()
            latents[name] = run().cpu()
            times[name].append(time.perf_counter() - start)
    print(f"{args.model}, {args.seconds:g} s, {args.steps} guided Euler steps, batch {args.batch}")
    print(f"{machine(device)}, torch {torch.__version__}; medians of {args.rounds} rounds")
    for name, seconds in times.items():
        error = difference(latents[name], latents[REFERENCE])
        print(f"{name:<24} {statistics.median(seconds):7.2f} s   difference {error:.1e}")
    return 0


def build_contestants(
    model: str, seconds: float, steps: int, batch: int, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """What samples latents (B, N, C), by name: the plain network and ours, in float32 and in bfloat16."""
    network = random_network(model).to(device)
    network.set_duration(seconds)
    plain = PlainNetwork(network.spec).to(device)
    plain.load_state_dict(network.state_dict())
    plain.eval().requires_grad_(False)
    given, empty = random_conditions(network, batch)
    guidance = model_spec(model).guidance
    noise = torch.randn(batch, network.lengths.latent, network.spec.latent_dim, generator=_generator(2)).to(device)

    def plainly(latent: Tensor, t: Tensor) -> Tensor:
        both = plain.predict_velocity(torch.cat([latent, latent]), t, given.cat(empty)).float()
        return guidance * both[:batch] + (1 - guidance) * both[batch:]

    def sampling(dtype: torch.dtype, ours: bool) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def run() -> Tensor:
            velocity = guided(network, given, empty, guidance) if ours else plainly
            cast = weights_in(network, dtype) if ours else nullcontext()
            with cast, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return integrate(velocity, noise, steps)

        return run

    return {
        REFERENCE: sampling(torch.float32, ours=False),
        "plain PyTorch, bfloat16": sampling(torch.bfloat16, ours=False),
        "this network, float32": sampling(torch.float32, ours=True),
        "this network, bfloat16": sampling(torch.bfloat16, ours=True),
    }


def random_network(model: str) -> MMAudio:
    """The network of `model` with random weights whose every layer counts; the same ones every time."""
    network, generator = build_network(model), _generator(0)
    network.initialise(generator)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def random_conditions(network: MMAudio, batch: int) -> tuple[Conditions, Conditions]:
    """Projected conditions of random features, and of none."""
    spec, size, generator = network.spec, network.lengths, _generator(1)
    shapes = ((size.clip, spec.clip_dim), (size.sync, spec.sync_dim), (spec.text_tokens, spec.text_dim))
    features = [torch.randn(batch, *shape, generator=generator).to(network.latent_mean.device) for shape in shapes]
    return network.preprocess_conditions(*features), network.empty_conditions(batch)


def difference(latents: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference as a share of the reference's."""
    return float((latents - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    cli.run(main)
