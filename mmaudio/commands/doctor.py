"""What works on this machine, and what to do about the rest: Python, packages, torch, decoders, weights, disk.

    mmaudio-lora doctor

Nothing is fetched and nothing is written. Exit status: 0 where training and generation can work, else 1.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mmaudio import cli
from mmaudio.errors import WeightsError
from mmaudio.utils.terminal import print_lines

PACKAGE = "mmaudio-lora"
OLDEST_PYTHON = (3, 10)
DECODERS = ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus", "flac")
"""Codecs of the videos and sounds that people have."""
MIN_FREE_GB = 10.0
"""Room for the features and experiments of a small set, and the weights of a small model."""


@dataclass(frozen=True)
class Finding:
    """The state of one thing."""

    topic: str
    state: str
    remedy: str = ""
    """What to do; empty where it works."""
    is_needed: bool = True
    """Whether nothing works without it."""

    def format(self) -> list[str]:
        """Its lines."""
        mark = "ok" if not self.remedy else "FAILS" if self.is_needed else "note"
        return [f"{mark:<6}{self.topic:<11}{self.state}", *([f"{'':17}{self.remedy}"] if self.remedy else [])]


def check_python() -> Finding:
    """Python's version, and the system."""
    state = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding("Python", state, "" if sys.version_info >= OLDEST_PYTHON else f"install Python {oldest} or newer")


def requirements() -> dict[str, list[str]]:
    """Names of the packages that this one needs, by extra; those that it always needs under the empty name."""
    names: dict[str, list[str]] = {}
    for text in metadata.requires(PACKAGE) or []:
        match = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == [\"'](\w+)[\"']", text)
        names.setdefault(extra[1] if extra else "", []).append(match[0] if match else text)
    return names


def is_installed(package: str) -> bool:
    """Whether a package is installed, whichever its version."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_packages() -> Iterator[Finding]:
    """The packages that are always needed, and the extras."""
    if not is_installed(PACKAGE):
        yield Finding("packages", "this package itself is not installed", "pip install -e . in a clone")
        return
    needed = requirements()
    absent = [name for name in needed.pop("", []) if not is_installed(name)]
    remedy = f"pip install {' '.join(absent)}" if absent else ""
    yield Finding("packages", f"without {', '.join(absent)}" if absent else "all that are needed", remedy)
    for extra, names in needed.items():
        absent = [name for name in names if not is_installed(name)]
        if extra != "dev":
            remedy = f"if you want it: pip install {' '.join(absent)}" if absent else ""
            yield Finding(
                "extra", f"{extra}: {'without ' + ', '.join(absent) if absent else 'installed'}", remedy, False
            )


def check_torch() -> Iterator[Finding]:
    """torch, and the device that `auto` takes."""
    try:
        import torch

        device = cli.pick_device()
    except (ImportError, OSError) as error:
        yield Finding("torch", f"does not load: {error}", "pip install --force-reinstall torch torchaudio torchvision")
        return
    yield Finding("torch", torch.__version__)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        yield Finding("device", f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        built = "this torch is built without CUDA" if torch.version.cuda is None else "no GPU that torch can use"
        remedy = "tiny_16k is quick here, released models are slow; with an NVIDIA GPU: its driver and a torch for CUDA"
        yield Finding("device", f"{device.type}, {torch.get_num_threads()} threads; {built}", remedy, False)


def check_decoders() -> Finding:
    """The decoders of PyAV, which reads every video."""
    try:
        import av.codec
    except (ImportError, OSError) as error:
        return Finding("decoders", f"PyAV does not load: {error}", "pip install --force-reinstall av")
    absent = [name for name in DECODERS if not _can_decode(name)]
    remedy = "pip install --force-reinstall av (its wheels have them all)" if absent else ""
    state = f"PyAV {av.__version__}, {'without ' + ', '.join(absent) if absent else ', '.join(DECODERS)}"
    return Finding("decoders", state, remedy)


def _can_decode(name: str) -> bool:
    import av.codec

    try:
        av.codec.Codec(name, "r")
    except ValueError:  # as PyAV has it
        return False
    return True


def check_weights(folder: Path | None) -> Iterator[Finding]:
    """The released files of every base model."""
    from mmaudio.model.spec import MODELS
    from mmaudio.weights.store import missing_files

    for model in MODELS:
        try:
            missing = missing_files(model, folder)
        except WeightsError as error:
            yield Finding("weights", str(error), "name another folder", False)
            return
        size = sum(file.size for file in missing) / 1e9
        remedy = f"the first use fetches {size:.1f} GB; or put the files into ./weights" if missing else ""
        names = ", ".join(file.name for file in missing)
        yield Finding("weights", f"{model}: {'without ' + names if missing else 'all there'}", remedy, False)


def check_disk() -> Finding:
    """Free space in the current folder."""
    free = shutil.disk_usage(Path()).free / 1e9
    remedy = "" if free >= MIN_FREE_GB else f"make room: {MIN_FREE_GB:.0f} GB suit a small set of videos"
    return Finding("disk", f"{free:.1f} GB free in {Path().resolve()}", remedy, False)


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Say what works on this machine, and what to do about the rest.")
    parser.add_argument("--weights", type=Path, help="the folder of the released weights")
    return parser


def main(arguments: list[str]) -> int:
    """Print every finding; 1 where something that is needed fails."""
    args = build_parser().parse_args(arguments)
    findings = [check_python(), *check_packages(), *check_torch(), check_decoders()]
    if not any(finding.topic == "torch" and finding.remedy for finding in findings):
        findings += check_weights(args.weights)
    findings.append(check_disk())
    for finding in findings:
        print_lines(*finding.format())
    failures = [finding.topic for finding in findings if finding.remedy and finding.is_needed]
    print_lines("", f"fails: {', '.join(failures)}" if failures else "training and generation can work here")
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
