"""CLIP, the encoder of frames and texts: open_clip's model, with one text feature per token.

Legend: B clips, V frames of a clip, L text tokens (77), E image width, W text width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmaudio.errors import ConfigError
from mmaudio.features.attention import use_batch_first_attention
from mmaudio.features.frame_resize import resize_frames
from mmaudio.model.spec import CLIP_ENCODERS, TEXT_TOKENS, ClipSpec, lookup
from mmaudio.model.state_dict import ReleasedModule, load_strict

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean and standard deviation of CLIP's frames, RGB."""
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_TOWER = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")
"""Attributes of an open_clip model that only texts need."""


class ClipEncoder(ReleasedModule):
    """An open_clip model as the encoder of frames and texts.

    `model` is the open_clip model, for contrastive training; `load_released` takes its state dict.
    """

    def __init__(self, spec: ClipSpec) -> None:
        import open_clip  # imported here because it is slow to import
        import torchvision.transforms.v2.functional  # noqa: F401, before the threads that resize need it

        super().__init__()
        self.spec = spec
        self.model = open_clip.CLIP(**architecture_config(spec))
        use_batch_first_attention(self.model)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=TEXT_TOKENS)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, V, 3, size, size) -> one feature of unit length per frame (B, V, E)."""
        features = self.model.encode_image(rearrange(frames, "b v c h w -> (b v) c h w"))
        return rearrange(F.normalize(features.float(), dim=-1), "(b v) e -> b v e", b=len(frames))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, 77, W): the last hidden state of every token, unprojected, of unit length."""
        model = self.model
        if model.transformer is None:
            raise ConfigError("the text tower of this CLIP was dropped: encode all texts before drop_text")
        tokens = self.tokenize(texts).to(model.positional_embedding.device)
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return F.normalize(x.float(), dim=-1)

    def drop_text(self) -> None:
        """Drop the text tower once all texts are encoded; at full size it is a third of the model."""
        for name in TEXT_TOWER:
            setattr(self.model, name, None)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> token ids (B, 77), int64, zero-padded; longer texts are truncated."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens

    def preprocess(self, frames: Tensor) -> Tensor:
        """RGB uint8 (frames, 3, H, W) -> float32 (frames, 3, size, size): `resize`, then `normalize_frames`."""
        return normalize_frames(self.resize(frames))

    def resize(self, frames: Tensor) -> Tensor:
        """RGB uint8 (frames, 3, H, W) -> uint8 (frames, 3, size, size), squashed; DataError as `resize_frames`."""
        return resize_frames(frames, (self.spec.image_size, self.spec.image_size))

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load an open_clip state dict; raises WeightsError that names the first keys that do not fit."""
        load_strict(self.model, state, f"CLIP {self.spec.name}")
        if self.model.attn_mask.is_meta:  # computed, not in the file
            self.model.attn_mask = torch.full((TEXT_TOKENS, TEXT_TOKENS), -torch.inf).triu(1)


def normalize_frames(frames: Tensor) -> Tensor:
    """Frames as uint8 or in [0, 1], (..., 3, H, W) -> normalised with CLIP's mean and standard deviation."""
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    mean = frames.new_tensor(MEAN)[:, None, None]
    std = frames.new_tensor(STD)[:, None, None]
    return (frames - mean) / std


def architecture_config(spec: ClipSpec) -> dict[str, Any]:
    """Arguments of `open_clip.CLIP`: from the JSON file beside the bundled weights, or open_clip's."""
    import open_clip

    file = resources.files("mmaudio") / "assets" / spec.name / f"{spec.architecture}.json"
    config: dict[str, Any] = (
        json.loads(file.read_text()) if file.is_file() else open_clip.get_model_config(spec.architecture)
    )
    config["vision_cfg"]["image_size"] = spec.image_size
    return config


def build_clip(name: str) -> ClipEncoder:
    """Build the CLIP encoder `name` with fresh weights; ConfigError names the nearest known one."""
    return ClipEncoder(lookup(CLIP_ENCODERS, name, "clip"))
