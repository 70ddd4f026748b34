"""MMAudio with a LoRA adapter as one Python object.

from mmaudio.api import load_pretrained_with_lora

lora_model = load_pretrained_with_lora("small_16k", lora_checkpoint="output/my_exp/lora_checkpoints/best_lora.pt")
lora_model.print_parameter_info()
audio = lora_model.generate_from_video("test.mp4", prompt="rain on a tin roof")  # (samples,)
merged_model = lora_model.merge_and_save("merged_model.pt")
audio = merged_model.generate("test.mp4", "rain on a tin roof")
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mmaudio.cli import is_offline, pick_device
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.features.encoders import PARTS, SEEING, Encoders, load_encoders
from mmaudio.generation.generate import Wish, generate
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.lora.adapter import LoRAConfig, add_lora, fresh_targets, parameter_counts, set_strength
from mmaudio.lora.checkpoint import attach, check_base, check_fit, read_adapter, replacing, size_on_disk
from mmaudio.lora.merge import merged_copy
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import model_spec
from mmaudio.weights.store import fetch, load_part

SUFFIXES = (".pt", ".pth", ".safetensors")
"""What a merged model's file may be called."""


class Turn:
    """A lock whose copy is another lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class Surroundings:
    """The frozen encoders and the decoder of one base model, loaded when they are first needed and then kept."""

    def __init__(self, model: str, weights: Path | None, device: torch.device, offline: bool = False) -> None:
        self.model, self.weights, self.device, self.offline = model, weights, device, offline
        self._sampler: Sampler | None = None
        self.turn = Turn()
        """Taken while a sound is made: the network is set to its duration."""

    @cached_property
    def encoders(self) -> Encoders:
        """From videos and prompts to conditions."""
        fetch(self.model, [PARTS[part] for part in SEEING], self.weights, self.offline)
        return load_encoders(self.model, self.weights, self.device, SEEING)

    def sampler(self, network: MMAudio) -> Sampler:
        """From conditions to sound, through `network`."""
        if self._sampler is None:
            fetch(self.model, ("vae", "vocoder"), self.weights, self.offline)
            self._sampler = load_sampler(self.model, self.weights, self.device, network, fast_dtype(self.device))
        return dataclasses.replace(self._sampler, network=network)


class Generator(nn.Module):
    """A network, adapted or not, with what turns videos and prompts into its conditions and its latents into sound.

    Encoders and decoder are loaded at the first generation and kept; they are no part of `named_modules`.
    """

    def __init__(self, network: MMAudio, surroundings: Surroundings) -> None:
        super().__init__()
        self.network = network
        self.surroundings = surroundings

    @property
    def model_name(self) -> str:
        """The base model's name."""
        return self.surroundings.model

    @property
    def rate(self) -> int:
        """Samples per second of what is generated."""
        return model_spec(self.model_name).codec.rate

    def generate(self, video: str | Path | None, prompt: str = "", **wish: Any) -> Tensor:
        """Sound for a video, or for the prompt alone: (samples,) within [-1, 1], `rate` samples per second, on the CPU.

        Further arguments are those of `mmaudio.generation.generate.Wish`: negative_prompt, seconds, seed and so on.
        Threads may share the object: their sounds are made one after the other.
        Raises DataError for a video that cannot be used, WeightsError where encoders or decoder are missing.
        """
        known = [field.name for field in dataclasses.fields(Wish)]
        unknown = [name for name in wish if name not in known]
        if unknown:
            raise ConfigError(f"generate: there is no argument {unknown[0]!r}; there are: {', '.join(known)}")
        asked = Wish(None if video is None else Path(video), prompt, **wish)
        with self.surroundings.turn.lock:
            self.eval()
            return generate(self.surroundings.sampler(self.network), self.surroundings.encoders, asked)


@dataclasses.dataclass(frozen=True)
class Files:
    """What a model was loaded from."""

    base: Path | None
    dtypes: Mapping[str, torch.dtype]
    """The type of every value in the base's file, by released key."""
    adapter: Path | None
    """None: a fresh adapter."""
    kind: str = "LoRA"
    """What the adapter is called: rsLoRA, full fine-tuning and so on."""


