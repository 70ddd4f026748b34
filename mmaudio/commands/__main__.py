"""`mmaudio-lora`: one command with a subcommand for every step.

mmaudio-lora COMMAND --help
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.utils.terminal import print_lines

NAME = "mmaudio-lora"


@dataclass(frozen=True)
class Command:
    """A subcommand: the module whose `main(arguments)` it runs, and what it does."""

    module: str
    summary: str


COMMANDS = {
    "run": Command("mmaudio.pipeline.run", "a folder of videos to an adapter and a report: all steps"),
    "generate": Command("mmaudio.generation.__main__", "audio for a video, a folder of videos or a text"),
    "conditions": Command("mmaudio.commands.condition_files", "the kept features of videos: their size, and removal"),
    "merge": Command("mmaudio.commands.merge_adapter", "an adapter and its base model to one checkpoint"),
}


def usage() -> str:
    """What is printed by `--help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([f"usage: {NAME} COMMAND [flags]", "", *lines, "", f"{NAME} COMMAND --help explains its flags."])


def main(arguments: list[str]) -> int | None:
    """Run the subcommand that the first argument names; ConfigError for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print_lines(*usage().split("\n"))
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        nearest = cli.nearest_names(name, list(COMMANDS), cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
        raise ConfigError(f"{NAME} {name}: no such command; {hint}")
    sys.argv[0] = f"{NAME} {name}"
    status: int | None = importlib.import_module(COMMANDS[name].module).main(arguments[1:])
    return status


def run() -> None:
    """The entry point of the installed command."""
    cli.run(main)


if __name__ == "__main__":
    run()
