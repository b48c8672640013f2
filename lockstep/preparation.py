"""A picture -> the pixels that the network was trained on, prepared as its metadata say."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lockstep.decoding import WHITE, flat
from lockstep.errors import ImageError
from lockstep.ink import Grey, find_ink
from lockstep.metadata import ModelMetadata

Pixels = NDArray[np.uint8]
WORK = 120  # the longer side that ink is looked for at
THIN = 0.085  # of the ink's longer side: a pen that draws thinner is thickened to it; MNIST's is about 0.12


def prepare(picture: Image.Image, facts: ModelMetadata) -> Pixels:
    """(channels, height, width), as the network takes it."""
    return like_mnist(picture, facts) if facts.preparation == "mnist" else resized(picture, facts)


def resized(picture: Image.Image, facts: ModelMetadata) -> Pixels:
    """Stretched to size; transparency on white."""
    mode = "L" if facts.channels == 1 else "RGB"
    small = flat(picture, mode, WHITE).resize((facts.width, facts.height), Image.Resampling.BILINEAR)
    return np.asarray(small).reshape(facts.height, facts.width, facts.channels).transpose(2, 0, 1).copy()


def like_mnist(picture: Image.Image, facts: ModelMetadata) -> Pixels:
    """As NIST's digits were made into MNIST's: cropped to the ink, scaled into a box, centred by mass."""
    ink = thickened(closest(flat(picture, "L")))
    box = round(5 / 7 * min(facts.height, facts.width))
    height, width = (max(1, round(side * box / max(ink.shape))) for side in ink.shape)
    pen = Image.fromarray((255 * ink).astype(np.uint8))
    drawn = np.asarray(pen.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    image = centred(drawn * (255 / max(1.0, float(drawn.max()))), facts.height, facts.width)
    return np.repeat(np.rint(image).astype(np.uint8)[None], facts.channels, axis=0)


def closest(grey: Image.Image) -> Grey:
    """The ink, cropped to; what is small on a large sheet is looked at again, closer."""
    small = reduced(grey)
    ink, (left, top, right, bottom) = cropped(find_ink(np.asarray(small, np.float32)))
    across, down = grey.width / small.width, grey.height / small.height
    if across < 1.5 or max(right - left, bottom - top) > WORK / 2:
        return ink
    margin = 0.25 * max(right - left, bottom - top) + 1
    closer = grey.crop(
        (
            max(0, round(across * (left - margin))),
            max(0, round(down * (top - margin))),
            min(grey.width, round(across * (right + margin))),
            min(grey.height, round(down * (bottom + margin))),
        )
    )
    try:
        return cropped(find_ink(np.asarray(reduced(closer), np.float32)))[0]
    except ImageError:  # closer there is too little ground around it
        return ink


def reduced(grey: Image.Image) -> Image.Image:
    if max(grey.size) > 2 * WORK:
        grey = grey.reduce(max(grey.size) // WORK)
    if max(grey.size) > WORK:
        grey = grey.copy()
        grey.thumbnail((WORK, WORK), Image.Resampling.BOX)
    return grey


def cropped(ink: Grey) -> tuple[Grey, tuple[int, int, int, int]]:
    """And where it is: left, top, right, bottom."""
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise ImageError("shows nothing that stands out from its ground")
    left, top, right, bottom = (int(each) for each in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return ink[top:bottom, left:right], (left, top, right, bottom)


def thickened(ink: Grey) -> Grey:
    """With strokes as thick as the network knows them, if they are thinner."""
    edges = (np.abs(np.diff(np.pad(ink, 1), axis=axis)).sum() for axis in (0, 1))
    width = 2.5 * float(ink.sum()) / float(sum(edges))  # a stroke has two sides; a slanted one counts 4/pi times
    missing = THIN * max(ink.shape) - width
    size = 2 * round(missing / 2) + 1
    if size < 3:
        return ink
    padded = np.pad(ink, size // 2)
    pen = Image.fromarray((255 * padded).astype(np.uint8)).filter(ImageFilter.MaxFilter(size))
    return np.asarray(pen, np.float32) / np.float32(255)


def centred(drawn: Grey, height: int, width: int) -> Grey:
    """Its centre of mass in the middle, as far as all of it stays inside."""
    total = float(drawn.sum()) or 1.0
    image = np.zeros((height, width), np.float32)
    places = []
    for axis, side in ((0, height), (1, width)):
        along = drawn.sum(axis=1 - axis)
        mass = float((along * (np.arange(len(along)) + 0.5)).sum()) / total
        places.append(min(max(0, round(side / 2 - mass)), side - len(along)))
    top, left = places
    image[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return image