class LoRAMMAudio(Generator):
    """A base network with its adapter."""

    def __init__(self, adapted: nn.Module, network: MMAudio, surroundings: Surroundings, files: Files) -> None:
        super().__init__(network, surroundings)
        self._adapted = [adapted]  # in a list: its modules are the network's own, not to be named twice
        self.files = files

    @property
    def peft_model(self) -> nn.Module:
        """The network as peft sees it; the network itself where all its weights were trained."""
        return self._adapted[0]

    def parameter_info(self) -> str:
        """Parameters in all, trainable ones (in all, per cent, by block), and the adapter's size on disk."""
        counts = parameter_counts(self.network)
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        disk, file = sum(weight.nbytes for weight in trained), "when it is saved"
        if self.files.adapter is not None:
            disk, file = size_on_disk(self.files.adapter), f"in {self.files.adapter}"
        return "\n".join(
            [
                f"{f'{self.model_name} with {self.files.kind}:':<22}{counts.total:>13,} parameters",
                f"  base, frozen:     {counts.total - counts.trainable:>13,}",
                f"  trainable:        {counts.trainable:>13,}  ({100 * counts.trainable / counts.total:.2f} % of all)",
                *(f"    {name:<16}{count:>13,}" for name, count in counts.blocks.items()),
                f"  adapter on disk:  {disk / 1e6:.1f} MB {file}",
            ]
        )

    def print_parameter_info(self) -> None:
        """Print `parameter_info`."""
        print(self.parameter_info())

    def generate_from_video(self, video_path: str | Path, prompt: str = "", **wish: Any) -> Tensor:
        """Sound for a video; see `generate`."""
        return self.generate(video_path, prompt, **wish)

    def set_strength(self, strength: float) -> None:
        """How much of the adapter counts, 0 to 1.5: 0 is the base model, 1 as trained. ConfigError outside."""
        set_strength(self.peft_model, strength)

    def merge_and_save(self, path: str | Path) -> Generator:
        """Write the network with the adapter merged in, at the strength that is set, and return it; this object stays.

        The file (.pt, .pth or .safetensors) is a plain state dict with exactly the released keys and types: what loads
        the released file loads it. Prints how far the merged network's velocity is from this one's, and raises
        WeightsError, with nothing written, where that is more than rounding.
        """
        target = Path(path)
        if target.suffix not in SUFFIXES:
            raise ConfigError(f"{target}: a merged model is called NAME{', NAME'.join(SUFFIXES)}")
        if target.exists() and self.files.base is not None and target.samefile(self.files.base):
            raise ConfigError(f"{target}: that is the base model's own file, which adapters need; choose another name")
        merged = merged_copy(self.peft_model, self.files.dtypes)
        save_state(merged.state, target)
        kind = str(merged.dtype).removeprefix("torch.")
        print(
            f"{target}: {target.stat().st_size / 1e6:.1f} MB, {kind}; largest difference from the adapter at a random "
            f"input: {merged.difference:.1e} of the largest value"
        )
        return Generator(merged.network, self.surroundings)


def save_state(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict, by torch or by safetensors as the suffix says; the file is whole or not there.

    Raises MMAudioError where it cannot be written.
    """
    try:
        with replacing(path) as part:
            if path.suffix == ".safetensors":
                save_file({key: value.contiguous() for key, value in state.items()}, part, {"format": "pt"})
            else:
                torch.save(state, part)
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error}); is the disk full?") from error


def load_pretrained_with_lora(
    model_name: str | None = None,
    lora_checkpoint: str | Path | None = None,
    lora_config: LoRAConfig | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
) -> LoRAMMAudio:
    """The base model `model_name` with the adapter in `lora_checkpoint` (.pt, PEFT folder or .safetensors).

    Without a checkpoint the adapter is a fresh one of `lora_config` (default: the guide's), which changes nothing until
    it is trained. `model_name` may be left out where the checkpoint names its base, or its shapes fit one model alone;
    `weights` is the folder of released files; absent ones are fetched, unless `offline` (or HF_HUB_OFFLINE) forbids it.
    Raises WeightsError where a file is missing or made for another model, ConfigError for wrong names.
    """
    place, folder = pick_device(device), None if weights is None else Path(weights)
    source = None if lora_checkpoint is None else Path(lora_checkpoint)
    file = None if source is None else read_adapter(source)
    if file is not None and lora_config is not None:
        raise ConfigError("load_pretrained_with_lora: lora_checkpoint brings its own lora_config; give one of them")
    name = model_name or (file.base_model if file is not None else "")
    if not name:
        fits = f"; its shapes fit {' and '.join(file.likely)}" if file is not None and file.likely else ""
        raise ConfigError(f"load_pretrained_with_lora: no model_name, and no checkpoint that says which{fits}")
    with torch.device("meta"):
        network = build_network(name)
    config = lora_config or LoRAConfig()
    if file is not None:  # what does not fit is refused before gigabytes are read
        check_base(file, name)
        check_fit(file, network, name)
    else:
        fresh_targets(network, config)
    alone = is_offline(offline)
    fetch(name, ("network",), folder, alone)
    base = load_part(name, "network", folder)
    dtypes = {key: value.dtype for key, value in base.state.items()}
    network.load_released(base.state)
    if file is None:
        adapted = add_lora(network, config, torch.Generator().manual_seed(0))
    else:
        adapted = attach(network, file, name, base.identity)
    network.to(place).eval()
    files = Files(base.path, dtypes, source, (config if file is None else file.lora).kind)
    return LoRAMMAudio(adapted, network, Surroundings(name, folder, place, alone), files)
