"""Cost model of extraction and training: FLOPs per clip and per step, and expected efficiency of the hardware.

The counts are multiplications and additions of the matrix products, two per parameter and token, attention included.
A machine reaches a fraction of its matrix-product speed on whole models: see the constants named EFFICIENCY.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmaudio.model.spec import (
    FRAMES_PER_SEGMENT,
    ClipSpec,
    ModelSpec,
    NetworkSpec,
    SyncSpec,
    compute_lengths,
    modulated_rows,
)

CPU_ENCODER_EFFICIENCY = {torch.float32: 0.7, torch.bfloat16: 0.5}
"""Fraction of the measured matrix-product speed that CLIP and Synchformer reach on a CPU, by compute dtype.

At the released sizes, on one and two cores with AMX: CLIP, the largest part, 0.78 in float32 and 0.47 to 0.64 in
bfloat16, Synchformer 0.55 to 0.67 and 0.29 to 0.34: `python -m benchmarks.features VIDEO --precision small_16k`.
"""
CPU_TRAINING_EFFICIENCY = {torch.float32: 0.7, torch.bfloat16: 0.5}
"""The same of a training step: small_16k 0.76 in float32, 0.60 in bfloat16 (`python -m benchmarks.training`,
also with `--float32`; the share that it prints is of 0.74 of the operations of `training_flops`)."""
GPU_EFFICIENCY = {"encoders": 0.45, "training": 0.2}
"""The same on a GPU. Encoders of small_16k on an H200: CLIP 0.55, Synchformer 0.21 (`python -m
benchmarks.features --encoders small_16k --device cuda`). Training of small_16k on an H100, recorded: 12.8 %,
of 0.74 of the operations (`python -m benchmarks.training --batch 32 --device cuda --cuda_graph`).
"""
BLOCK_SECONDS, RECORDED_BLOCK_SECONDS = 0.01, 0.002
"""CPU time, independent of the batch size, to launch the GPU kernels of one block, forward and backward, without
`cuda_graph` and with it. With an H100, the 12 blocks of small_16k took 0.126 s for 32 clips, and 0.022 s for 8 recorded
ones.
"""


LOSS_TIMES = 8
"""Passes over a clip for its loss in an evaluation."""
SCAN_SPEED = 20.0
"""Seconds of 720p video that splitting scans in a second, on one core."""
DECODING_FLOPS = {"griffin_lim": 2.2e10, "bigvgan": 9.2e11}
"""FLOPs of matrix products in float32 that take as long as a sound of 8 s: its VAE, vocoder and measurement.

By vocoder, at 16 kHz: 0.1 s and 4.4 s on two cores where products reach 209 GFLOP/s; 11.9 s at 44.1 kHz
(`python -m benchmarks.generation --decode`, and 0.1 s to measure).
"""
DECODING_SOUNDS = 3
"""Sounds of a clip that an evaluation decodes: base, adapted, and the original by the codec."""
MEDIA_SECONDS = 0.3
"""Seconds to read a clip's original, and to write its sounds and pictures."""
START_SHARES = {"split": 1.0, "extract": 1.5, "train": 2.75, "evaluate": 2.85}
"""Time that a stage's imports take, relative to those of the plan: 2.4, 4.0, 7.1 and 7.4 s of CPU against 2.6 s."""
FORKED_START_SHARES = {"split": 1.0, "extract": 0.3, "train": 1.0, "evaluate": 0.3}
"""The same where stages are forked: 1.2, 3.4 and 1.1 s against 3.5 s. Splitting may begin before that can be."""


def transformer_flops(tokens: int, width: int, layers: int, matrices: int = 12) -> float:
    """FLOPs of one pass: `matrices` products of width x width per token and layer, plus attention."""
    return layers * (2.0 * matrices * width**2 * tokens + 4.0 * tokens**2 * width)


