"""Make the base's own sounds of generic captions, at which `preserve_base` holds an adapter, as a file of its assets.

    python training/make_base_samples.py --model tiny_16k

Training makes these sounds by itself and keeps them beside the features; with the file among the assets of the package
it need not. Run it again when the weights or the captions of the package change.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import tempfile

from mmaudio.config import compose
from mmaudio.finetune.base_samples import make_base_samples, ship_latents
from mmaudio.finetune.trainer import load_network
from mmaudio.model.spec import CLIP_SECONDS, MODELS
from mmaudio.utils.hydra_quote import quote_value
from mmaudio.utils.terminal import print_lines


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Make the base's own sounds of generic captions as a file of the package")
    parser.add_argument("--model", default="tiny_16k", choices=list(MODELS), help="whose assets get the file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return parser


def main(arguments: list[str]) -> None:
    """Make the sounds at the model's duration and write them to its assets."""
    args = build_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = compose([f"model={args.model}", f"features_dir={quote_value(folder)}", "offline=true", "amp=false"])
        network, sha256 = load_network(config, cli.pick_device(args.device))
        network.set_duration(CLIP_SECONDS)
        make_base_samples(network, config, sha256, CLIP_SECONDS)
        print_lines(f"{ship_latents(config, sha256, CLIP_SECONDS)}: written")


if __name__ == "__main__":
    cli.run(main)
