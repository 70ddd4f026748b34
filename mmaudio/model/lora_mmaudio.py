"""MMAudio with a LoRA adapter as one Python object.

from mmaudio.model.lora_mmaudio import load_pretrained_with_lora

lora_model = load_pretrained_with_lora("small_16k", lora_checkpoint="output/my_exp/lora_checkpoints/best_lora.pt")
lora_model.print_parameter_info()
audio = lora_model.generate_from_video("test.mp4", prompt="rain on a tin roof")  # (samples,)
merged = lora_model.merge_and_save("merged_model.pt")
audio = merged.generate("test.mp4", "rain on a tin roof")
"""

from __future__ import annotations

import copy
import dataclasses
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from mmaudio.adapters import attach, read_adapter, write_whole
from mmaudio.cli import pick_device
from mmaudio.errors import ConfigError
from mmaudio.features.encoders import Encoders, load_encoders
from mmaudio.generation.generate import Wish, generate
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.model.lora import LoRAConfig, add_lora, merge, parameter_counts, set_strength
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import model_spec
from mmaudio.weights import load_part


class Generator(nn.Module):
    """A network, adapted or not, with what turns videos and prompts into its conditions and its latents into sound.

    Encoders and decoder are loaded at the first generation and kept; they are no part of `named_modules`.
    """

    def __init__(self, network: MMAudio, model_name: str, weights: Path | None, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.model_name = model_name
        self.weights, self.device = weights, device

    @property
    def rate(self) -> int:
        """Samples per second of what is generated."""
        return model_spec(self.model_name).codec.rate

    @cached_property
    def _sampler(self) -> Sampler:
        return load_sampler(self.model_name, self.weights, self.device, self.network, fast_dtype(self.device))

    @cached_property
    def _encoders(self) -> Encoders:
        return load_encoders(self.model_name, self.weights, self.device)

    def generate(self, video: str | Path | None, prompt: str = "", **wish: Any) -> Tensor:
        """Sound for a video, or for the prompt alone: (samples,) within [-1, 1], `rate` samples per second, on the CPU.

        Further arguments are those of `mmaudio.generation.generate.Wish`: negative_prompt, start, seconds, seed, steps,
        guidance. Raises DataError for a video that cannot be used, WeightsError where encoders or decoder are missing.
        """
        known = [field.name for field in dataclasses.fields(Wish)]
        unknown = [name for name in wish if name not in known]
        if unknown:
            raise ConfigError(f"generate: there is no argument {unknown[0]!r}; there are: {', '.join(known)}")
        self.eval()
        asked = Wish(None if video is None else Path(video), prompt, **wish)
        return generate(self._sampler, self._encoders, asked)


class LoRAMMAudio(Generator):
    """A base network with its adapter."""

    def __init__(
        self, adapted: PeftModel, network: MMAudio, name: str, weights: Path | None, device: torch.device
    ) -> None:
        super().__init__(network, name, weights, device)
        self._adapted = [adapted]  # in a list: its modules are the network's own, not to be named twice

    @property
    def peft_model(self) -> PeftModel:
        """The network as peft sees it."""
        return self._adapted[0]

    def parameter_info(self) -> str:
        """Total and trainable parameters, and the trainable ones by block."""
        counts = parameter_counts(self.network)
        share = 100 * counts.trainable / counts.total
        blocks = [f"  {name:<16} {count:>12,}" for name, count in counts.blocks.items()]
        total = f"{self.model_name}: {counts.total:,} parameters, {counts.trainable:,} trainable ({share:.2f} %)"
        return "\n".join([total, *blocks])

    def print_parameter_info(self) -> None:
        """Print `parameter_info`."""
        print(self.parameter_info())

    def generate_from_video(self, video_path: str | Path, prompt: str = "", **wish: Any) -> Tensor:
        """Sound for a video; see `generate`."""
        return self.generate(video_path, prompt, **wish)

    def set_strength(self, strength: float) -> None:
        """How much of the adapter counts: 0 is the base model, 1 as trained."""
        set_strength(self.peft_model, strength)

    def merge_and_save(self, path: str | Path) -> Generator:
        """Write the merged network to `path` (.pt or .pth) and return it; this object stays as it is.

        The file is a plain state dict with exactly the released keys, float32: what loads the released file loads it.
        """
        target = Path(path)
        if target.suffix not in (".pt", ".pth"):
            raise ConfigError(f"{target}: a merged model is called NAME.pt or NAME.pth")
        merged = merge(copy.deepcopy(self.peft_model)).eval().requires_grad_(False)
        buffer = io.BytesIO()
        torch.save({key: value.cpu() for key, value in merged.state_dict().items()}, buffer)
        write_whole(target, buffer.getvalue())
        return Generator(merged, self.model_name, self.weights, self.device)


def load_pretrained_with_lora(
    model_name: str | None = None,
    lora_checkpoint: str | Path | None = None,
    lora_config: LoRAConfig | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
) -> LoRAMMAudio:
    """The base model `model_name` with the adapter in `lora_checkpoint` (.pt, PEFT folder or .safetensors).

    Without a checkpoint the adapter is a fresh one of `lora_config` (default: the guide's), which changes nothing until
    it is trained. `model_name` may be left out where the checkpoint names its base; `weights` is the folder of released
    files. Raises WeightsError where a file is missing or made for another model, ConfigError for wrong names.
    """
    place, folder = pick_device(device), None if weights is None else Path(weights)
    file = None if lora_checkpoint is None else read_adapter(Path(lora_checkpoint))
    name = model_name or (file.base_model if file is not None else "")
    if not name:
        raise ConfigError("load_pretrained_with_lora: no model_name, and no checkpoint that says which")
    if file is not None and lora_config is not None:
        raise ConfigError("load_pretrained_with_lora: lora_checkpoint brings its own lora_config; give one of them")
    with torch.device("meta"):
        network = build_network(name)
    base = load_part(name, "network", folder)
    network.load_released(base.state)
    if file is None:
        adapted = add_lora(network, lora_config or LoRAConfig(), torch.Generator().manual_seed(0))
    else:
        adapted = attach(network, file, name, base.identity)
    network.to(place).eval()
    return LoRAMMAudio(adapted, network, name, folder, place)
