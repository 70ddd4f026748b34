"""Shared command-line code: an argument parser with suggestions, one-line errors, exit statuses and the device."""

from __future__ import annotations

import argparse
import difflib
import errno
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.utils import heartbeat, interrupts
from mmaudio.utils.escapes import escape_controls
from mmaudio.utils.garbage_collection import no_garbage_collection
from mmaudio.utils.heartbeat import Heartbeat
from mmaudio.utils.malloc import reuse_freed_memory
from mmaudio.utils.terminal import print_lines, print_traceback

if TYPE_CHECKING:
    import torch


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_START = ExitStack()
"""The start of a command, until `run`."""
MAX_COUNT = 1_000_000
"""Upper limit of flags that count something."""


class Parser(argparse.ArgumentParser):
    """An argument parser with the flag `--debug`, whose errors suggest the nearest flag or choice; exit status 2."""

    def __init__(self, description: str | None = None) -> None:
        super().__init__(description=description, formatter_class=_Help)
        self.register("type", Path, non_empty_path)
        self.register("action", None, _Store)
        self.single_flags: tuple[str, ...] = ()
        """Flags of which a user may expect to give several: two different values are an error that names both."""
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_weights_flags(self) -> None:
        """Add `--weights` and `--offline`; pass `args.offline` to `is_offline`."""
        self.add_argument("--weights", type=Path, help="the folder of the released weights")
        self.add_argument("--offline", action="store_true", help="connect to nothing: say which weights are absent")

    def add_adapter_flags(self, *names: str, required: bool = False) -> None:
        """Add `--adapter`, under other `names` too, and `--strength`: lists, empty where none is given."""
        self.add_argument(
            *names,
            "--adapter",
            type=Path,
            action="append",
            required=required,
            default=[],
            help="an adapter: best_lora.pt, a folder that PEFT wrote, or USER/NAME[@REVISION] on the hub; several add "
            "up their changes to the base",
        )
        self.add_strength_flag()

    def add_strength_flag(self) -> None:
        """Add `--strength`, a list of texts."""
        self.add_argument(
            "--strength",
            action="append",
            default=[],
            help="the adapter's, 0 (the base model) to 1.5; 1, as trained, where not given. By part of the network: "
            "joint=1,fused=0.5. One for each adapter, where there are several",
        )

    def error(self, message: str) -> NoReturn:
        """Print `message` in one line with a suggestion, and exit with status 2."""
        flag = re.search(r"unrecognized arguments: (\S+)", message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        suggestions: list[str] = []
        if flag:
            known = [option for action in self._actions for option in action.option_strings]
            suggestions = nearest_names(flag.group(1).split("=")[0], known, cutoff=0.5)
        elif choice:
            suggestions = nearest_names(choice.group(1), re.findall(r"[\w.-]+", choice.group(2)), cutoff=0.3)
        hint = f"; did you mean {suggestions[0]}?" if suggestions else ""
        self.exit(2, escape_controls(f"error: {message}{hint} ({self.prog} --help lists the flags)") + "\n")


class _Store(argparse.Action):
    """Store a flag's value; the last one counts, but for `Parser.single_flags`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        first = getattr(namespace, self.dest)
        if option_string in getattr(parser, "single_flags", ()) and first not in (self.default, values):
            raise argparse.ArgumentError(self, f"one is taken, there are two: {first} and {values}")
        setattr(namespace, self.dest, values)


def nearest_names(name: str, known: list[str], cutoff: float) -> list[str]:
    """Names similar to `name`, the most similar first; one with only swapped letters comes before all others."""
    return sorted(
        difflib.get_close_matches(name, known, cutoff=cutoff), key=lambda match: sorted(match) != sorted(name)
    )


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line at `--` into its flags and the Hydra overrides after it."""
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:separator], arguments[separator + 1 :]


def non_empty_path(text: str) -> Path:
    """Parse a path; an empty one, such as an unset variable, would silently mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; give a file or folder (. is the current folder)")
    return Path(text)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows only defaults other than None and False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def handle_signals() -> None:
    """End by a signal with one line, and say now and then that the program is loading; `run` does more.

    A script calls this before imports that take seconds. Until `run`, Python collects no garbage.
    """
    interrupts.exit_on_signals()
    _START.enter_context(no_garbage_collection())
    with suppress(KeyError, ValueError):
        heartbeat.QUIET_SECONDS = float(os.environ["MMAUDIO_QUIET_SECONDS"])
    if os.environ.get("RANK", "0") == "0":
        _START.enter_context(Heartbeat("loading the program"))


def end_start() -> None:
    """End what `handle_signals` has begun: lines that say that the program is loading, no garbage collection."""
    _START.close()


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command-line arguments and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted.

    A signal raises KeyboardInterrupt in `main`; the exit status is 128 and the signal's number, 143 for SIGTERM.
    """
    end_start()
    reuse_freed_memory(os.environ)
    sys.excepthook = print_traceback
    try:
        with interrupts.raise_interrupts():
            _run_once(main, sys.argv[1:])
    finally:
        gc.freeze()  # or the interpreter, as it ends, looks for garbage among all that was imported


