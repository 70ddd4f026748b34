"""Python API: MMAudio with a LoRA adapter as one object.

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
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mmaudio.cli import is_offline, pick_device
from mmaudio.errors import ConfigError, WeightsError
from mmaudio.features.encoders import CONDITION_ENCODERS, ENCODER_COMPONENTS, Encoders, load_encoders
from mmaudio.generation.generate import GenerationRequest, generate
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.lora.adapter import LoRAConfig, add_lora, parameter_counts, select_targets, set_strength
from mmaudio.lora.checkpoint import replace_synced, size_on_disk
from mmaudio.lora.merge import merge_copy
from mmaudio.lora.stack import AdapterStack, read_stack
from mmaudio.lora.strength import Strength, parse_strength
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.model.spec import model_spec
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import fetch_files, load_weights

MERGED_SUFFIXES = (".pt", ".pth", ".safetensors")
"""File name suffixes of a merged model."""


class CopyableLock:
    """A lock that deepcopy and pickle replace by a new lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[CopyableLock], tuple[()]]:
        return CopyableLock, ()


class FrozenModels:
    """The frozen encoders and decoder of one base model, loaded on first use."""

    def __init__(self, model: str, weights: Path | None, device: torch.device, offline: bool = False) -> None:
        self.model, self.weights, self.device, self.offline = model, weights, device, offline
        self._sampler: Sampler | None = None
        self.lock = CopyableLock()
        """Held during a generation, which sets the network's duration."""

    @cached_property
    def encoders(self) -> Encoders:
        """Encoders of videos and prompts."""
        fetch_files(
            self.model, [ENCODER_COMPONENTS[encoder] for encoder in CONDITION_ENCODERS], self.weights, self.offline
        )
        return load_encoders(self.model, self.weights, self.device, CONDITION_ENCODERS)

    def build_sampler(self, network: MMAudio) -> Sampler:
        """A sampler that generates audio from conditions with `network`."""
        if self._sampler is None:
            fetch_files(self.model, ("vae", "vocoder"), self.weights, self.offline)
            self._sampler = load_sampler(self.model, self.weights, self.device, network, fast_dtype(self.device))
        return dataclasses.replace(self._sampler, network=network)


FLAG_NAMES = {"steps": "num_steps", "guidance": "guidance_scale"}
"""Fields of a request by the names of the command's flags."""


