"""From conditions to sound: noise through the solver to latents, latents through VAE and vocoder to a waveform.

    sampler = load_sampler("tiny_16k", device=device)
    waveforms = sampler.decode(sampler.latents(clip_f, sync_f, text_f, sampler.noise([0])))

B batch, V CLIP tokens, S sync tokens, L text tokens, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmaudio.features.mel import build_mel
from mmaudio.features.vae import VAE, build_vae
from mmaudio.features.vocoder import build_vocoder
from mmaudio.model.flow_matching import guided, integrate
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.model.weight_dtype import weights_in
from mmaudio.weights.load_frozen import load_frozen


@dataclass
class Sampler:
    """A network with the decoding half of its codec, on one device."""

    spec: ModelSpec
    network: MMAudio
    vae: VAE
    vocoder: nn.Module
    device: torch.device
    dtype: torch.dtype = torch.float32
    """What the network computes in (autocast); the solver's state and the codec stay in float32."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal latents (B, N, C), one per seed: a clip's noise depends on its own seed alone."""
        shape = (self.network.lengths.latent, self.spec.network.latent_dim)
        drawn = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).to(self.device)

    @torch.inference_mode()
    def latents(
        self,
        clip_f: Tensor,
        sync_f: Tensor,
        text_f: Tensor,
        noise: Tensor,
        steps: int | None = None,
        guidance: float | None = None,
        negative_text: Tensor | None = None,
        method: str = "euler",
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Tensor:
        """Latents on the codec's scale (B, N, C) from features (B, V, D), (B, S, D), (B, L, D) and noise (B, N, C).

        Features of one clip serve all of a larger batch of noise, and are projected once. `steps` and `guidance` are
        the model's own where they are None; a guidance of 1 or less is none. `negative_text`, features (1 or B, L, D),
        stands in place of the empty text; `method` is one of SOLVERS. The solver's steps pass through `progress`.
        """
        strength = self.spec.guidance if guidance is None else guidance
        with self.autocast():
            features = (part.to(self.device, torch.float32) for part in (clip_f, sync_f, text_f))
            conditions = self.network.preprocess_conditions(*features)
            if conditions.batch == 1:
                conditions = conditions.repeat(len(noise))
            empty = self.network.empty_conditions(len(noise), negative_text) if strength > 1 else None
            velocity = guided(self.network, conditions, empty, strength)
            latent = integrate(velocity, noise, self.spec.steps if steps is None else steps, method, progress)
        return self.network.unnormalize(latent.float())

    @torch.inference_mode()
    def mel(self, latents: Tensor) -> Tensor:
        """The decoder's mel spectrogram (B, mels, frames) of latents (B, N, C) on the codec's scale."""
        mel: Tensor = self.vae.decode(latents.to(self.device, torch.float32).transpose(1, 2))
        return mel

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, samples) of latents (B, N, C) on the codec's scale; N * hop * 2 samples."""
        samples = latents.shape[1] * self.spec.codec.hop * 2
        waveforms: Tensor = self.vocoder(self.mel(latents))
        return waveforms[:, 0, :samples].float()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The context that the network runs in; its weights are cast once, at the start."""
        with (
            weights_in(self.network, self.dtype),
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
    """The sampler of a base model with its weights, frozen.

    A `network` that is given takes the place of the base's own and is only moved to the device: its caller sees to
    dropout (`eval`) and gradients. Raises ConfigError for an unknown model, WeightsError for weights that are missing
    or do not fit.
    """
    spec, place = model_spec(model), torch.device(device)
    if network is None:
        network = load_frozen(lambda: build_network(model), model, "network", folder, place)
    vae = load_frozen(lambda: build_vae(spec.codec.name, drop_encoder=True), model, "vae", folder, place)
    vocoder = load_frozen(lambda: build_vocoder(spec.codec.name), model, "vocoder", folder, place)
    return Sampler(spec, network.to(place), vae, vocoder, place, dtype)


def mel_of(waveforms: Tensor, spec: ModelSpec) -> Tensor:
    """Mel spectrograms (B, mels, frames) of waveforms (B, samples), as the codec of `spec` computes them."""
    mel: Tensor = build_mel(spec.codec.name).to(waveforms.device)(waveforms)
    return mel


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs and CPUs that compute in it, else float32.

    25 guided steps on two cores with AVX512-BF16 and AMX took small_16k 3.8 s in bfloat16 and 12.7 s in float32, and
    tiny_16k 0.42 s and 0.56 s (`python -m benchmarks.generation`).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 and later
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32