def _run_once(main: Callable[[list[str]], int | None], arguments: list[str]) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        status = main(arguments) or 0
        _flush_output()
        sys.exit(status)
    except SystemExit:  # of argparse
        _flush_output()
        raise
    except BrokenPipeError:  # whoever reads the output has enough of it, as `head` has
        _discard_output()
        sys.exit(128 + 13)  # SIGPIPE, which Windows lacks
    except (MMAudioError, OSError) as error:
        if "--debug" in arguments:
            raise
        _print_last(f"error: {describe_os_error(error) if isinstance(error, OSError) else error}")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (MemoryError, RuntimeError) as error:
        memory_error = describe_out_of_memory(error)
        if memory_error is None or "--debug" in arguments:
            raise
        _print_last(f"error: {memory_error}")
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, interrupts.Interrupt) else signal.SIGINT
        _print_last(interrupts.describe_interrupt(number))
        sys.exit(128 + number)


def _print_last(line: str) -> None:
    """Print a line on standard error after flushing standard output, so that it comes last in a log file as well."""
    with suppress(OSError):  # as on a full disk
        _flush_output()
    with suppress(OSError):
        print_lines(line, file=sys.stderr, flush=True)


def _flush_output() -> None:
    """Flush standard output; where nobody reads it any more, discard it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        interrupts.discard_output(sys.stdout.fileno())


def _discard_output() -> None:
    """Send what is still to be printed nowhere, or the interpreter complains at its end."""
    for stream in (sys.stdout, sys.stderr):
        interrupts.discard_output(stream.fileno())


def describe_os_error(error: OSError) -> MMAudioError:
    """Convert a refusal of the system to an error with the file and the reason."""
    name = error.filename if error.filename2 is None else error.filename2  # of a rename, the target
    prefix = f"{name}: " if name is not None else ""
    remedy = "make it readable and writable" if error.errno not in DISK_FULL else "make room there"
    return MMAudioError(f"{prefix}{error.strerror or error}; choose another place, or {remedy}")


def describe_out_of_memory(error: Exception, remedy: str = "") -> MMAudioError | None:
    """Convert an out-of-memory error of torch or Python to one with a remedy; None for any other error."""
    request = re.search(r"ried to allocate ([\d.]+ \w+)", text := str(error))
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    if not is_memory_error and "can't allocate memory" not in text:
        return None
    amount = f" ({request.group(1)} more were requested)" if request else ""
    return MMAudioError(f"out of memory{amount}; {remedy or 'close what else uses it, or take a machine with more'}")


@contextmanager
def explain_out_of_memory(remedy: str) -> Iterator[None]:
    """Name the remedy where memory runs out in a block whose batch takes it: as MMAudioError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        memory_error = describe_out_of_memory(error, remedy)
        if memory_error is None:
            raise
        raise memory_error from error


def is_offline(flag: bool) -> bool:
    """Whether network access is forbidden, by --offline or by HF_HUB_OFFLINE as the Hugging Face hub reads it."""
    return flag or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def check_at_least(flags: argparse.Namespace, **minimums: int) -> None:
    """Raise ConfigError for an integer flag below its minimum or above MAX_COUNT."""
    for name, minimum in minimums.items():
        value = getattr(flags, name)
        if value is not None and not minimum <= value <= MAX_COUNT:
            bound = f"at least {minimum}" if value < minimum else f"at most {MAX_COUNT}"
            raise ConfigError(f"--{name} {value}: {bound}")


def pick_device(name: str = "auto") -> torch.device:
    """Select a device; `auto` is a CUDA GPU if available, else the CPU. ConfigError for one that is not available."""
    import torch  # slow to import, and not installed yet while the environment is created

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: unknown; it is auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={name!r}: this program computes on cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device={name!r}: this torch has no Apple GPU here; take device=cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: no GPU that torch can use is here; take device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: there are {torch.cuda.device_count()} GPUs here, counted from 0")
    return device