def clip_flops(spec: ClipSpec) -> float:
    """FLOPs to encode one frame."""
    return transformer_flops((spec.image_size // spec.patch_size) ** 2 + 1, spec.image_width, spec.image_layers)


def sync_flops(spec: SyncSpec) -> float:
    """FLOPs to encode one segment of 16 frames; two attentions per layer amount to 16 products."""
    tokens = FRAMES_PER_SEGMENT // spec.tubelet_size * spec.grid_size**2 + 1
    spatial_attention = 4.0 * tokens * spec.grid_size**2 * spec.width * spec.depth
    patches = 2.0 * tokens * spec.width * 3 * spec.tubelet_size * spec.patch_size**2
    pooling = 2.0 * 2 * spec.width**2 * tokens
    return spec.depth * 2.0 * 16 * spec.width**2 * tokens + spatial_attention + patches + pooling


def network_flops(spec: NetworkSpec) -> float:
    """FLOPs of one forward pass over one clip, without the input projections (computed once per clip)."""
    mlp_width = -(-(2 * spec.mlp_ratio * spec.width // 3) // 256) * 256
    kernel_3 = spec.width * (3 + 3) * spec.width + 3 * 3 * spec.width * mlp_width
    kernel_1 = spec.width * (3 + 1) * spec.width + 3 * spec.width * mlp_width
    latent, clip, text = spec.latent_tokens, spec.clip_tokens, spec.text_tokens
    modulation = 6 * spec.width**2 * modulated_rows(spec.sync_tokens, latent)
    joint = latent * kernel_3 + modulation + clip * kernel_3 + text * kernel_1
    fused = latent * kernel_3 + modulation
    attention = (
        2.0 * spec.width * (spec.num_joint_blocks * (latent + clip + text) ** 2 + spec.num_fused_blocks * latent**2)
    )
    return 2.0 * (spec.num_joint_blocks * joint + spec.num_fused_blocks * fused + attention)


def extraction_flops(model: ModelSpec) -> float:
    """FLOPs to encode the frames of one clip with both encoders."""
    lengths = compute_lengths(model.codec)
    return lengths.clip_tokens * clip_flops(model.clip) + lengths.sync_segments * sync_flops(model.sync)


def evaluation_flops(model: ModelSpec, clip_counts: Sequence[int], strengths: int, strength_clips: int) -> float:
    """FLOPs of losses and samples: all clips with both models, `strength_clips` of each set at other strengths.

    Generic prompts take a twelfth more: one for 12 samples, of three sounds with a third of the steps.
    """
    passes = 2 * model.num_steps + LOSS_TIMES  # guided: two passes a step
    samples = sum(2 * clips + strengths * min(clips, strength_clips) for clips in clip_counts)
    return samples * (1 + 1 / 12) * passes * network_flops(model.network)


def decoding_flops(model: ModelSpec, sounds: int) -> float:
    """Float32 matrix-product FLOPs that take as long as decoding and measuring sounds of 8 s."""
    return sounds * DECODING_FLOPS[model.codec.vocoder] * model.codec.sample_rate / 16_000


def training_check_flops(model: ModelSpec, losses: int, samples: int) -> float:
    """FLOPs of what training does beside its steps: passes for `losses` of clips, and `samples` with both models."""
    return (losses + 2 * samples * 2 * model.num_steps) * network_flops(model.network)


def training_flops(model: ModelSpec, samples: int, base_samples: int = 0) -> float:
    """FLOPs to train on `samples` clips: a forward pass, and about twice that for the backward pass.

    A sample of the base takes a pass of the base more.
    """
    return (3.0 * samples + 4.0 * base_samples) * network_flops(model.network)


def sampling_flops(model: ModelSpec, samples: int) -> float:
    """FLOPs to sample the latents of `samples` clips."""
    return 2.0 * model.num_steps * samples * network_flops(model.network)  # guided: two passes a step


def expected_efficiency(stage: str, device: torch.device, dtype: torch.dtype) -> float:
    """Fraction of the matrix-product speed in `dtype` that a stage, a key of GPU_EFFICIENCY, reaches on `device`."""
    on_cpu = {"encoders": CPU_ENCODER_EFFICIENCY, "training": CPU_TRAINING_EFFICIENCY}[stage]
    return on_cpu[dtype] if device.type == "cpu" else GPU_EFFICIENCY[stage]


def launch_seconds(spec: NetworkSpec, batches: int, recorded: bool, base_batches: int = 0) -> float:
    """CPU seconds to launch `batches` training batches on a GPU, a lower bound of their duration.

    Those of the base's samples are not recorded, and have a forward pass more.
    """
    block_seconds = RECORDED_BLOCK_SECONDS if recorded else BLOCK_SECONDS
    seconds = batches * block_seconds + base_batches * BLOCK_SECONDS * 4 / 3
    return (spec.num_joint_blocks + spec.num_fused_blocks) * seconds


def format_duration(seconds: float) -> str:
    """Format a duration: `40 s`, `12 min`, `3.5 h`, `4.2 days`."""
    for unit, unit_seconds in (("days", 86_400.0), ("h", 3_600.0)):
        if seconds >= 1.5 * unit_seconds:
            return f"{seconds / unit_seconds:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
