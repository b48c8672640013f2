"""Finds how much ink, within 0..1, is at each pixel of a grayscale image, for any light, paper and pen."""

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import ImageError

Gray = NDArray[np.float32]
Mask = NDArray[np.bool_]

MIN_CONTRAST = 12.0  # of 255: if no ink stands out further from the background, the image shows nothing
MIN_COMPONENT = 0.04  # of the mass of the largest component: smaller ones are dirt


def find_ink(gray: Gray) -> Gray:
    """Ink is what stands out from the background, to the side (darker or brighter) to which more stands out."""
    contrast = gray - estimate_background(gray)
    if (contrast**3).sum() < 0:  # dark ink
        contrast = -contrast
    opposite = -contrast[contrast < 0]  # this side has noise only
    noise = 1.4826 * float(np.median(opposite)) if opposite.size else 0.0  # standard deviation of normal noise
    ink = np.maximum(contrast, 0)
    full = full_ink_contrast(ink, noise)
    if full < max(MIN_CONTRAST, 4 * noise):
        raise ImageError("nothing stands out from the background")
    threshold = min(max(2.5 * noise, 0.08 * full), 0.4 * full)
    ink = np.clip((ink - threshold) / (full - threshold), 0, 1).astype(np.float32)
    return np.where(select_components(ink > 0.35, ink > 0.05), ink, 0).astype(np.float32)


def estimate_background(gray: Gray) -> Gray:
    """Fit a quadratic surface by least squares to the pixels that are not ink, which is refined in each iteration."""
    height, width = gray.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)
    values = gray.ravel()
    step = max(1, len(values) // 1500)
    sampled_terms, sampled_values = terms[::step], values[::step]
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    border_level = np.median(border)
    tolerance = max(30.0, 2 * float(np.median(np.abs(border - border_level))))
    is_background = np.abs(sampled_values - border_level) <= tolerance
    surface = np.zeros(6, np.float32)
    surface[0] = border_level
    for _ in range(8):
        if is_background.sum() < 12:
            break
        fitted = sampled_terms[is_background]
        normal_matrix = fitted.T @ fitted + 1e-3 * np.eye(6, dtype=np.float32)
        surface = np.linalg.solve(normal_matrix, fitted.T @ sampled_values[is_background])
        residuals = np.abs(sampled_values - sampled_terms @ surface)
        refined = residuals <= max(8.0, 4 * float(np.median(residuals[is_background])))
        if (refined == is_background).all():
            break
        is_background = refined
    return np.clip((terms @ surface).reshape(gray.shape), 0, 255).astype(np.float32)


def full_ink_contrast(ink: Gray, noise: float) -> float:
    """The contrast of full ink: a tenth of the inked pixels exceed it."""
    inked = ink[ink > max(3 * noise, 0.25 * float(ink.max()))]
    return float(np.quantile(inked, 0.9)) if inked.size else 0.0


def select_components(core: Mask, mask: Mask) -> Mask:
    """Leave out specks of dirt, and components at the border if there is a large one inside."""
    labels, count = label_components(mask)
    if count <= 1:
        return mask
    mass = np.bincount(labels[core], minlength=count + 1).astype(float)
    mass[0] = 0
    at_border = np.zeros(count + 1, bool)
    at_border[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = True
    inner_mass = np.where(at_border, 0, mass)
    if inner_mass.max() > 0.1 * mass.max():
        mass = inner_mass
    selected: Mask = mass > MIN_COMPONENT * mass.max()
    return np.take(selected, labels)


def label_components(mask: Mask) -> tuple[NDArray[np.int64], int]:
    """Number the 8-connected components from 1 and count them: union-find over the runs of each row."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    parent = list(range(len(rows)))

    def find_root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(height + 1))  # the first run of each row
    begin, end = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, stop = int(first[row - 1]), int(first[row])
        for run in range(stop, int(first[row + 1])):
            while above < stop and end[above] < begin[run]:
                above += 1
            neighbor = above
            while neighbor < stop and begin[neighbor] <= end[run]:
                parent[find_root(neighbor)] = find_root(run)
                neighbor += 1
    numbers: dict[int, int] = {}
    labels = np.zeros(mask.shape, np.int64)
    for run, row in enumerate(rows.tolist()):
        labels[row, begin[run] : end[run]] = numbers.setdefault(find_root(run), len(numbers) + 1)
    return labels, len(numbers)
