"""The embedded digits: 1,797 real handwritten digits of 8x8 pixels that come with scikit-learn: no network.

They are laid out as MNIST's are, so that a picture of a digit is prepared alike for a network trained on either.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import StageError
from stages.core.files import atomic_write
from stages.sources.dataset import REFETCH, FetchedFiles, ImageArray, LabelledImages, RawData, with_channels
from stages.sources.decoding import resize_image

LEVELS = 16  # the brightest pixel, as published
SIDE, BOX = 28, 20  # of an image of MNIST, and of its digit


class EmbeddedDigits:
    preparation = "mnist"

    def fetch(self, folder: Path, have: Path, own: Path) -> FetchedFiles:
        from sklearn.datasets import load_digits  # a second of import that only this data set needs

        digits = load_digits()
        arrays = {"images.npy": digits.images.astype(np.uint8), "labels.npy": digits.target.astype(np.uint8)}
        for name, array in arrays.items():
            with atomic_write(folder / name) as beside, beside.open("wb") as file:
                np.save(file, array)
        classes = [str(label) for label in digits.target_names]
        return FetchedFiles("https://archive.ics.uci.edu/dataset/80", classes, list(arrays))

    def check(self, have: Path) -> None:
        """Always there."""

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        images, labels = load(folder / "images.npy"), load(folder / "labels.npy")
        if len(images) != len(labels):
            raise StageError(
                f"{folder}: images.npy holds {len(images)} images, but labels.npy {len(labels)} labels; {REFETCH}"
            )
        grey = np.stack([like_mnist(image) for image in np.round(images * (255 / LEVELS)).astype(np.uint8)])
        part = LabelledImages(
            labels=labels,
            images=lambda channels: iter([with_channels(grey, channels)]),
            name=lambda index: f"{folder / 'images.npy'}, image {index}",
            label_name=lambda index: f"{folder / 'labels.npy'}, label {index}",
        )
        return RawData(part, None)


def like_mnist(digit: ImageArray) -> ImageArray:
    """The digit, which fills its image from top to bottom, in a box of 20 x 20, its mass in the middle of 28 x 28."""
    box = resize_image(digit, BOX)
    mass = [np.average(np.arange(BOX) + 0.5, weights=box.sum(axis=axis)) for axis in (1, 0)]
    top, left = (int(np.clip(round(SIDE / 2 - middle), 0, SIDE - BOX)) for middle in mass)
    return np.pad(box, ((top, SIDE - BOX - top), (left, SIDE - BOX - left)))


def load(path: Path) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError) as error:
        raise StageError(f"{path}: not readable ({error}); {REFETCH}") from None
