"""`mmaudio.api` under the guide's name: `from mmaudio.model.lora_mmaudio import load_pretrained_with_lora`."""

from mmaudio.api import AudioGenerator, LoRAMMAudio, load_pretrained_with_lora

__all__ = ["AudioGenerator", "LoRAMMAudio", "load_pretrained_with_lora"]
