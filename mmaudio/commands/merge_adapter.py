"""Merge one adapter, or the sum of several, into the base model: one checkpoint with the released keys.

    mmaudio-lora merge output/EXP/lora_checkpoints/best_lora.pt
    mmaudio-lora merge dogs.pt --strength 0.7 rain.pt --strength 0.5
    mmaudio-lora merge best_lora.pt --strength 0.7 --dtype fp16 --output models/mmaudio/dogs_small_44k.safetensors

Writes EXP_MODEL.safetensors into the current folder where no --output is given, and says whether ComfyUI takes it.
Merged and adapted model are compared first; nothing is written where they differ by more than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.lora.stack import adapter_name, pair_strengths
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.utils.terminal import print_lines

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COMFYUI_MODELS = ("small_44k", "large_44k", "large_44k_v2")
"""What ComfyUI-MMAudio loads: it takes every network for one of 44.1 kHz, and medium_44k for a large one."""


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Merge one adapter, or the sum of several, into the base model.")
    parser.add_argument(
        "adapter", type=Path, nargs="+", help="best_lora.pt, a PEFT folder, a .safetensors file or USER/NAME"
    )
    parser.add_argument("--output", type=Path, help="a .safetensors, .pt or .pth; EXP_MODEL.safetensors if not given")
    parser.add_strength_flag()
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; the base file's own if not given")
    parser.add_argument("--model", choices=list(MODELS), help="the base model, for an adapter that names none")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_weights_flags()
    return parser


def default_output(adapters: Sequence[Path], model: str) -> Path:
    """The name of the merged file in the current folder: of the adapters' experiments, else of their files."""
    names = [adapter_name(adapter).removesuffix(model).rstrip("_") for adapter in adapters]
    return Path(f"{'_'.join([*names, model])}.safetensors".lstrip("_"))


def describe_comfyui(model: str, path: Path) -> str:
    """Whether and how ComfyUI takes a merged `model` at `path`, or which model it would take."""
    if model not in COMFYUI_MODELS:
        is_44k = model_spec(model).codec.sample_rate == 44_100
        reason = f"take {model} for a large model" if is_44k else "load 44.1 kHz models only"
        return f"ComfyUI cannot use it: the nodes of ComfyUI-MMAudio {reason}. Train with {' or '.join(COMFYUI_MODELS)}"
    if path.suffix != ".safetensors" and path.suffix != ".pt":
        return "ComfyUI: its nodes list .safetensors and .pt files; choose such an --output"
    name = path.name if "44" in path.name else f"{path.stem}_{model}{path.suffix}"
    renamed = "" if name == path.name else f" as {name} (the nodes tell the sample rate by a 44 in the name)"
    return f"ComfyUI: put it into ComfyUI/models/mmaudio{renamed} and choose it in the node MMAudio ModelLoader"


def main(arguments: list[str]) -> int:
    """Merge as the command line `arguments` request."""
    args = build_parser().parse_intermixed_args(arguments)
    pairs = pair_strengths(args.adapter, args.strength, "")
    model = load_pretrained_with_lora(args.model, pairs, weights=args.weights, device="cpu", offline=args.offline)
    output = args.output or default_output(args.adapter, model.model_name)
    if output.exists() and not args.overwrite:
        raise ConfigError(f"{output}: is there already; --overwrite replaces it, or choose another --output")
    model.merge_and_save(output, None if args.dtype is None else DTYPES[args.dtype])
    print_lines(describe_comfyui(model.model_name, output))
    return 0


if __name__ == "__main__":
    cli.run(main)
