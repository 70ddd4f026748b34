"""The checkout's files that commands need at run time: settings and scripts. A wheel carries a copy of them."""

from __future__ import annotations

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (_CHECKOUT / "train_lora.py").is_file()
"""False where the package was installed from a wheel."""
ROOT = _CHECKOUT if IN_CHECKOUT else Path(__file__).resolve().parents[1] / "checkout"
"""The folder with train_lora.py, evaluate_lora.py, training/ and config/."""
