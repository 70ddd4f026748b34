"""An adapter from Python: load it, look at it, make audio for a video, merge it into its base model.

    python examples/python_api.py output/my_videos_tiny_16k/lora_checkpoints/best_lora.pt my_videos/dog.mp4

Writes adapted.flac, base.flac and merged_model.pt into the current folder, or into --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmaudio.media.audio_file import write_audio
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora


def main() -> None:
    """Run the four steps on the command line's adapter and video."""
    parser = argparse.ArgumentParser(description="Load an adapter, make audio for a video, merge the adapter.")
    parser.add_argument("adapter", type=Path, help="best_lora.pt, a PEFT folder or a .safetensors file")
    parser.add_argument("video", type=Path, help="a video of at least 1 s")
    parser.add_argument("--prompt", default="", help="what is heard")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder to write into")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    # Load: the adapter names its base model, so that no model name is needed.
    lora_model = load_pretrained_with_lora(lora_checkpoint=args.adapter)
    sample_rate = lora_model.sample_rate

    # Inspect: parameters by block, and the layers that have an adapter.
    lora_model.print_parameter_info()
    adapted_layers = [name for name, _ in lora_model.named_modules() if name.endswith("lora_A")]
    print(f"{len(adapted_layers)} adapted layers, the first is {adapted_layers[0]}")

    # Generate: the same seed starts from the same noise, so that only the weights differ.
    adapted = lora_model.generate_from_video(args.video, args.prompt, seed=1)  # (samples,)
    write_audio(args.output / "adapted.flac", adapted, sample_rate)
    lora_model.set_strength(0)  # the base model
    base = lora_model.generate_from_video(args.video, args.prompt, seed=1)
    write_audio(args.output / "base.flac", base, sample_rate)
    lora_model.set_strength(1)

    # Merge: a plain MMAudio checkpoint with the released keys.
    merged_model = lora_model.merge_and_save(args.output / "merged_model.pt")
    merged = merged_model.generate(args.video, args.prompt, seed=1)
    print(f"largest difference between adapter and merged model: {(merged - adapted).abs().max():.1e}")


if __name__ == "__main__":
    main()
