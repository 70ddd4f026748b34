"""Images inside a report, as WebP data URIs."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image
from torch import Tensor

MEL_RANGE = 3.5
"""Powers of ten from the brightest to the darkest colour of a mel spectrogram."""
MEL_QUALITY = 60
"""WebP's: a mel spectrogram of 8 s at 16 kHz takes some 7 kB, as PNG of the same colours 27 kB."""


def mel_image(mel: Tensor, log_base: float, log10_max: float) -> str:
    """A mel spectrogram (M, F) as a data URI, low frequencies below; `log10_max` has the brightest colour."""
    import matplotlib  # slow to import

    log10 = np.asarray(mel.float().cpu()) * (math.log(log_base) / math.log(10))
    level = np.clip((log10 - log10_max) / MEL_RANGE + 1, 0, 1)[::-1]
    colours = np.round(255 * matplotlib.colormaps["magma"](level)[..., :3]).astype(np.uint8)
    return image_uri(Image.fromarray(colours), MEL_QUALITY)


def image_uri(image: Image.Image, quality: int) -> str:
    """An image as a data URI."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
