"""A file, its bytes, or a picture that is open already -> the picture upright, opened only if it is not too large."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lockstep.errors import ImageError

Color = tuple[int, int, int]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
PIXELS = 50_000_000  # more than a phone's camera makes; a small file can claim far more than it holds
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# The limit is ours, and odd EXIF is no matter. Once and for all: to switch warnings on and off is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
ENOUGH = 1024  # a JPEG is decoded no finer than this, as far as its format can do that by itself


def open_picture(source: str | Path | bytes | Image.Image, pixels: int = PIXELS) -> Image.Image:
    """Whole in memory, turned as its EXIF says."""
    try:
        if isinstance(source, Image.Image):
            return whole(source, pixels)
        data = source if isinstance(source, bytes) else read(Path(source))
        if not data:
            raise ImageError("is empty")
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return whole(picture, pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # a program may raise its warnings
        raise ImageError(f"has more than {pixels:,} pixels") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise what they like at bytes that are broken
        known = ", ".join(FORMATS)
        said = (
            f" ({' '.join(str(error).split())})" if isinstance(error, OSError) and "identify" not in str(error) else ""
        )
        raise ImageError(f"is not a whole picture{said}; these are read: {known}") from None


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("there is no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name with a null byte
        raise ImageError(f"cannot be read: {error}") from None


def whole(picture: Image.Image, pixels: int) -> Image.Image:
    width, height = picture.size
    if not width * height:
        raise ImageError("has no pixels")
    if width * height > pixels:
        raise ImageError(f"has more than {pixels:,} pixels: {width} x {height}")
    if picture.format == "JPEG":
        picture.draft(None, (ENOUGH, ENOUGH))
    picture.load()
    return upright(picture)


def upright(picture: Image.Image) -> Image.Image:
    turned: Image.Image = ImageOps.exif_transpose(picture)
    return turned


def flat(picture: Image.Image, mode: str, ground: Color | None = None) -> Image.Image:
    """Without transparency, and of the mode (L or RGB), each channel of eight bits."""
    if picture.mode.startswith(("I", "F")):
        return eight_bits(np.asarray(picture, np.float32)).convert(mode)
    if "A" in picture.getbands() or "transparency" in picture.info:
        if max(picture.size) > 2 * ENOUGH and picture.mode == "RGBA":  # four copies of it are to come
            picture = picture.reduce(max(picture.size) // ENOUGH)
        picture = picture.convert("RGBA")
        behind = Image.new("RGBA", picture.size, ground or ground_of(picture))
        picture = Image.alpha_composite(behind, picture)
    return picture.convert(mode)


def eight_bits(values: NDArray[np.float32]) -> Image.Image:
    """Of 16 bits, of 8 bits in a wider number, or of numbers up to 1; Pillow would cut them off."""
    most = float(values.max())
    scale = 1 / 257 if most > 255 else 255 if most <= 1 else 1
    return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))


def ground_of(picture: Image.Image) -> Color:
    """What goes behind a transparent drawing: white, or black if it is bright; behind a cut-out, its own colour."""
    small = picture.copy()
    small.thumbnail((128, 128))
    pixels = np.asarray(small, np.float32)
    opacity = pixels[..., 3] / 255
    border = np.concatenate([opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]])
    if border.mean() > 0.5:
        red, green, blue = np.median(pixels[opacity > 0.5][:, :3], axis=0).astype(int).tolist()
        return red, green, blue
    brightness = (pixels[..., :3].mean(axis=2) * opacity).sum() / max(1.0, float(opacity.sum()))
    return BLACK if brightness > 127 else WHITE
