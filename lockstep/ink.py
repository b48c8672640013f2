"""A grey picture -> how much ink is at each pixel, in 0..1, whatever the light, the paper and the pen."""

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import ImageError

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]

FAINT = 12.0  # a picture in which nothing differs from its ground by more, of 255, holds no ink
SPECK = 0.04  # of the largest piece of ink: what is smaller is dirt


def find_ink(grey: Grey) -> Grey:
    """Ink is what stands out from the ground, to the side to which more stands out."""
    ground = estimate_background(grey)
    apart = grey - ground
    if (apart**3).sum() < 0:  # dark ink
        apart = -apart
    other = -apart[apart < 0]  # on this side there is no ink
    noise = 1.4826 * float(np.median(other)) if other.size else 0.0
    ink = np.maximum(apart, 0)
    full = strength(ink, noise)
    if full < max(FAINT, 4 * noise):
        raise ImageError("shows nothing that stands out from its ground")
    low = min(max(2.5 * noise, 0.08 * full), 0.4 * full)
    ink = np.clip((ink - low) / (full - low), 0, 1).astype(np.float32)
    return np.where(pieces(ink > 0.35, ink > 0.05), ink, 0).astype(np.float32)


def estimate_background(grey: Grey) -> Grey:
    """The ground under the ink: a quadratic surface through the pixels that are not ink."""
    height, width = grey.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)
    values = grey.ravel()
    step = max(1, len(values) // 1500)
    some, seen = terms[::step], values[::step]
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    near = np.abs(seen - np.median(border)) <= max(30.0, 2 * float(np.median(np.abs(border - np.median(border)))))
    surface = np.zeros(6, np.float32)
    surface[0] = np.median(border)
    for _ in range(8):
        if near.sum() < 12:
            break
        part = some[near]
        surface = np.linalg.solve(part.T @ part + 1e-3 * np.eye(6, dtype=np.float32), part.T @ seen[near])
        away = np.abs(seen - some @ surface)
        close = np.median(away[near])
        then = away <= max(8.0, 4 * float(close))
        if (then == near).all():
            break
        near = then
    return np.clip((terms @ surface).reshape(grey.shape), 0, 255).astype(np.float32)


def strength(ink: Grey, noise: float) -> float:
    """How far full ink stands out: what a tenth of the inked pixels pass."""
    inked = ink[ink > max(3 * noise, 0.25 * float(ink.max()))]
    return float(np.quantile(inked, 0.9)) if inked.size else 0.0


def pieces(core: Mask, whole: Mask) -> Mask:
    """The ink that belongs to the drawing: no specks, and nothing from the border beside a piece inside."""
    labels, count = connected(whole)
    if count <= 1:
        return whole
    mass = np.bincount(labels[core], minlength=count + 1).astype(float)
    mass[0] = 0
    edge = np.zeros(count + 1, bool)
    edge[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = True
    inner = np.where(edge, 0, mass)
    if inner.max() > 0.1 * mass.max():
        mass = inner
    chosen: Mask = mass > SPECK * mass.max()
    return np.take(chosen, labels)


def connected(mask: Mask) -> tuple[NDArray[np.int64], int]:
    """Number the pieces of the mask from 1; diagonal neighbours belong together."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(height + 1))
    begin, end = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, stop = int(first[row - 1]), int(first[row])
        for run in range(stop, int(first[row + 1])):
            while above < stop and end[above] < begin[run]:
                above += 1
            other = above
            while other < stop and begin[other] <= end[run]:
                parent[root(other)] = root(run)
                other += 1
    names: dict[int, int] = {}
    labels = np.zeros(mask.shape, np.int64)
    for run, row in enumerate(rows.tolist()):
        labels[row, begin[run] : end[run]] = names.setdefault(root(run), len(names) + 1)
    return labels, len(names)
