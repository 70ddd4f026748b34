"""CLIP: what is seen, and what is asked for in words. The model is open_clip's; the network reads its text per token.

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
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mmaudio.errors import ConfigError, DataError
from mmaudio.features.attention import keep_tokens_in_place
from mmaudio.model.spec import CLIPS, TEXT_TOKENS, ClipSpec, lookup
from mmaudio.model.state_dict import Released, load_reconciled

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean colour that CLIP's frames are normalised with."""
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_TOWER = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")
"""What of an open_clip model reads texts alone."""


class ClipEncoder(Released):
    """An open_clip model as the encoder of frames and captions; `model` is what contrastive training trains.

    The state dict is the open_clip model's own.
    """

    def __init__(self, spec: ClipSpec) -> None:
        import open_clip  # here, for it takes longer to import than everything else together

        super().__init__()
        self.spec = spec
        self.model = open_clip.CLIP(**architecture(spec))
        keep_tokens_in_place(self.model)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=TEXT_TOKENS)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, V, 3, size, size) -> one row of unit length per frame (B, V, E)."""
        rows = self.model.encode_image(rearrange(frames, "b v c h w -> (b v) c h w"))
        return rearrange(F.normalize(rows.float(), dim=-1), "(b v) e -> b v e", b=len(frames))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, 77, W): the last hidden state of every token, unprojected, each row of unit length."""
        model = self.model
        if model.transformer is None:
            raise ConfigError("this CLIP has no text tower any more: encode all texts before drop_text")
        tokens = self.tokenize(texts).to(model.positional_embedding.device)
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return F.normalize(x.float(), dim=-1)

    def drop_text(self) -> None:
        """Forget the text tower, once all texts are encoded; at full size it is a third of the model."""
        for name in TEXT_TOWER:
            setattr(self.model, name, None)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> token numbers (B, 77), int64, zero-padded; longer texts are cut."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens

    def preprocess(self, frames: Tensor) -> Tensor:
        """RGB uint8 (frames, 3, H, W) -> float32 (frames, 3, size, size): `resize`, then `normalise`."""
        return normalise(self.resize(frames))

    def resize(self, frames: Tensor) -> Tensor:
        """RGB uint8 (frames, 3, H, W) -> uint8 (frames, 3, size, size), squashed to a square.

        Raises DataError for frames that are not uint8: resizing them would round differently.
        """
        if frames.dtype != torch.uint8:
            raise DataError(f"frames are {frames.dtype}: they are resized as torch.uint8")
        size = [self.spec.size, self.spec.size]
        resized: Tensor = vision.resize(frames, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return resized

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load an open_clip state dict; raises WeightsError that names the first keys that do not fit."""
        load_reconciled(self.model, state, f"CLIP {self.spec.name}")
        if self.model.attn_mask.is_meta:  # computed, so in no file
            self.model.attn_mask = torch.full((TEXT_TOKENS, TEXT_TOKENS), -torch.inf).triu(1)


def normalise(frames: Tensor) -> Tensor:
    """Colours as uint8 or in [0, 1], (..., 3, H, W) -> CLIP's normalised ones."""
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    mean = frames.new_tensor(MEAN)[:, None, None]
    std = frames.new_tensor(STD)[:, None, None]
    return (frames - mean) / std


def architecture(spec: ClipSpec) -> dict[str, Any]:
    """Arguments of `open_clip.CLIP`: from the JSON file beside the embedded weights, or open_clip's own."""
    import open_clip

    file = resources.files("mmaudio") / "assets" / spec.name / f"{spec.architecture}.json"
    config: dict[str, Any] = (
        json.loads(file.read_text()) if file.is_file() else open_clip.get_model_config(spec.architecture)
    )
    config["vision_cfg"]["image_size"] = spec.size
    return config


def build_clip(name: str) -> ClipEncoder:
    """The CLIP encoder called `name` in CLIPS, with fresh weights; raises ConfigError naming the nearest one."""
    return ClipEncoder(lookup(CLIPS, name, "clip"))
