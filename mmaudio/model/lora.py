"""`mmaudio.lora` under the name that the guide writes: `from mmaudio.model.lora import LoRAConfig`."""

from mmaudio.lora.adapter import adapted_network, adapter_state, add_lora, load_adapter_state, merge, set_strength
from mmaudio.lora.config import LoRAConfig

__all__ = ["LoRAConfig", "adapted_network", "adapter_state", "add_lora", "load_adapter_state", "merge", "set_strength"]
