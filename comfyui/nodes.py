"""The node: a model, an adapter's file from models/loras and a strength to a model whose weights are changed.

    MMAudio ModelLoader -> MMAudio LoRA -> MMAudio LoRA -> MMAudio Sampler

Each adapter's change is computed from the loaded weights, so the order of the nodes does not matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from torch import nn

from .adapter_file import read_adapter
from .network_patch import describe_stack, patch_network

MAX_STRENGTH = 1.5


class MMAudioLoRA:
    """A model with one more adapter in its weights; the model that comes in is left as it was."""

    DESCRIPTION = "Adds an adapter from models/loras to an MMAudio model. Chain nodes for several adapters."
    RETURN_TYPES = ("MMAUDIO_MODEL", "STRING")
    RETURN_NAMES = ("mmaudio_model", "note")
    FUNCTION = "apply"
    CATEGORY = "MMAudio"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """The node's inputs, as ComfyUI asks for them."""
        names = [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]
        strength = {"default": 1.0, "min": 0.0, "max": MAX_STRENGTH, "step": 0.05, "tooltip": "1 is as trained"}
        return {
            "required": {
                "mmaudio_model": ("MMAUDIO_MODEL",),
                "lora": (names, {"tooltip": "A .safetensors file in ComfyUI/models/loras, or a PEFT folder's in it"}),
                "strength": (
                    "FLOAT",
                    strength | {"tooltip": "0 is the model as it comes in, 1 the adapter as trained"},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, lora: str, **_: Any) -> str:
        """A value that changes with the file, so that an adapter trained anew is read again."""
        status = Path(folder_paths.get_full_path_or_raise("loras", lora)).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    def apply(self, mmaudio_model: nn.Module, lora: str, strength: float) -> tuple[nn.Module, str]:
        """The changed model, and what is in it as text; at strength 0 the model itself."""
        if strength:
            adapter = read_adapter(Path(folder_paths.get_full_path_or_raise("loras", lora)), lora)
            mmaudio_model = patch_network(mmaudio_model, adapter, strength)
        return mmaudio_model, describe_stack(mmaudio_model)
