"""Sampling time of the network, beside the same network written plainly of PyTorch's modules.

    python -m benchmarks.generation --model small_16k
    python -m benchmarks.generation --model small_16k --decode

Random weights, so nothing is downloaded; every step is guided, both branches in one batch. The solver alone is timed:
no encoders, no decoder. With `--decode` the decoder alone is: VAE and vocoder, in float32.

Each round runs every contestant once; the medians are printed, and how far each one's latents are from the plain
float32 ones.

B batch, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.baseline_network import PlainNetwork
from benchmarks.random_inputs import random_conditions, random_network, seeded_generator
from benchmarks.timing import describe_device, time_rounds
from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.features.bigvgan import BigVGAN
from mmaudio.features.vae import build_vae
from mmaudio.features.vocoder import build_vocoder
from mmaudio.generation.generate import MAX_ONE_PASS_SECONDS, MIN_SECONDS
from mmaudio.generation.recorded_velocity import record_velocity
from mmaudio.model.flow_matching import integrate
from mmaudio.model.guidance import guided_velocity
from mmaudio.model.networks import resample_tokens
from mmaudio.model.spec import CLIP_SECONDS, MODELS, compute_lengths, model_spec
from mmaudio.model.weight_dtype import weights_cast_to

REFERENCE = "plain PyTorch, float32"


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Time the network's sampling beside plain PyTorch modules.")
    parser.prog = "python -m benchmarks.generation"
    parser.add_argument("--model", default="small_16k", choices=list(MODELS), help="the base model")
    parser.add_argument("--seconds", type=float, default=CLIP_SECONDS, help="duration of the audio")
    parser.add_argument("--steps", type=int, default=25, help="Euler steps")
    parser.add_argument("--batch", type=int, default=1, help="batch size")
    parser.add_argument("--decode", action="store_true", help="time VAE and vocoder instead")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's default if absent")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return parser


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, steps=1, batch=1, rounds=1, threads=1)
    if not MIN_SECONDS <= args.seconds <= MAX_ONE_PASS_SECONDS:
        raise ConfigError(f"--seconds {args.seconds:g}: {MIN_SECONDS:g} to {MAX_ONE_PASS_SECONDS:g}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = cli.pick_device(args.device)
    if args.decode:
        return time_decoding(args.model, args.seconds, args.batch, args.rounds, device)
    contestants = build_contestants(args.model, args.seconds, args.steps, args.batch, device)
    timings = time_rounds(contestants, args.rounds, device)
    print(f"{args.model}, {args.seconds:g} s, {args.steps} guided Euler steps, batch {args.batch}")
    print(f"{describe_device(device)}, torch {torch.__version__}; medians of {args.rounds} rounds")
    for name, timing in timings.items():
        error = relative_rms(timing.result, timings[REFERENCE].result)
        print(f"{name:<24} {timing.median:7.2f} s   difference {error:.1e}")
    return 0


@torch.inference_mode()
def time_decoding(model: str, seconds: float, batch_size: int, rounds: int, device: torch.device) -> int:
    """Measure VAE and vocoder and print a line for each."""
    codec = model_spec(model).codec
    vae, vocoder = build_vae(codec.name, drop_encoder=True), build_vocoder(codec.name)
    if isinstance(vocoder, BigVGAN):
        vocoder.remove_weight_norm()
    for module in (vae, vocoder):
        module.to(device).eval().requires_grad_(False)
    tokens = compute_lengths(codec, seconds).latent_tokens
    latents = torch.randn(batch_size, codec.latent_dim, tokens, generator=seeded_generator(2)).to(device)
    mel = vae.decode(latents)
    timings = time_rounds({"VAE": lambda: vae.decode(latents), "vocoder": lambda: vocoder(mel)}, rounds, device)
    print(f"{model}, {seconds:g} s, batch {batch_size}, float32")
    print(f"{describe_device(device)}, torch {torch.__version__}; medians of {rounds} rounds")
    for name, timing in timings.items():
        print(f"{name:<24} {timing.median:7.2f} s")
    return 0


def build_contestants(
    model: str, seconds: float, num_steps: int, batch_size: int, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Functions that sample latents (B, N, C): the plain network and this package's, in float32 and in bfloat16."""
    network = random_network(model).to(device)
    network.set_duration(seconds)
    plain = PlainNetwork(network.spec).to(device)
    plain.load_state_dict(network.state_dict())
    plain.eval().requires_grad_(False)
    cond, uncond = random_conditions(network, batch_size)
    guidance_scale = model_spec(model).guidance_scale
    shape = (batch_size, network.lengths.latent_tokens, network.spec.latent_dim)
    noise = torch.randn(shape, generator=seeded_generator(2)).to(device)
    both_branches = cond.cat(uncond)
    resampled = replace(both_branches, sync_f=resample_tokens(both_branches.sync_f, shape[1]))

    def plain_velocity(latent: Tensor, t: Tensor) -> Tensor:
        """The plain network's velocity under guidance, as `guided_velocity` has it."""
        both = plain.predict_velocity(torch.cat([latent, latent]), t, resampled).float()
        return guidance_scale * both[:batch_size] + (1 - guidance_scale) * both[batch_size:]

    def build(dtype: torch.dtype, is_plain: bool) -> Callable[[], Tensor]:
        """The sampling with one of the networks in `dtype`."""

        @torch.inference_mode()
        def sample() -> Tensor:
            """The latents after all steps, (B, T, C)."""
            velocity = plain_velocity if is_plain else guided_velocity(network, cond, uncond, guidance_scale)
            cast = nullcontext() if is_plain else weights_cast_to(network, dtype)
            velocity = velocity if is_plain else record_velocity(velocity, device, "euler", num_steps)
            with cast, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return integrate(velocity, noise, num_steps)

        return sample

    return {
        REFERENCE: build(torch.float32, is_plain=True),
        "plain PyTorch, bfloat16": build(torch.bfloat16, is_plain=True),
        "this network, float32": build(torch.float32, is_plain=False),
        "this network, bfloat16": build(torch.bfloat16, is_plain=False),
    }


def relative_rms(latents: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference, as a fraction of the reference's."""
    return float((latents - reference).square().mean().sqrt() / reference.square().mean().sqrt())


if __name__ == "__main__":
    cli.run(main)
