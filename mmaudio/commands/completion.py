"""Tab completion of commands, flags and settings, for bash, zsh and fish.

mmaudio-lora completion bash > ~/.local/share/bash-completion/completions/mmaudio-lora
mmaudio-lora completion fish > ~/.config/fish/completions/mmaudio-lora.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmaudio import cli
from mmaudio.commands.train_help import format_settings
from mmaudio.config import CONFIG_FOLDER, PRIMARY_CONFIG
from mmaudio.pipeline import flags
from mmaudio.utils.terminal import print_lines

if TYPE_CHECKING:
    from mmaudio.commands.__main__ import Command

SHELLS = ("bash", "zsh", "fish")


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Print the script of a shell that completes this program's commands and flags.")
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    return parser


def train_parser() -> argparse.ArgumentParser:
    """A parser that knows training's settings, which Hydra reads."""
    text = (CONFIG_FOLDER / f"{PRIMARY_CONFIG}.yaml").read_text(encoding="utf-8")
    names = [f"{line.split('=')[0].strip()}=" for line in format_settings(text) if line]
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="*", choices=["preset=", *names])
    parser.add_argument("--multirun", action="store_true", help="one run for each of the values")
    return parser


def whole_parser(name: str, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """A parser of the program `name` with all of its subcommands; where a path is expected, files are completed."""
    import shtab

    root = argparse.ArgumentParser(name)
    subparsers = root.add_subparsers(parser_class=argparse.ArgumentParser)
    builders = {"train": train_parser, "run": flags.build_parser}
    for command, entry in commands.items():
        builder = builders.get(command) or entry.load().build_parser
        parser = builder()
        for action in parser._actions:
            if action.type is Path:
                setattr(action, "complete", shtab.FILE)  # noqa: B010 - an attribute of shtab's
        subparsers.add_parser(command, parents=[parser], add_help=False, help=entry.summary)
    return root


def main(arguments: list[str]) -> int:
    """Print the script."""
    import shtab

    from mmaudio.commands.__main__ import COMMANDS, NAME  # here, as that module names this one

    args = build_parser().parse_args(arguments)
    print_lines(*shtab.complete(whole_parser(NAME, COMMANDS), args.shell).split("\n"))
    return 0
