"""ComfyUI custom node "MMAudio LoRA": adapters of MMAudio-LoRA and of PEFT on the models of ComfyUI-MMAudio.

Copy or link this folder into ComfyUI/custom_nodes; it imports nothing but what ComfyUI has.
"""

from .nodes import MMAudioLoRA

NODE_CLASS_MAPPINGS = {"MMAudioLoRA": MMAudioLoRA}
NODE_DISPLAY_NAME_MAPPINGS = {"MMAudioLoRA": "MMAudio LoRA"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
