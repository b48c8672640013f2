"""Makes an image the network's input, as its training images were prepared. The model's metadata name the way."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lockstep.decoding import WHITE, flatten_image
from lockstep.errors import ImageError
from lockstep.fitting import fit_to_size
from lockstep.ink import Gray, find_ink
from lockstep.metadata import ModelMetadata

Pixels = NDArray[np.uint8]
WORK_SIDE = 120  # pixels: the longer side of the image in which ink is searched
MIN_STROKE = 0.085  # stroke width over the longer side of the ink; thinner strokes are thickened. MNIST's is about 0.12


def prepare_image(image: Image.Image, metadata: ModelMetadata) -> Pixels:
    """The network's input: uint8[channels, height, width]."""
    if metadata.preparation == "mnist":
        return prepare_like_mnist(image, metadata)
    return resize_image(image, metadata)


def resize_image(image: Image.Image, metadata: ModelMetadata) -> Pixels:
    """Transparent pixels become white. Stretched, cropped or padded to size, as the training images were."""
    flat = flatten_image(image, "L" if metadata.channels == 1 else "RGB", WHITE)
    small = fit_to_size(flat, metadata.width, metadata.height, metadata.fit)
    return np.asarray(small).reshape(metadata.height, metadata.width, metadata.channels).transpose(2, 0, 1).copy()


def prepare_like_mnist(image: Image.Image, metadata: ModelMetadata) -> Pixels:
    """As NIST's digits became MNIST: cropped to the ink, scaled into a box, centred by mass (LeCun et al., 1998)."""
    ink = thicken_strokes(crop_to_ink(flatten_image(image, "L")))
    box = round(5 / 7 * min(metadata.height, metadata.width))  # 20 of 28 pixels
    height, width = (max(1, round(side * box / max(ink.shape))) for side in ink.shape)
    full_size = Image.fromarray((255 * ink).astype(np.uint8))
    scaled = np.asarray(full_size.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    centered = center_by_mass(scaled * (255 / max(1.0, float(scaled.max()))), metadata.height, metadata.width)
    return np.repeat(np.rint(centered).astype(np.uint8)[None], metadata.channels, axis=0)


def crop_to_ink(gray: Image.Image) -> Gray:
    """The ink's bounding box; ink that is small on a large sheet is searched again at a higher resolution."""
    small = shrink(gray)
    ink, (left, top, right, bottom) = crop(find_ink(np.asarray(small, np.float32)))
    x_scale, y_scale = gray.width / small.width, gray.height / small.height
    if x_scale < 1.5 or max(right - left, bottom - top) > WORK_SIDE / 2:
        return ink
    margin = 0.25 * max(right - left, bottom - top) + 1
    left, top = max(0, round(x_scale * (left - margin))), max(0, round(y_scale * (top - margin)))
    right, bottom = round(x_scale * (right + margin)), round(y_scale * (bottom + margin))
    region = gray.crop((left, top, min(gray.width, right), min(gray.height, bottom)))
    try:
        return crop(find_ink(np.asarray(shrink(region), np.float32)))[0]
    except ImageError:  # the region may have too little background around the ink
        return ink


def shrink(gray: Image.Image) -> Image.Image:
    if max(gray.size) > 2 * WORK_SIDE:
        gray = gray.reduce(max(gray.size) // WORK_SIDE)
    if max(gray.size) > WORK_SIDE:
        gray = gray.copy()
        gray.thumbnail((WORK_SIDE, WORK_SIDE), Image.Resampling.BOX)
    return gray


def crop(ink: Gray) -> tuple[Gray, tuple[int, int, int, int]]:
    """The ink and its bounding box: left, top, right, bottom."""
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise ImageError("nothing stands out from the background")
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return ink[top:bottom, left:right], (left, top, right, bottom)


def thicken_strokes(ink: Gray) -> Gray:
    """Dilate strokes that are thinner than those of the training images."""
    padded = np.pad(ink, 1)
    edges = np.abs(padded[1:] - padded[:-1]).sum() + np.abs(padded[:, 1:] - padded[:, :-1]).sum()
    stroke = 2.5 * float(ink.sum()) / float(edges)  # a stroke has two edges; a slanted one counts 4/pi times
    missing = MIN_STROKE * max(ink.shape) - stroke
    size = 2 * round(missing / 2) + 1
    if size < 3:
        return ink
    image = Image.fromarray((255 * np.pad(ink, size // 2)).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(size)), np.float32) / np.float32(255)


def center_by_mass(ink: Gray, height: int, width: int) -> Gray:
    """Place the ink so that its centre of mass is the centre, as far as all of it stays inside."""
    total = float(ink.sum()) or 1.0
    offsets = []
    for axis, side in ((0, height), (1, width)):
        profile = ink.sum(axis=1 - axis)
        center = float((profile * (np.arange(len(profile)) + 0.5)).sum()) / total
        offsets.append(min(max(0, round(side / 2 - center)), side - len(profile)))
    top, left = offsets
    canvas = np.zeros((height, width), np.float32)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas
