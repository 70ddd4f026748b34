"""Export of a trained base: weights as files of the package, and clips of its domain beside them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from mmaudio.pretraining.shards import plan_clip, write_clip
from mmaudio.synthetic.renderer import RenderedScene
from mmaudio.utils.files import atomic_write

GENERAL_CLIPS = 12
"""Clips of the base's domain that ship with it."""
MIN_EVENTS = 3
"""Events of a clip that ships; every fourth may have fewer."""


def export_weights(modules: dict[str, nn.Module], folder: Path) -> int:
    """Write each module's float16 weights to `folder`; returns their bytes together."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        state = {key: value.detach().half().contiguous().cpu() for key, value in module.state_dict().items()}
        with atomic_write(folder / f"{name}.safetensors") as temporary:
            save_file(state, temporary)
    return sum((folder / f"{name}.safetensors").stat().st_size for name in modules)


def write_general_clips(folder: Path, seed: int, first: int) -> None:
    """Write the clips that ship, with captions: held-out ones from number `first` on, most of them with events."""
    folder.mkdir(parents=True, exist_ok=True)
    index, count = first, 0
    while count < GENERAL_CLIPS:
        if len(plan_clip(seed, index).scene.events) >= MIN_EVENTS or count % 4 == 0:
            path = folder / f"general_{count:02d}.mp4"
            write_caption(path, write_clip(path, seed, index, crf=24))
            count += 1
        index += 1


def write_held_out_clips(folder: Path, seed: int, first: int, count: int) -> list[Path]:
    """Write `count` clips from number `first` on, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.mp4" for index in range(first, first + count)]
    for index, path in enumerate(paths, first):
        write_caption(path, write_clip(path, seed, index))
    return paths


def write_caption(video: Path, rendered: RenderedScene) -> None:
    """Write the caption beside a video file."""
    with atomic_write(video.with_suffix(".txt")) as temporary:
        temporary.write_text(rendered.caption + "\n", encoding="utf-8")