class AudioGenerator(nn.Module):
    """A network, with or without an adapter, with the frozen encoders and decoder of its base model.

    Encoders and decoder are loaded at the first generation; they are not among `named_modules`.
    """

    def __init__(self, network: MMAudio, frozen_models: FrozenModels) -> None:
        super().__init__()
        self.network = network
        self.frozen_models = frozen_models

    @property
    def model_name(self) -> str:
        """Name of the base model."""
        return self.frozen_models.model

    @property
    def sample_rate(self) -> int:
        """Sample rate of the generated audio in Hz."""
        return model_spec(self.model_name).codec.sample_rate

    def generate(self, video: str | Path | None, prompt: str = "", **options: Any) -> Tensor:
        """Generate audio for a video, or for the prompt alone: (samples,) within [-1, 1] at `sample_rate`, on the CPU.

        `options` are further fields of `mmaudio.generation.generate.GenerationRequest`, such as seconds and seed, or
        the names that the command's flags have, steps and guidance.
        Calls from several threads run one after the other.
        Raises DataError for a video that cannot be used, WeightsError if encoders or decoder are missing.
        """
        options = {FLAG_NAMES.get(name, name): value for name, value in options.items()}
        known = [field.name for field in dataclasses.fields(GenerationRequest)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ConfigError(f"generate: there is no argument {unknown[0]!r}; there are: {', '.join(known)}")
        if options.get("image") is not None:
            options["image"] = Path(options["image"])
        request = GenerationRequest(None if video is None else Path(video), prompt, **options)
        with self.frozen_models.lock.lock:
            self.eval()
            return generate(self.frozen_models.build_sampler(self.network), self.frozen_models.encoders, request)


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """Files that a model was loaded from."""

    base: Path | None
    dtypes: Mapping[str, torch.dtype]
    """Dtype of every tensor in the base file, by released key."""
    adapters: tuple[Path, ...]
    """None of them: a fresh adapter."""
    kind: str = "LoRA"
    """Kind of the adapter: rsLoRA, full fine-tuning, ..."""


class LoRAMMAudio(AudioGenerator):
    """A base network with an adapter."""

    def __init__(
        self, adapted: nn.Module, network: MMAudio, frozen_models: FrozenModels, source_files: SourceFiles
    ) -> None:
        super().__init__(network, frozen_models)
        self._adapted = [adapted]  # in a list, so that its modules are not registered twice
        self.source_files = source_files

    @property
    def peft_model(self) -> nn.Module:
        """The peft model; after full fine-tuning, the network itself."""
        return self._adapted[0]

    def parameter_info(self) -> str:
        """Total and trainable parameters, also by block, and the adapter's size on disk."""
        counts = parameter_counts(self.network)
        trainable = [weight for weight in self.network.parameters() if weight.requires_grad]
        disk_bytes, location = sum(weight.nbytes for weight in trainable), "when it is saved"
        if adapters := self.source_files.adapters:
            disk_bytes, location = sum(map(size_on_disk, adapters)), f"in {', '.join(map(str, adapters))}"
        return "\n".join(
            [
                f"{f'{self.model_name} with {self.source_files.kind}:':<22}{counts.total:>13,} parameters",
                f"  base, frozen:     {counts.total - counts.trainable:>13,}",
                f"  trainable:        {counts.trainable:>13,}  ({100 * counts.trainable / counts.total:.2f} % of all)",
                *(f"    {name:<16}{count:>13,}" for name, count in counts.blocks.items()),
                f"  adapter on disk:  {disk_bytes / 1e6:.1f} MB {location}",
            ]
        )

    def print_parameter_info(self) -> None:
        """Print `parameter_info`."""
        print_lines(*self.parameter_info().split("\n"))

    def generate_from_video(self, video_path: str | Path, prompt: str = "", **options: Any) -> Tensor:
        """Generate audio for a video; see `generate`."""
        return self.generate(video_path, prompt, **options)

    def set_strength(self, strength: float | str | Strength) -> None:
        """Scale the adapter from 0, the base model, over 1, as trained, to 1.5; ConfigError outside of the range.

        By part of the network: `joint=1,fused=0.5`. Of several adapters the sum of their changes is scaled, 1 being
        each at the strength that it was loaded with.
        """
        set_strength(self.peft_model, strength)

    def merge_and_save(self, path: str | Path, dtype: torch.dtype | None = None) -> AudioGenerator:
        """Merge a copy of the network at the current strength, write and return it; this object is unchanged.

        The file (.pt, .pth or .safetensors) is a plain state dict with the released keys and dtypes, or all in `dtype`,
        so whatever loads the released file loads it. Prints the difference between the velocities of both networks;
        raises WeightsError, with nothing written, if it exceeds the rounding.
        """
        target = Path(path)
        if target.suffix not in MERGED_SUFFIXES:
            raise ConfigError(f"{target}: the name of a merged model ends in {', '.join(MERGED_SUFFIXES)}")
        if target.exists() and self.source_files.base is not None and target.samefile(self.source_files.base):
            raise ConfigError(f"{target}: this is the base model's file, which adapters need; choose another name")
        dtypes = self.source_files.dtypes
        merged = merge_copy(self.peft_model, dtypes if dtype is None else dict.fromkeys(dtypes, dtype))
        save_state_dict(merged.state_dict, target)
        dtype_name = str(merged.dtype).removeprefix("torch.")
        print_lines(
            f"{target}: {target.stat().st_size / 1e6:.1f} MB, {dtype_name}; largest difference from the adapter at a "
            f"random input: {merged.max_difference:.1e} of the largest value"
        )
        return AudioGenerator(merged.network, self.frozen_models)


def save_state_dict(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict atomically, with torch or safetensors by the suffix.

    Raises MMAudioError if it cannot be written.
    """
    try:
        with replace_synced(path) as temporary:
            if path.suffix == ".safetensors":
                save_file({key: value.contiguous() for key, value in state.items()}, temporary, {"format": "pt"})
            else:
                torch.save(state, temporary)
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error}); is the disk full?") from error


AdapterPath = str | Path
WeightedPath = AdapterPath | tuple[AdapterPath, float | str | Strength]
"""An adapter, or a pair of an adapter and its strength."""


def load_pretrained_with_lora(
    model_name: str | None = None,
    lora_checkpoint: AdapterPath | Sequence[WeightedPath] | None = None,
    lora_config: LoRAConfig | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
) -> LoRAMMAudio:
    """Load the base model `model_name` with the adapter in `lora_checkpoint` (.pt, PEFT folder or .safetensors).

    A list `[("a.pt", 0.7), ("b.pt", "joint=1,fused=0.5")]` adds up the changes of several adapters at their strengths.
    Without a checkpoint the adapter is a new one of `lora_config`, which has no effect until it is trained.
    `model_name` may be omitted if the checkpoint names its base model, or if its shapes fit only one model.
    `weights` is the folder of the released files; absent ones are fetched, unless `offline` (or HF_HUB_OFFLINE) is set.
    Raises WeightsError for a file that is missing or made for another model, ConfigError for wrong names.
    """
    torch_device, folder = pick_device(device), None if weights is None else Path(weights)
    offline = is_offline(offline)
    stack = None if lora_checkpoint is None else _read_checkpoints(lora_checkpoint, offline)
    if stack is not None and lora_config is not None:
        raise ConfigError("load_pretrained_with_lora: lora_checkpoint contains its lora_config; pass one of the two")
    name = model_name or _find_model_name(stack)
    with torch.device("meta"):
        network = build_network(name)
    config = lora_config or LoRAConfig()
    if stack is not None:  # checked before gigabytes are read
        stack.check(name, network=network)
    else:
        select_targets(network, config)
    fetch_files(name, ("network",), folder, offline)
    base = load_weights(name, "network", folder)
    dtypes = {key: value.dtype for key, value in base.state_dict.items()}
    network.load_released(base.state_dict)
    if stack is None:
        adapted, kind = add_lora(network, config, torch.Generator().manual_seed(0)), config.method_name
    else:
        adapted = stack.attach(network, name, base.sha256)
        kind = stack.kinds
    network.to(torch_device).eval()
    paths = () if stack is None else tuple(adapter.path for adapter in stack.adapters)
    files = SourceFiles(base.path, dtypes, paths, kind)
    return LoRAMMAudio(adapted, network, FrozenModels(name, folder, torch_device, offline), files)


def _find_model_name(stack: AdapterStack | None) -> str:
    if stack is not None and stack.base_model:
        return stack.base_model
    possible_models = stack.possible_models if stack is not None else ()
    hint = f"; its shapes fit {' and '.join(possible_models)}" if possible_models else ""
    raise ConfigError(f"load_pretrained_with_lora: no model_name, and no checkpoint that names it{hint}")


def _read_checkpoints(checkpoints: AdapterPath | Sequence[WeightedPath], offline: bool) -> AdapterStack:
    """Read one adapter or several; ConfigError for an empty list and for an item that is neither path nor pair."""
    items = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    pairs = [(item, 1.0) if isinstance(item, str | Path) else item for item in items]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ConfigError(f"lora_checkpoint={checkpoints!r}: an adapter, or a list of (adapter, strength)")
    return read_stack(((Path(path), parse_strength(strength)) for path, strength in pairs), offline)
