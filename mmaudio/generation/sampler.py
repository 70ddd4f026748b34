"""Sampling and decoding: the solver turns noise into latents, VAE and vocoder turn latents into a waveform.

    sampler = load_sampler("tiny_16k", device=device)
    waveforms = sampler.decode(sampler.sample_latents(clip_f, sync_f, text_f, sampler.draw_noise([0])))

Legend: B batch, V CLIP tokens, S sync tokens, L text tokens, N latent tokens, C latent channels, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmaudio.features.bigvgan import BigVGAN
from mmaudio.features.griffin_lim import GriffinLim
from mmaudio.features.mel import build_mel
from mmaudio.features.vae import VAE, build_vae
from mmaudio.features.vocoder import build_vocoder
from mmaudio.generation.recorded_velocity import record_velocity
from mmaudio.generation.solver import SolverCounts, solve
from mmaudio.model.guidance import guided_velocity
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.model.weight_dtype import weights_cast_to
from mmaudio.weights.load_frozen import load_frozen


@dataclass
class Sampler:
    """A network with its codec's decoder and vocoder, on one device."""

    spec: ModelSpec
    network: MMAudio
    vae: VAE
    vocoder: BigVGAN | GriffinLim
    device: torch.device
    dtype: torch.dtype = torch.float32
    """Autocast dtype of the network; the solver's state and the codec stay in float32."""
    solver_counts: SolverCounts = field(default_factory=SolverCounts)
    """Of the latest latents."""

    def draw_noise(self, seeds: Sequence[int], num_tokens: int | None = None) -> Tensor:
        """Draw standard normal latents (B, N, C), one per seed: a sample's noise depends on its seed alone.

        `num_tokens`: N, by default that of the network's duration.
        """
        shape = (num_tokens or self.network.lengths.latent_tokens, self.spec.network.latent_dim)
        noise = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(noise)).to(self.device)

    @torch.inference_mode()
    def sample_latents(
        self,
        clip_f: Tensor,  # (B, V, D)
        sync_f: Tensor,  # (B, S, D)
        text_f: Tensor,  # (B, L, D)
        noise: Tensor,  # (B, N, C)
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_text_f: Tensor | None = None,  # (1 or B, L, D)
        method: str = "euler",
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Tensor:
        """Sample latents (B, N, C) on the codec's scale.

        Features of one clip serve a whole batch of noise, and are projected once. `num_steps` and `guidance_scale` are
        the model's defaults where they are None; a scale of 1 or less is no guidance. `negative_text_f` replaces the
        features of the empty text; `method` is one of METHODS. The solver's steps pass through `progress`.
        """
        num_steps = self.spec.num_steps if num_steps is None else num_steps
        guidance_scale = self.spec.guidance_scale if guidance_scale is None else guidance_scale
        with self.autocast():
            features = (feature.to(self.device, torch.float32) for feature in (clip_f, sync_f, text_f))
            cond = self.network.preprocess_conditions(*features)
            if cond.batch_size == 1:
                cond = cond.repeat(len(noise))
            uncond = self.network.empty_conditions(len(noise), negative_text_f) if guidance_scale > 1 else None
            velocity = guided_velocity(self.network, cond, uncond, guidance_scale)
            velocity = record_velocity(velocity, self.device, method, num_steps)
            latents, self.solver_counts = solve(velocity, noise, method, num_steps, progress)
        return self.network.unnormalize(latents.float())

    @torch.inference_mode()
    def decode_mel(self, latents: Tensor) -> Tensor:
        """Latents (B, N, C) on the codec's scale -> the VAE decoder's mel spectrogram (B, mels, frames)."""
        mel: Tensor = self.vae.decode(latents.to(self.device, torch.float32).transpose(1, 2))
        return mel

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, N, C) on the codec's scale -> waveforms (B, samples), with N * hop_length * 2 samples."""
        n_samples = latents.shape[1] * self.spec.codec.hop_length * 2
        waveforms: Tensor = self.vocoder(self.decode_mel(latents))
        return waveforms[:, 0, :n_samples].float()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to `dtype` for the network, with its weights cast once, on entry."""
        with (
            weights_cast_to(self.network, self.dtype),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
        ):
            yield


def load_sampler(
    model: str,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    network: MMAudio | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sampler:
    """Load the sampler of a base model with frozen weights.

    `network` replaces the base model's network and is only moved to the device: the caller sets its mode and gradients.
    Raises ConfigError for an unknown model, WeightsError for weights that are missing or do not fit.
    """
    spec, device = model_spec(model), torch.device(device)
    if network is None:
        network = load_frozen(lambda: build_network(model), model, "network", folder, device)
    vae = load_frozen(lambda: build_vae(spec.codec.name, drop_encoder=True), model, "vae", folder, device)
    vocoder = load_frozen(lambda: build_vocoder(spec.codec.name), model, "vocoder", folder, device)
    return Sampler(spec, network.to(device), vae, vocoder, device, dtype)


def compute_mel(waveforms: Tensor, spec: ModelSpec) -> Tensor:
    """Waveforms (B, samples) -> mel spectrograms (B, mels, frames) of the codec of `spec`."""
    mel: Tensor = build_mel(spec.codec.name).to(waveforms.device)(waveforms)
    return mel


def fast_dtype(device: torch.device) -> torch.dtype:
    """Select bfloat16 on GPUs and CPUs with bfloat16 instructions, else float32.

    25 guided steps on two cores with AVX512-BF16 and AMX took small_16k 3.8 s in bfloat16 and 12.7 s in float32, and
    tiny_16k 0.42 s and 0.56 s (`python -m benchmarks.generation`).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.float32
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 and later
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
