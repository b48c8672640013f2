"""Finds how much ink, within 0..1, is at each pixel of a grayscale image, for any light, paper and pen."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import ImageError

Gray = NDArray[np.float32]
Indices = NDArray[np.intp]

MIN_CONTRAST = 12.0  # of 255: if no ink stands out further from the background, the image shows nothing
MIN_CHANGE = 0.01  # of the pixels: the background is found when fewer change sides
RIDGE = 1e-3 * np.eye(6, dtype=np.float32)
MIN_COMPONENT = 0.04  # of the mass of the largest component: smaller ones are dirt


def find_ink(gray: Gray) -> Gray:
    """Ink is what stands out from the background, to the side (darker or brighter) to which more stands out."""
    contrast = gray - estimate_background(gray)
    if np.vdot(contrast * contrast, contrast) < 0:  # dark ink
        contrast = -contrast
    sample = contrast.ravel()[:: max(1, contrast.size // 3000)]
    opposite = -sample[sample < 0]  # this side has noise only
    noise = 1.4826 * quantile(opposite, 0.5) if opposite.size else 0.0  # standard deviation of normal noise
    inked = contrast[contrast > max(3 * noise, 0.25 * float(contrast.max()))]
    full = quantile(inked, 0.9) if inked.size else 0.0  # a tenth of the inked pixels exceed it
    if full < max(MIN_CONTRAST, 4 * noise):
        raise ImageError("nothing stands out from the background")
    threshold = min(max(2.5 * noise, 0.08 * full), 0.4 * full)
    return erase_dirt(((contrast - threshold) / (full - threshold)).clip(0, 1))


def estimate_background(gray: Gray) -> Gray:
    """Fit a quadratic surface by least squares to the pixels that are not ink, which is refined in each iteration."""
    sample, terms, y, x = make_terms(*gray.shape)
    values = gray.ravel()[sample]
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    border_level = quantile(border, 0.5)
    tolerance = max(30.0, 2 * quantile(np.abs(border - border_level), 0.5))
    is_background = np.abs(values - border_level) <= tolerance
    surface = np.array([border_level, 0, 0, 0, 0, 0], np.float32)
    for _ in range(8):
        if np.count_nonzero(is_background) < 12:
            break
        fitted = terms * is_background
        surface = np.linalg.solve(fitted @ terms.T + RIDGE, fitted @ values)
        residuals = np.abs(values - surface @ terms)
        refined = residuals <= max(8.0, 4 * quantile(residuals[is_background], 0.5))
        if np.count_nonzero(refined != is_background) < MIN_CHANGE * len(values):
            break
        is_background = refined
    level, by_x, by_y, by_xy, by_xx, by_yy = surface
    background: Gray = level + (by_y + by_yy * y) * y + (by_x + by_xy * y + by_xx * x) * x
    return background.clip(0, 255)


@lru_cache(maxsize=32)  # at 60 kB: many images have the same size
def make_terms(height: int, width: int) -> tuple[Indices, Gray, Gray, Gray]:
    """Pixels to fit, about 1500, and the terms of the surface there; y as a column and x as a row, within -1..1."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    sample = np.arange(0, height * width, max(1, height * width // 1500))
    at_y, at_x = y[sample // width], x[sample % width]
    terms = np.stack([np.ones_like(at_x), at_x, at_y, at_x * at_y, at_x * at_x, at_y * at_y])
    return sample, terms, y[:, None], x


def quantile(values: Gray, share: float) -> float:
    """Not interpolated; np.median and np.quantile take three times as long for a thousand values."""
    position = int(share * len(values))
    return float(np.partition(values, position)[position])


def erase_dirt(ink: Gray) -> Gray:
    """Leave out specks of dirt, and components at the border if there is a large one inside."""
    height, width = ink.shape
    stride = width + 1  # no ink is between two rows, nor before the first
    buffer = np.zeros(1 + height * stride, np.float32)
    buffer[1:].reshape(height, stride)[:, :width] = ink
    is_ink = buffer > 0.05
    buffer *= is_ink
    pixels, edges = buffer[1:], np.flatnonzero(is_ink[1:] != is_ink[:-1])
    starts, ends = edges[::2], edges[1::2]  # of the runs: pixels with ink side by side in a row
    component = label_runs(starts, ends, stride)
    if component.any():
        mass = np.bincount(component, np.add.reduceat(pixels > 0.35, edges, dtype=np.intp)[::2])
        column = starts % stride
        touches = (starts < stride) | (starts >= pixels.size - stride) | (column == 0) | (ends % stride == width)
        inner_mass = np.where(np.bincount(component, touches), 0, mass)
        if inner_mass.max() > 0.1 * mass.max():
            mass = inner_mass
        is_dirt = (mass <= MIN_COMPONENT * mass.max())[component]
        for start, end in zip(starts[is_dirt].tolist(), ends[is_dirt].tolist(), strict=True):
            pixels[start:end] = 0
    return pixels.reshape(height, stride)[:, :width]


def label_runs(starts: Indices, ends: Indices, stride: int) -> Indices:
    """For each run the first run of its 8-connected component. Runs are intervals of pixels, `stride` to a row."""
    first = np.searchsorted(ends, starts - stride)  # from `first` to before `last` are its neighbours in the row above
    last = np.searchsorted(starts, ends - stride, side="right")
    parent = find_roots(np.where(first < last, first, np.arange(len(starts))))
    for run in np.flatnonzero(last - first > 1):  # it joins several
        for neighbor in range(first[run] + 1, last[run]):
            one, other = parent[run], parent[neighbor]
            while one != parent[one]:
                one = parent[one]
            while other != parent[other]:
                other = parent[other]
            parent[max(one, other)] = min(one, other)
    return find_roots(parent)


def find_roots(parent: Indices) -> Indices:
    for _ in range(len(parent).bit_length()):  # each doubles the length of the path
        parent = parent[parent]
    return parent
