"""Brings a decoded image to the network's size: stretched, cropped or padded. The pipeline and consumers use this."""

import numpy as np
from PIL import Image

FITS = ("stretch", "crop", "pad")


def fit_to_size(image: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """Scale an 8-bit image by bilinear interpolation. One of the right size is returned as it is.

    Args:
        image: of mode L or RGB.
        fit: `stretch` changes its proportions; `crop` keeps them, and the largest centred part that has the
            proportions of the result; `pad` keeps them and all of the image, and fills the rest by `border_color`.
    """
    if image.size == (width, height):
        return image
    if fit == "pad":
        return pad_to_size(image, width, height)
    box = centered_box(image.size, width, height) if fit == "crop" else None
    return image.resize((width, height), Image.Resampling.BILINEAR, box)


def centered_box(size: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest part with these proportions. It may begin within a pixel."""
    scale = min(size[0] / width, size[1] / height)
    # Rounding can leave one of them a little below 0, which Pillow refuses.
    left, top = max(0.0, (size[0] - scale * width) / 2), max(0.0, (size[1] - scale * height) / 2)
    return left, top, size[0] - left, size[1] - top


def pad_to_size(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    scaled = image.resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new(image.mode, (width, height), border_color(scaled))
    canvas.paste(scaled, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def border_color(image: Image.Image) -> tuple[int, ...]:
    """The median of the outermost pixels, by channel: paper continues as paper, and a black frame as black."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(level) for level in np.median(border, axis=0))
