"""Decodes an image file of any mode to 8 bits: upright by its EXIF orientation, transparency on white."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stages.core.errors import StageError
from stages.sources.dataset import REFETCH, ImageArray

SUFFIXES = (".png", ".jpg", ".jpeg")


def decode_image(path: Path, channels: int) -> ImageArray:
    """(height, width) for one channel, (height, width, 3) for three."""
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise StageError(f"{path}: missing; {REFETCH}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise StageError(f"{path}: not a readable image ({reason}); replace or remove it") from None
    if image.mode[0] in "IF":
        grey = scale_to_8_bits(np.asarray(image, np.float64), is_16_bit=image.mode.startswith("I;16"))
        return grey if channels == 1 else np.stack([grey] * 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)


def scale_to_8_bits(grey: NDArray[np.float64], is_16_bit: bool) -> ImageArray:
    """Scale to 0..255. The modes of 32 bits do not declare their range: it is taken as 0..1, 0..255 or 0..65535."""
    white = 65535 if is_16_bit else next((top for top in (1, 255) if grey.max(initial=0.0) <= top), 65535)
    return np.clip(np.round(grey * (255 / white)), 0, 255).astype(np.uint8)


def resize_image(image: ImageArray, size: int) -> ImageArray:
    """Stretch one image of any size to size x size."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
