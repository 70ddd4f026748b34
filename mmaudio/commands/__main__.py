"""`mmaudio-lora`: one command with a subcommand for every step.

mmaudio-lora COMMAND --help
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.utils.checkout import ROOT, SCRIPTS
from mmaudio.utils.terminal import print_lines

NAME = "mmaudio-lora"


@dataclass(frozen=True)
class Command:
    """A subcommand: the module, or the checkout's script, whose `main(arguments)` it runs, and what it does."""

    module: str
    group: str
    summary: str
    example: str

    def load(self) -> ModuleType:
        """Import the module or the script, which has `main` and, but for train_lora.py, `build_parser`."""
        if not self.module.endswith(".py"):
            return importlib.import_module(self.module)
        name = Path(self.module).stem
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, ROOT / self.module)
            assert spec is not None and spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[name]


WHOLE, STEPS, USE = "The whole job", "Its steps, one by one", "Use of an adapter"
COMMANDS = {
    "run": Command("mmaudio.pipeline.run", WHOLE, "a folder of videos to an adapter and a report", "my_videos"),
    "doctor": Command(
        "mmaudio.commands.doctor", WHOLE, "what works on this machine, and what to do about the rest", ""
    ),
    "completion": Command("mmaudio.commands.completion", WHOLE, "tab completion for bash, zsh or fish", "bash"),
    "split": Command(
        SCRIPTS["split"],
        STEPS,
        "a folder of videos to a table of clips",
        "--input_dir my_videos --output_tsv lora_data/clips.tsv",
    ),
    "extract": Command(SCRIPTS["extract"], STEPS, "the clips' features", "--video_root my_videos --mode 16k"),
    "train": Command(SCRIPTS["train"], STEPS, "features to an adapter", "exp_id=dogs model=small_16k lora.rank=32"),
    "evaluate": Command(
        SCRIPTS["evaluate"],
        STEPS,
        "the base against the adapter on held-out videos",
        "--lora_checkpoint output/dogs/lora_checkpoints/best_lora.pt --test_videos my_videos",
    ),
    "generate": Command(
        "mmaudio.generation.__main__", USE, "audio for a video, a folder or a text", "--video dog.mp4 --adapter dogs.pt"
    ),
    "conditions": Command(
        "mmaudio.commands.condition_files", USE, "the kept features of videos: their size, and removal", "--remove"
    ),
    "app": Command("mmaudio.app.server", USE, "a page in the browser for all of this", "--videos my_videos"),
    "merge": Command("mmaudio.commands.merge_adapter", USE, "adapters and their base to one checkpoint", "dogs.pt"),
    "push": Command("mmaudio.commands.push_adapter", USE, "an adapter to the hub", "anna/dogs output/dogs --private"),
}


def usage() -> str:
    """What is printed by `--help`."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: {NAME} COMMAND [flags]"]
    for group in (WHOLE, STEPS, USE):
        lines += ["", f"{group}:"]
        lines += [f"  {name:<{width}}  {entry.summary}" for name, entry in COMMANDS.items() if entry.group == group]
    lines += ["", "Examples:", *(f"  {NAME} {name} {entry.example}".rstrip() for name, entry in COMMANDS.items())]
    return "\n".join([*lines, "", f"{NAME} COMMAND --help explains its flags."])


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
    try:
        status: int | None = COMMANDS[name].load().main(arguments[1:])
    except SystemExit:
        if {"-h", "--help"} & set(arguments):
            print_lines("", f"example: {NAME} {name} {COMMANDS[name].example}".rstrip())
        raise
    return status


def run() -> None:
    """The entry point of the installed command."""
    cli.run(main)


if __name__ == "__main__":
    run()
