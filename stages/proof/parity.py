"""Compares the outputs of two engines for the same images, and builds the sample of images to compare on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOISE_IMAGES = 16
EDGE_IMAGES = 9 + NOISE_IMAGES


@dataclass(frozen=True)
class Outputs:
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def predicted(self, classes: list[str]) -> list[str]:
        return [classes[label] for label in self.logits.argmax(axis=1)]


@dataclass(frozen=True)
class Difference:
    image_count: int
    logits_max: float
    logits_p999: float  # quantile 0.999 of the absolute errors
    probabilities_max: float
    probabilities_p999: float
    flips: int  # images with another predicted label
    flip_margin: float  # largest gap between the network's two highest logits at a flip; 0 without flips

    def mismatches(self, atol: float, flip_margin: float) -> list[str]:
        """Why the outputs do not match; empty if they do."""
        errors = {"logits": self.logits_max, "probabilities": self.probabilities_max}
        if not np.isfinite(list(errors.values())).all():
            return ["a number that is not finite"]
        reasons = [
            f"{name} off by {error:.3g}, more than atol {atol:g}" for name, error in errors.items() if error > atol
        ]
        if self.flip_margin > flip_margin:
            reasons.append(
                f"{self.flips} flipped labels, one decided by {self.flip_margin:.3g}, more than margin {flip_margin:g}"
            )
        return reasons


def compare_outputs(expected: Outputs, actual: Outputs) -> Difference:
    """`expected` is of the trained network, `actual` of the ONNX file."""
    logits = np.abs(expected.logits.astype(np.float64) - actual.logits)
    probabilities = np.abs(expected.probabilities.astype(np.float64) - actual.probabilities)
    flipped = expected.logits.argmax(axis=1) != actual.logits.argmax(axis=1)
    top_two = np.sort(expected.logits[flipped], axis=1)[:, -2:]
    return Difference(
        image_count=len(flipped),
        logits_max=float(logits.max()),
        logits_p999=float(np.quantile(logits, 0.999)),
        probabilities_max=float(probabilities.max()),
        probabilities_p999=float(np.quantile(probabilities, 0.999)),
        flips=int(flipped.sum()),
        flip_margin=float((top_two[:, 1] - top_two[:, 0]).max(initial=0.0)),
    )


def build_sample(images: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.uint8]:
    """Return `count` images: edge images, then a random choice of `images`, then noise if these are too few."""
    edges = edge_images(images.shape[1], images.shape[2], seed)[:count]
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = generator.permutation(len(images))[: count - len(edges)]
    missing = count - len(edges) - len(chosen)
    noise = generator.integers(0, 256, (missing, *images.shape[1:]), dtype=np.uint8)
    return np.concatenate([edges, images[np.sort(chosen)], noise])


def edge_images(channels: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Images that no data set has: all dark, all bright, two checkerboards, five single bright pixels, noise."""
    last, middle = size - 1, size // 2
    board = (np.indices((size, size)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = np.zeros((5, size, size), np.uint8)
    pixels[range(5), [0, 0, last, last, middle], [0, last, 0, last, middle]] = 255
    patterns = np.concatenate([np.stack([np.zeros_like(board), np.full_like(board, 255), board, 255 - board]), pixels])
    generator = np.random.Generator(np.random.PCG64(seed))
    noise = generator.integers(0, 256, (NOISE_IMAGES, channels, size, size), dtype=np.uint8)
    return np.concatenate([np.repeat(patterns[:, None], channels, axis=1), noise])


def thin_sample(sample: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return `count` images of a sample at even intervals; half of them edge images, if there are enough."""
    edges = np.arange(0, EDGE_IMAGES, 2)[: count // 2]
    others = np.linspace(EDGE_IMAGES, len(sample) - 1, count - len(edges)).astype(int)
    thinned: NDArray[np.uint8] = sample[np.concatenate([edges, others])]
    return thinned
