"""The checkout's files that commands need at run time: settings and scripts. A wheel carries a copy of them."""

from __future__ import annotations

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (_CHECKOUT / "train_lora.py").is_file()
"""False where the package was installed from a wheel."""
ROOT = _CHECKOUT if IN_CHECKOUT else Path(__file__).resolve().parents[1] / "checkout"
"""The folder with train_lora.py, evaluate_lora.py, training/ and config/."""
SCRIPTS = {
    "split": "training/split_videos_for_finetuning.py",
    "extract": "training/extract_features_finetuning.py",
    "train": "train_lora.py",
    "evaluate": "evaluate_lora.py",
}
"""Scripts of the checkout by the subcommand of `mmaudio-lora` that runs them."""

PACKAGES = {"generate": "mmaudio.generation"}
"""The same of packages that `python -m` runs."""


def command_words(name: str, python: str = "python") -> list[str]:
    """The words of a command line that run a subcommand here: its script in a checkout, else `mmaudio-lora NAME`."""
    if not IN_CHECKOUT:
        return ["mmaudio-lora", name]
    return [python, *([SCRIPTS[name]] if name in SCRIPTS else ["-m", PACKAGES[name]])]
