"""What a job will cost before it starts: arithmetic per clip and per step, against this machine's measured speed.

The counts are multiplications and additions of the matrix products, two per parameter and token, attention included.
A machine reaches a fraction of its matrix-product speed on whole models: `ENCODERS`, `TRAINING`.
"""

from __future__ import annotations

import torch

from mmaudio.model.spec import SEGMENT_FRAMES, ClipSpec, ModelSpec, NetworkSpec, SyncSpec, lengths

ENCODERS = {torch.float32: 0.7, torch.bfloat16: 0.5}
"""Fraction of the measured matrix-product speed that CLIP and Synchformer reach on a CPU, by what they compute in.

At the released sizes, on one and two cores with AMX: CLIP, which has most to do, 0.78 in float32 and 0.47 to 0.64 in
bfloat16, Synchformer 0.55 to 0.67 and 0.29 to 0.34: `python -m benchmarks.features VIDEO --precision small_16k`.
"""
TRAINING = {torch.float32: 0.7, torch.bfloat16: 0.5}
"""The same of a training step: small_16k 0.76 in float32, 0.60 in bfloat16 (`python -m benchmarks.training`,
also with `--float32`; the share that it prints is of 0.74 of the operations of `training_flops`)."""
ON_A_GPU = {"encoders": 0.45, "training": 0.2}
"""The same on a GPU. Encoders of small_16k on an H200: CLIP 0.55, Synchformer 0.21 (`python -m
benchmarks.features --encoders small_16k --device cuda`). Training of small_16k on an H100, recorded: 12.8 %,
of 0.74 of the operations (`python -m benchmarks.training --batch 32 --device cuda --cuda_graph`).
"""
BLOCK_SECONDS, RECORDED_BLOCK_SECONDS = 0.01, 0.002
"""What a processor takes, whatever the batch, to start a GPU's operations for a block of the network, forward and
backward, without `cuda_graph` and with it: beside an H100, the 12 blocks of small_16k took 0.126 s for 32 clips, and
recorded 0.022 s for 8.
"""


def transformer_flops(tokens: int, width: int, layers: int, matrices: int = 12) -> float:
    """Operations of one pass: `matrices` width x width products per token and layer, plus attention."""
    return layers * (2.0 * matrices * width**2 * tokens + 4.0 * tokens**2 * width)


def clip_flops(spec: ClipSpec) -> float:
    """Operations to encode one frame."""
    return transformer_flops((spec.size // spec.patch) ** 2 + 1, spec.image_width, spec.image_layers)


def sync_flops(spec: SyncSpec) -> float:
    """Operations to encode one segment of 16 frames; two attentions a layer make 16 products."""
    tokens = SEGMENT_FRAMES // spec.tubelet * spec.grid**2 + 1
    own_frame = 4.0 * tokens * spec.grid**2 * spec.width * spec.depth
    patches = 2.0 * tokens * spec.width * 3 * spec.tubelet * spec.patch**2
    pooling = 2.0 * 2 * spec.width**2 * tokens
    return spec.depth * 2.0 * 16 * spec.width**2 * tokens + own_frame + patches + pooling


def network_flops(spec: NetworkSpec) -> float:
    """Operations of one forward pass over one clip, the input projections left out (computed once per clip)."""
    inner = -(-(2 * spec.mlp_ratio * spec.width // 3) // 256) * 256
    kernel_3 = spec.width * (3 + 3) * spec.width + 3 * 3 * spec.width * inner
    kernel_1 = spec.width * (3 + 1) * spec.width + 3 * spec.width * inner
    modulation = 6 * spec.width**2
    latent, clip, text = spec.latent_tokens, spec.clip_tokens, spec.text_tokens
    joint = latent * (kernel_3 + modulation) + clip * kernel_3 + text * kernel_1
    fused = latent * (kernel_3 + modulation)
    attention = 2.0 * spec.width * (spec.joint_blocks * (latent + clip + text) ** 2 + spec.fused_blocks * latent**2)
    return 2.0 * (spec.joint_blocks * joint + spec.fused_blocks * fused + attention)


def extraction_flops(model: ModelSpec) -> float:
    """Operations to encode one clip's frames, both encoders."""
    size = lengths(model.codec)
    return size.clip * clip_flops(model.clip) + size.sync_segments * sync_flops(model.sync)


def training_flops(model: ModelSpec, samples: int) -> float:
    """Operations to train on `samples` clips: a forward pass and about twice that backward."""
    return 3.0 * samples * network_flops(model.network)


def efficiency(part: str, device: torch.device, dtype: torch.dtype) -> float:
    """Fraction of the matrix-product speed in `dtype` that a part of the job reaches on `device`: a key of ON_A_GPU."""
    on_cpu = {"encoders": ENCODERS, "training": TRAINING}[part]
    return on_cpu[dtype] if device.type == "cpu" else ON_A_GPU[part]


def launching(spec: NetworkSpec, batches: int, recorded: bool) -> float:
    """Seconds that a processor takes to start `batches` training batches on a GPU; a step is never faster."""
    each = RECORDED_BLOCK_SECONDS if recorded else BLOCK_SECONDS
    return batches * (spec.joint_blocks + spec.fused_blocks) * each


def readable(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min`, `3.5 h`, `4.2 days`."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
