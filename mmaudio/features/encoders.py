"""The frozen encoders of one model together: picture, words and sound to what the network reads.

Legend: B clips, V CLIP frames, T frames at 25 fps, S sync tokens, L text tokens, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.data.feature_store import encoder_names
from mmaudio.errors import ConfigError
from mmaudio.features.auto_batch import Batches
from mmaudio.features.clip import ClipEncoder, build_clip
from mmaudio.features.clip import normalise as clip_colours
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.features.synchformer import Synchformer, build_synchformer, segments
from mmaudio.features.synchformer import normalise as sync_colours
from mmaudio.features.vae import VAE, Posterior, build_vae
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.video import probe
from mmaudio.model.spec import CLIP_FPS, SYNC_FPS, ModelSpec, lengths, model_spec
from mmaudio.model.state_dict import Released
from mmaudio.weights import store as weights
from mmaudio.weights.load_frozen import load_frozen

PARTS = {"codec": "vae", "clip": "clip", "sync": "synchformer"}
"""The weights file of each encoder."""
SEEING = ("clip", "sync")
"""The encoders that generating takes: there the sound is not known yet."""

M = TypeVar("M", bound=Released)


@dataclass(frozen=True)
class Encoders:
    """Mel and VAE, CLIP, Synchformer, or some of them; the transformers compute in `dtype`, all else in float32.

    Rows go through them in batches that the free memory sizes.

    Asking for what an encoder that was not loaded gives raises ConfigError.
    """

    spec: ModelSpec
    device: torch.device
    mel: MelSpectrogram
    vae: VAE | None = None
    """Its encoder alone."""
    clip: ClipEncoder | None = None
    sync: Synchformer | None = None
    known: dict[str, Tensor] = field(default_factory=dict)
    """Texts that are encoded already (L, text width)."""
    dtype: torch.dtype = torch.float32
    batches: defaultdict[str, Batches] = field(init=False)
    """By encoder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", defaultdict(lambda: Batches(self.device)))

    def grids(self, seconds: float) -> tuple[Grid, Grid]:
        """What a window of `seconds` takes from the picture for CLIP and for Synchformer."""
        size = lengths(self.spec.codec, seconds)
        return (
            Grid(CLIP_FPS, size.clip, _loaded(self.clip, "clip").resize),
            Grid(SYNC_FPS, size.sync_frames, _loaded(self.sync, "sync").resize),
        )

    @torch.inference_mode()
    def frames(self, frames: Tensor) -> Tensor:
        """CLIP's resized frames, uint8 (V, 3, H, W) -> (V, image width), float32 on the CPU."""
        clip = _loaded(self.clip, "clip")

        def encode(part: Tensor) -> Tensor:
            with self._autocast():
                return clip.encode_frames(clip_colours(part.to(self.device))[None])[0].float()

        return self.batches["clip"].run(encode, frames)

    def motion(self, frames: Tensor) -> Tensor:
        """Synchformer's resized frames, uint8 (T, 3, H, W) -> (S, sync width), float32 on the CPU."""
        return self.motions([frames])[0]

    @torch.inference_mode()
    def motions(self, clips: Sequence[Tensor]) -> Tensor:
        """The same for the frames of several clips of one length -> (B, S, sync width)."""
        sync = _loaded(self.sync, "sync")

        def encode(part: Tensor) -> Tensor:
            with self._autocast():
                tokens: Tensor = sync(sync_colours(part.to(self.device))[None])
            return tokens[0].float()

        cut = [segments(frames) for frames in clips]
        tokens = self.batches["sync"].run(encode, torch.cat(cut))
        return rearrange(tokens, "(b s) t d -> b (s t) d", b=len(clips))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (B, L, text width), float32 on the CPU."""
        if texts and all(text in self.known for text in texts):
            return torch.stack([self.known[text] for text in texts])
        with self._autocast():
            tokens = _loaded(self.clip, "clip").encode_text(texts)
        return tokens.float().cpu()

    def only_texts(self, texts: Iterable[str]) -> None:
        """Encode `texts` now and let the text tower go: there will be no others."""
        self.known.update({text: self.texts([text])[0] for text in texts})
        _loaded(self.clip, "clip").drop_text()

    @torch.inference_mode()
    def sound(self, waveforms: Tensor) -> Posterior:
        """Samples (B, samples) -> mean and std of the latents (B, N, C), float32 on the CPU, not normalised."""
        vae = _loaded(self.vae, "codec")

        def encode(part: Tensor) -> Tensor:
            posterior = vae.encode(self.mel(part.to(self.device)))
            return torch.stack([posterior.mean, posterior.std], dim=1).transpose(2, 3).contiguous()

        mean, std = self.batches["codec"].run(encode, waveforms).unbind(1)
        return Posterior(mean, std)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def load_encoders(
    model: str,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    parts: Collection[str] = tuple(PARTS),
    dtype: torch.dtype | None = None,
) -> Encoders:
    """The encoders `parts` of `model` with their weights (from `folder` first); WeightsError for a missing file.

    `dtype`: what the transformers compute in, float32 or bfloat16; None takes bfloat16 on a GPU, else float32.
    """
    spec = model_spec(model)

    def load(part: str, build: Callable[[], M]) -> M | None:
        return load_frozen(build, model, PARTS[part], folder, device) if part in parts else None

    return Encoders(
        spec,
        torch.device(device),
        build_mel(spec.codec.name).to(device),
        load("codec", lambda: build_vae(spec.codec.name, drop_decoder=True)),
        load("clip", lambda: build_clip(spec.clip.name)),
        load("sync", lambda: build_synchformer(spec.sync.name)),
        dtype=dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32),
    )


def _loaded(encoder: M | None, part: str) -> M:
    if encoder is None:
        raise ConfigError(f"these encoders were loaded without {part!r}; name it in load_encoders(parts=...)")
    return encoder


def encoder_identities(model: str, folder: Path | None = None) -> dict[str, str]:
    """`name:SHA-256 of its weights` of every encoder of `model`; nothing is loaded."""
    names = encoder_names(model_spec(model))
    return {part: f"{names[part]}:{weights.identity(model, file, folder)}" for part, file in PARTS.items()}


def encode_video(path: Path | str, encoders: Encoders, seconds: float, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """CLIP and sync features, (1, V, image width) and (1, S, sync width), of `seconds` of a video from `start` on.

    Raises DataError where it is no video or ends before.
    """
    window = next(iter(read_windows(probe(path), [start], encoders.grids(seconds))))
    stills, motion = (torch.stack(frames) for frames in window.frames)
    return encoders.frames(stills)[None], encoders.motion(motion)[None]
