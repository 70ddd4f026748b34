"""Still pictures, as upright RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmaudio.errors import DataError


def read_picture(path: Path) -> Tensor:
    """The picture in a file, the first one of several, upright: RGB uint8 (3, H, W). DataError where it is none."""
    if not path.is_file():
        raise DataError(f"{path.name}: {'not a file' if path.exists() else 'not there'}; name a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large; twice as large is an error
            with Image.open(path) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "too large" if isinstance(error, Image.DecompressionBombError) else "no picture, or a damaged one"
        raise DataError(f"{path.name}: {reason}; take a PNG, a JPEG or a WebP") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
