"""What every command line shares: errors in one line, the device, and a parser that suggests."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmaudio.errors import ConfigError, MMAudioError

if TYPE_CHECKING:
    import torch


FULL = (errno.ENOSPC, errno.EDQUOT)
MOST = 1_000_000
"""No flag that counts something goes beyond it."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest flag or choice; exit status 2. `--debug` is always there."""

    def __init__(self, description: str | None = None) -> None:
        super().__init__(description=description, formatter_class=_Help)
        self.register("type", Path, named_path)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_weights_flags(self) -> None:
        """Where weights are, and whether absent ones may be fetched; `args.offline` is for `is_offline`."""
        self.add_argument("--weights", type=Path, help="the folder of the released weights")
        self.add_argument("--offline", action="store_true", help="connect to nothing: say which weights are absent")

    def error(self, message: str) -> NoReturn:
        """Print `message` in one line with the nearest valid name, and exit with status 2."""
        flag = re.search(r"unrecognized arguments: (\S+)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        near: list[str] = []
        if flag:
            known = [option for action in self._actions for option in action.option_strings]
            near = nearest(flag.group(1).split("=")[0], known, cutoff=0.5)
        elif choice:
            near = nearest(choice.group(1), re.findall(r"[\w.-]+", choice.group(2)), cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {message}{hint} ({self.prog} --help lists the flags)\n")


def nearest(name: str, known: list[str], cutoff: float) -> list[str]:
    """The names most like `name`, the best first; one whose letters were only swapped comes before all others."""
    return sorted(difflib.get_close_matches(name, known, cutoff=cutoff), key=lambda near: sorted(near) != sorted(name))


def named_path(text: str) -> Path:
    """The path of a flag; an empty one, as of a variable that is not set, would silently mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; give a file or folder (. is the current folder)")
    return Path(text)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command line's arguments and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        sys.exit(main(arguments) or 0)
    except (MMAudioError, OSError) as error:
        if "--debug" in arguments:
            raise
        _end_with(f"error: {refused(error) if isinstance(error, OSError) else error}")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (MemoryError, RuntimeError) as error:
        full = out_of_memory(error)
        if full is None or "--debug" in arguments:
            raise
        _end_with(f"error: {full}")
        sys.exit(1)
    except KeyboardInterrupt:
        _end_with("interrupted; the same command goes on from here")
        sys.exit(130)


def _end_with(line: str) -> None:
    """Print the last line, on standard error, below all that was printed before: a file would have that later."""
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    print(line, file=sys.stderr)


def refused(error: OSError) -> MMAudioError:
    """What the system refused, in one line: which file, and why."""
    name = error.filename if error.filename2 is None else error.filename2  # what is renamed has a temporary name
    where = f"{name}: " if name is not None else ""
    way = "make it one to read and write" if error.errno not in FULL else "make room there"
    return MMAudioError(f"{where}{error.strerror or error}; choose another place, or {way}")


def out_of_memory(error: Exception) -> MMAudioError | None:
    """What to say of an error of torch or Python that a device had no memory left; None for any other error."""
    found = re.search(r"ried to allocate ([\d.]+ \w+)", text := str(error))
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    if not known and "can't allocate memory" not in text:
        return None
    asked = f" ({found.group(1)} more were asked for)" if found else ""
    return MMAudioError(
        f"out of memory{asked}; let less be computed at once, such as a smaller batch: in training batch_size=4 "
        "gradient_accumulation_steps=8, or preset=low_memory"
    )


def is_offline(asked: bool) -> bool:
    """Whether nothing may be connected to: --offline says so, or HF_HUB_OFFLINE does, as the hub's programs read it."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def at_least(flags: argparse.Namespace, **least: int) -> None:
    """ConfigError where a whole number among the flags is below its least, or larger than any such thing can be."""
    for name, least_value in least.items():
        value = getattr(flags, name)
        if value is not None and not least_value <= value <= MOST:
            bound = f"at least {least_value}" if value < least_value else f"at most {MOST}"
            raise ConfigError(f"--{name} {value}: {bound}")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; ConfigError for a device that is not here."""
    import torch  # slow to import, and not there yet while the environment is being made

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: unknown; it is auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r}: this program computes on cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: no GPU that torch can use is here; take device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: there are {torch.cuda.device_count()} GPUs here, counted from 0")
    return device
