"""The embedded digits: 1,797 real handwritten digits of 8x8 pixels that come with scikit-learn: no network.

They are laid out as MNIST's are, so that a picture of a digit is prepared alike for a network trained on either.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.decoding import scaled
from stages.common.problem import Problem
from stages.common.raw import AGAIN, Chunk, Fetched, Part, Raw, colored
from stages.common.whole import whole

LEVELS = 16  # the brightest pixel, as published
SIDE, BOX = 28, 20  # of an image of MNIST, and of its digit


class Embedded:
    preparation = "mnist"

    def fetch(self, folder: Path, have: Path, own: Path) -> Fetched:
        from sklearn.datasets import load_digits  # a second of import that only this data set needs

        digits = load_digits()
        arrays = {"images.npy": digits.images.astype(np.uint8), "labels.npy": digits.target.astype(np.uint8)}
        for name, array in arrays.items():
            with whole(folder / name) as beside, beside.open("wb") as file:
                np.save(file, array)
        classes = [str(label) for label in digits.target_names]
        return Fetched("https://archive.ics.uci.edu/dataset/80", classes, list(arrays))

    def check(self, have: Path) -> None:
        """Always there."""

    def read(self, folder: Path, source: dict[str, Any]) -> Raw:
        images, labels = load(folder / "images.npy"), load(folder / "labels.npy")
        if len(images) != len(labels):
            raise Problem(
                f"{folder}: images.npy holds {len(images)} images, but labels.npy {len(labels)} labels; {AGAIN}"
            )
        grey = np.stack([like_mnist(image) for image in np.round(images * (255 / LEVELS)).astype(np.uint8)])
        part = Part(
            labels=labels,
            images=lambda channels: iter([colored(grey, channels)]),
            name=lambda index: f"{folder / 'images.npy'}, image {index}",
            label_name=lambda index: f"{folder / 'labels.npy'}, label {index}",
        )
        return Raw(part, None)


def like_mnist(digit: Chunk) -> Chunk:
    """The digit, which fills its image from top to bottom, in a box of 20 x 20, its mass in the middle of 28 x 28."""
    box = scaled(digit, BOX)
    mass = [np.average(np.arange(BOX) + 0.5, weights=box.sum(axis=axis)) for axis in (1, 0)]
    top, left = (int(np.clip(round(SIDE / 2 - middle), 0, SIDE - BOX)) for middle in mass)
    return np.pad(box, ((top, SIDE - BOX - top), (left, SIDE - BOX - left)))


def load(path: Path) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError) as error:
        raise Problem(f"{path}: not readable ({error}); {AGAIN}") from None
