"""What pyproject.toml cannot say: a wheel carries the scripts and the settings of the checkout.

`mmaudio.utils.checkout` finds them in either place.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHECKOUT_FILES = ("train_lora.py", "evaluate_lora.py", "training/*.py", "config/**/*.yaml")


class BuildWithCheckoutFiles(build_py):
    """Building of the package with the checkout's files in `mmaudio/checkout`; an editable install has the checkout."""

    def run(self) -> None:
        """Build the package, then add the files."""
        super().run()
        if self.editable_mode:
            return
        root = Path(__file__).parent
        for source in (path for pattern in CHECKOUT_FILES for path in root.glob(pattern)):
            target = Path(self.build_lib) / "mmaudio" / "checkout" / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithCheckoutFiles})
