"""The adapter as one .safetensors file to pass on: everything about it is in its header, names of videos are not.

write_single_file(path, adapter)         # True where it was not there yet, or another
adapter = read_adapter(path)             # as every other adapter; the ComfyUI node reads it, too
"""

from __future__ import annotations

from pathlib import Path

from mmaudio.lora.checkpoint import AdapterFile, pack_weights, peft_config, shared_metadata, write_synced
from mmaudio.model.spec import MODELS

LICENCE_NOTE = "The licence of the base model's weights holds for what is made from them."


def write_single_file(path: Path, adapter: AdapterFile) -> bool:
    """Write `path`, whose stem is the adapter's title; False where it is there and whole. Not for full fine-tuning."""
    model = MODELS.get(adapter.base_model)
    licence = "" if model is None else model.licence
    header = {**shared_metadata(adapter), "peft": peft_config(adapter), "licence": licence}
    card = {
        "modelspec.architecture": f"mmaudio/{adapter.base_model}/lora",
        "modelspec.license": f"{licence}. {LICENCE_NOTE}" if licence else "",
        "modelspec.title": path.stem,
        "modelspec.usage_hint": usage_hint(path.name, adapter.base_model),
    }
    content = pack_weights(adapter.state, header, card)
    if path.is_file() and path.read_bytes() == content:
        return False
    write_synced(path, content)
    return True


def usage_hint(name: str, model: str) -> str:
    """How the file is used: with this program, with ComfyUI, with peft."""
    return (
        f"LoRA adapter for {model} of MMAudio. MMAudio-LoRA: mmaudio-lora generate --video VIDEO --adapter {name}. "
        "ComfyUI: put it into models/loras and choose it in the node MMAudio LoRA (44.1 kHz models only). "
        "PEFT: the keys are PEFT's; the header's mmaudio has its settings as peft."
    )
