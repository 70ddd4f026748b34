"""Kept features of the videos that got audio: their size, and their removal.

mmaudio-lora conditions
mmaudio-lora conditions --remove
"""

from __future__ import annotations

from pathlib import Path

from mmaudio import cli
from mmaudio.generation.condition_cache import MAX_BYTES, default_folder, measure, remove_all
from mmaudio.utils.progress import format_bytes
from mmaudio.utils.terminal import print_lines


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Show or remove the features of videos that generation keeps.")
    parser.add_argument("--conditions", type=Path, help="their folder; that of generation if not given")
    parser.add_argument("--remove", action="store_true", help="remove them; they are computed again when needed")
    return parser


def main(arguments: list[str]) -> None:
    """Run the command."""
    args = build_parser().parse_args(arguments)
    folder = args.conditions or default_folder()
    sizes = measure(folder)
    if args.remove:
        remove_all(folder)
    fate = "removed" if args.remove else f"at most {format_bytes(MAX_BYTES)} are kept"
    print_lines(f"{folder}: features of {len(sizes)} videos, {format_bytes(sum(sizes.values()))}; {fate}")
