"""Decodes an image file or bytes, turns it upright, and removes its transparency."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lockstep.errors import ImageError

Color = tuple[int, int, int]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # more than a phone's camera takes; a small file can claim to hold far more
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
MIN_DECODED_SIDE = 1024  # pixels; a JPEG is decoded at a reduced scale, but not below this
# Our own limit applies, and unusual EXIF does not matter. At import, because changing filters is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(
    source: str | Path | bytes | bytearray | io.IOBase | Image.Image, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the image and rotate it as its EXIF orientation says."""
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: the path has a null byte
            raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    elif isinstance(source, io.IOBase):
        source = bytes(source.read())
    if isinstance(source, (bytes, bytearray)) and not source:
        raise ImageError("the file is empty")
    try:
        if isinstance(source, Image.Image):
            return load_upright(source, max_pixels)
        with Image.open(io.BytesIO(source), formats=FORMATS) as image:
            return load_upright(image, max_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # a program may turn warnings into errors
        raise ImageError(f"the image has more than {max_pixels:,} pixels") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types for broken files
        is_informative = isinstance(error, OSError) and "identify" not in str(error)
        reason = f" ({' '.join(str(error).split())})" if is_informative else ""
        raise ImageError(f"not a readable image{reason}; supported formats: {', '.join(FORMATS)}") from None


def load_upright(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if not width * height:
        raise ImageError("the image has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"the image has more than {max_pixels:,} pixels: {width} x {height}")
    if image.format == "JPEG":
        image.draft(None, (MIN_DECODED_SIDE, MIN_DECODED_SIDE))
    image.load()
    upright: Image.Image = ImageOps.exif_transpose(image)
    return upright


def flatten_image(image: Image.Image, mode: str, background: Color | None = None) -> Image.Image:
    """Convert to 8 bits per channel without transparency.

    Args:
        mode: "L" or "RGB".
        background: the colour behind transparent pixels; chosen from the image unless given.
    """
    if image.mode.startswith(("I", "F")):
        return scale_to_8_bits(np.asarray(image, np.float32)).convert(mode)
    if "A" in image.getbands() or "transparency" in image.info:
        if max(image.size) > 2 * MIN_DECODED_SIDE and image.mode == "RGBA":  # saves memory: four copies follow
            image = image.reduce(max(image.size) // MIN_DECODED_SIDE)
        image = image.convert("RGBA")
        layer = Image.new("RGBA", image.size, background or choose_background(image))
        image = Image.alpha_composite(layer, image)
    return image.convert(mode)


def scale_to_8_bits(values: NDArray[np.float32]) -> Image.Image:
    """Of 16-bit values, of 8-bit values in a wider type, or of values within 0..1; Pillow would clip them."""
    maximum = float(values.max())
    scale = 1 / 257 if maximum > 255 else 255 if maximum <= 1 else 1
    return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))


def choose_background(image: Image.Image) -> Color:
    """White behind a dark drawing, black behind a bright one; behind a cut-out, its own median colour."""
    small = image.copy()
    small.thumbnail((128, 128))
    pixels = np.asarray(small, np.float32)
    opacity = pixels[..., 3] / 255
    border = np.concatenate([opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]])
    if border.mean() > 0.5:
        red, green, blue = np.median(pixels[opacity > 0.5][:, :3], axis=0).astype(int).tolist()
        return red, green, blue
    brightness = (pixels[..., :3].mean(axis=2) * opacity).sum() / max(1.0, float(opacity.sum()))
    return BLACK if brightness > 127 else WHITE
