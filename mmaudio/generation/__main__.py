"""Make a sound for a video, with or without an adapter.

    python -m mmaudio.generation --video my.mp4 --prompt "footsteps on gravel" --model small_16k \\
        --adapter output/EXP/lora_checkpoints/best_lora.pt --output sound

Writes sound/my.flac and sound/my.mp4, the video's picture (copied, not encoded again) with the new sound. An --output
that ends in .flac, .wav or .mp4 is that one file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmaudio import cli
from mmaudio.adapters import attach, read_adapter
from mmaudio.data.mux import mux_audio
from mmaudio.errors import ConfigError
from mmaudio.features.encoders import load_encoders
from mmaudio.generation.generate import Wish, generate
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.generation.sound import CODECS, write_sound
from mmaudio.model.lora import merge, set_strength
from mmaudio.weights import identity

DEFAULT_MODEL = "small_16k"


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Make a sound for a video, with or without an adapter.")
    made.prog = "python -m mmaudio.generation"
    made.add_argument("--video", type=Path, help="the video; without one the prompt alone counts")
    made.add_argument("--prompt", default="", help="what is to be heard")
    made.add_argument("--negative_prompt", default="", help="what is not to be heard")
    made.add_argument("--model", help=f"the base model; the adapter's, or {DEFAULT_MODEL}")
    made.add_argument("--adapter", type=Path, help="an adapter: best_lora.pt, or a folder that PEFT wrote")
    made.add_argument("--strength", type=float, default=1.0, help="the adapter's strength; 0 is the base model")
    made.add_argument("--guidance", type=float, help="strength of guidance; the model's own where not given")
    made.add_argument("--steps", type=int, help="solver steps; the model's own where not given")
    made.add_argument("--seed", type=int, default=0, help="what the noise is drawn from")
    made.add_argument("--start", type=float, default=0.0, help="seconds of the video at which the sound begins")
    made.add_argument("--seconds", type=float, help="duration; to the video's end, at most 8, where not given")
    made.add_argument("--output", type=Path, default=Path("sound"), help="a folder, or a .flac, .wav or .mp4 file")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--weights", type=Path, help="the folder of the released weights")
    return made


def main(arguments: list[str]) -> int:
    """Generate as `arguments` ask for."""
    args = parser().parse_args(arguments)
    wish = Wish(
        args.video, args.prompt, args.negative_prompt, args.start, args.seconds, args.seed, args.steps, args.guidance
    )
    files = outputs(args.output, args.video)
    device = cli.pick_device(args.device)
    sampler = adapted_sampler(args.model, args.adapter, args.strength, args.weights, device)
    waveform = generate(sampler, load_encoders(sampler.spec.name, args.weights, device), wish)
    for file in files:
        write(file, waveform, sampler.spec.codec.rate, wish)
        print(file, flush=True)
    return 0


def outputs(output: Path, video: Path | None) -> list[Path]:
    """The files to write; ConfigError for a suffix that is none of them, or a video without a picture."""
    kinds = (*CODECS, ".mp4")
    suffix = output.suffix.lower()
    if suffix and suffix not in kinds:
        raise ConfigError(f"--output {output}: a folder, or a file that ends in {', '.join(kinds)}")
    if suffix == ".mp4" and video is None:
        raise ConfigError(f"--output {output}: there is no --video to take the picture from; choose .flac or .wav")
    if suffix:
        return [output]
    name = "sound" if video is None else video.stem
    sound, picture = output / f"{name}.flac", output / f"{name}.mp4"
    return [sound] if video is None else [sound, picture]


def adapted_sampler(
    model: str | None, adapter: Path | None, strength: float, weights: Path | None, device: torch.device
) -> Sampler:
    """The sampler of `model` with the adapter merged in at `strength`.

    Raises WeightsError where files are missing or the adapter was made for another model.
    """
    file = None if adapter is None else read_adapter(adapter)
    name = model or (file.base_model if file is not None else "") or DEFAULT_MODEL
    sampler = load_sampler(name, weights, device, dtype=fast_dtype(device))
    if file is not None:
        adapted = attach(sampler.network, file, name, identity(name, "network", weights))
        set_strength(adapted, strength)
        sampler.network = merge(adapted).eval().requires_grad_(False)
    return sampler


def write(path: Path, waveform: Tensor, rate: int, wish: Wish) -> None:
    """Write the sound, or the video's picture with it from the wish's start on."""
    if path.suffix.lower() in CODECS:
        write_sound(path, waveform.numpy(), rate)
        return
    assert wish.video is not None
    before = torch.zeros(round(wish.start * rate))
    mux_audio(wish.video, torch.cat([before, waveform]).numpy(), rate, path)


if __name__ == "__main__":
    cli.run(main)
