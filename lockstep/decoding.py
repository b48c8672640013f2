"""Decodes an image file or bytes, turns it upright, and makes it 8 bits deep without transparency.

The pipeline reads a person's own images with this too, so that a network sees the pixels that it was trained on.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lockstep.errors import ImageError

Color = tuple[int, int, int]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MAX_PIXELS = 50_000_000  # more than a phone's camera takes; a small file can claim to hold far more
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)  # of Pillow itself, above which it opens no image
MAX_INTEGER, MAX_FLOAT = 65535, 1  # white, in the modes of more than 8 bits; black is 0
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
STRIP_PIXELS = 1 << 20  # of a large image are converted at a time, since some conversions need several copies
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
        except MemoryError:
            raise ImageError("cannot be read: the file is larger than the memory") from None
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
        raise ImageError(f"the image has more than {min(max_pixels, PILLOW_MAX_PIXELS):,} pixels") from None
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
    try:
        upright: Image.Image = ImageOps.exif_transpose(image)
    except Exception:  # struct.error, TypeError, AttributeError and more, by what is damaged
        raise ImageError("its EXIF data are damaged; save it again without them") from None
    return upright


def flatten_image(image: Image.Image, mode: str, background: Color | None = None) -> Image.Image:
    """Convert to 8 bits per channel without transparency.

    Args:
        mode: "L" or "RGB".
        background: the colour behind transparent pixels; chosen from the image unless given.
    """
    try:
        if image.mode[0] in "IF":
            return convert_in_strips(image, mode, lambda strip: scale_to_8_bits(strip).convert(mode))
        if not image.has_transparency_data:
            return image.convert(mode)
        if background is None:
            if max(image.size) > 2 * MIN_DECODED_SIDE and image.mode == "RGBA":
                image = image.reduce(max(image.size) // MIN_DECODED_SIDE)
            background = choose_background(image.convert("RGBA"))
        return convert_in_strips(image, mode, lambda strip: compose(strip, background).convert(mode))
    except ImageError:
        raise
    except Exception as error:  # of many types, for modes such as LAB and for a damaged palette or transparency
        reason = " ".join(str(error).split())
        raise ImageError(f"its colours cannot be converted ({reason}); save it as grey or RGB") from None


def convert_in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert pixel by pixel, in strips of rows: the result is that of one conversion, in little memory."""
    if image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    result = Image.new(mode, image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(strip), (0, top))
    return result


def compose(image: Image.Image, background: Color) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Of one of the modes I;16, I and F. Their range is fixed, and not guessed from the values of each image."""
    values = np.asarray(image)
    is_float = image.mode == "F"
    white = MAX_FLOAT if is_float else MAX_INTEGER
    if not (values.min() >= 0 and values.max() <= white):  # NaN fails too
        kind = "floating-point pixels" if is_float else "pixels of more than 8 bits"
        raise ImageError(f"its {kind} are not all within 0..{white}, black to white; scale them")
    if is_float:
        return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
    return Image.fromarray(((values.astype(np.uint32) * 255 + MAX_INTEGER // 2) // MAX_INTEGER).astype(np.uint8))


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
