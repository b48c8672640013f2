"""An image file of any mode as people see it: upright as its EXIF says, transparency on white, eight bits deep."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stages.core.errors import StageError
from stages.sources.dataset import REFETCH, ImageArray, with_channels

SUFFIXES = (".png", ".jpg", ".jpeg")


def decode_image(path: Path, channels: int) -> ImageArray:
    """(height, width) for one channel, (height, width, 3) for three."""
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise StageError(f"{path}: missing; {REFETCH}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StageError(
            f"{path}: not a readable image ({' '.join(str(error).split())}); replace or remove it"
        ) from None
    if image.mode[0] in "IF":
        return with_channels(eight_bits(np.asarray(image, np.float64), deep=image.mode.startswith("I;16")), channels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)


def eight_bits(grey: NDArray[np.float64], deep: bool) -> ImageArray:
    """Greys of 16 bits brought to 0..255. Modes of 32 bits do not say their range: it is 0..1, 0..255 or 0..65535."""
    top = 65535 if deep else next((top for top in (1, 255) if grey.max(initial=0.0) <= top), 65535)
    return np.clip(np.round(grey * (255 / top)), 0, 255).astype(np.uint8)


def resize_image(image: ImageArray, size: int) -> ImageArray:
    """One image of any size stretched to size x size."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
