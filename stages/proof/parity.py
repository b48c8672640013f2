"""Two answers to the same images compared: how far apart their numbers are, and which labels flip."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
NOISES = 16
EDGES = 9 + NOISES  # edge images in all


@dataclass(frozen=True)
class Outputs:
    logits: Array
    probabilities: Array


@dataclass(frozen=True)
class Difference:
    logits_max: float
    logits_p999: float
    probabilities_max: float
    probabilities_p999: float
    flips: int
    flip_margin: float  # the widest gap between the network's two highest logits at a flip: 0 without flips
    finite: bool

    def reasons(self, atol: float, margin: float) -> list[str]:
        """Why the answers are not the same; empty if they are."""
        if not self.finite:
            return ["a number that is not finite"]
        wrong = []
        for name, error in (("logits", self.logits_max), ("probabilities", self.probabilities_max)):
            if error > atol:
                wrong.append(f"{name} off by {error:.3g}, more than atol {atol:g}")
        if self.flip_margin > margin:
            wrong.append(
                f"{self.flips} flipped labels, one decided by {self.flip_margin:.3g}, more than margin {margin:g}"
            )
        return wrong


def compare_outputs(network: Outputs, file: Outputs) -> Difference:
    logits, probabilities = (
        absolute_error(network.logits, file.logits),
        absolute_error(network.probabilities, file.probabilities),
    )
    flipped = network.logits.argmax(axis=1) != file.logits.argmax(axis=1)
    two = np.sort(network.logits[flipped], axis=1)[:, -2:]
    return Difference(
        logits_max=float(logits.max()),
        logits_p999=float(np.quantile(logits, 0.999)),
        probabilities_max=float(probabilities.max()),
        probabilities_p999=float(np.quantile(probabilities, 0.999)),
        flips=int(flipped.sum()),
        flip_margin=float((two[:, 1] - two[:, 0]).max(initial=0.0)),
        finite=bool(np.isfinite(logits).all() and np.isfinite(probabilities).all()),
    )


def absolute_error(ours: Array, theirs: Array) -> NDArray[np.float64]:
    return np.abs(ours.astype(np.float64) - theirs.astype(np.float64))


def edge_images(channels: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Images that no data set holds: all dark, all bright, checkerboards, noise, single bright pixels."""
    rows, columns = np.indices((size, size))
    board = ((rows + columns) % 2 * 255).astype(np.uint8)
    flat = [np.zeros((size, size), np.uint8), np.full((size, size), 255, np.uint8), board, 255 - board]
    for row, column in ((0, 0), (0, size - 1), (size - 1, 0), (size - 1, size - 1), (size // 2, size // 2)):
        pixel = np.zeros((size, size), np.uint8)
        pixel[row, column] = 255
        flat.append(pixel)
    noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (NOISES, channels, size, size), dtype=np.uint8)
    return np.concatenate([np.repeat(np.stack(flat)[:, None], channels, axis=1), noise])


def parity_sample(images: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.uint8]:
    """Edge images, then a seeded choice of the images, and noise for as many as there are too few: `count` in all."""
    edges = edge_images(images.shape[1], images.shape[2], seed)[:count]
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = generator.permutation(len(images))[: count - len(edges)]
    missing = count - len(edges) - len(chosen)
    noise = generator.integers(0, 256, (missing, *images.shape[1:]), dtype=np.uint8)
    return np.concatenate([edges, images[np.sort(chosen)], noise])


def thin_sample(sampled: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Some of a sample: half of them edge images, as far as there are."""
    edges = np.arange(0, EDGES, 2)[: count // 2]
    others = np.linspace(EDGES, len(sampled) - 1, count - len(edges)).astype(int)
    chosen: NDArray[np.uint8] = sampled[np.concatenate([edges, others])]
    return chosen
