"""The embedded data set: 1,797 real handwritten digits of 8x8 pixels that scikit-learn contains. No network is needed.

They are laid out as MNIST's digits are, so that an image is prepared in the same way for networks trained on either.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lockstep.fitting import fit_to_size
from stages.core.errors import StageError
from stages.core.files import atomic_write
from stages.sources.dataset import REFETCH, FetchedFiles, ImageArray, LabelledImages, RawData

MAX_LEVEL, DIGIT_SHAPE = 16, (8, 8)  # the largest value of a pixel, and the images, as published
SIDE, BOX_SIDE = 28, 20  # pixels of an MNIST image, and of the box that its digit fills
IMAGES_FILE, LABELS_FILE = "images.npy", "labels.npy"


class EmbeddedDigits:
    preparation = "mnist"

    def fetch(self, folder: Path, existing: Path, own_images: Path) -> FetchedFiles:
        from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

        digits = load_digits()
        for name, array in ((IMAGES_FILE, digits.images), (LABELS_FILE, digits.target)):
            with atomic_write(folder / name) as tmp, tmp.open("wb") as file:
                np.save(file, array.astype(np.uint8))
        classes = [str(label) for label in digits.target_names]
        return FetchedFiles("https://archive.ics.uci.edu/dataset/80", classes, [IMAGES_FILE, LABELS_FILE])

    def check(self, existing: Path, own_images: Path) -> None:
        """The digits are always available."""

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        images, labels = read_array(folder / IMAGES_FILE, DIGIT_SHAPE), read_array(folder / LABELS_FILE, ())
        if len(images) != len(labels):
            raise StageError(
                f"{folder}: {IMAGES_FILE} holds {len(images)} images, but {LABELS_FILE} {len(labels)} labels; {REFETCH}"
            )
        grey = np.stack([center_digit(image) for image in np.round(images * (255 / MAX_LEVEL)).astype(np.uint8)])
        data = LabelledImages(
            labels=labels,
            images=lambda _: iter([grey]),
            locate=lambda index: f"{folder / IMAGES_FILE}, image {index}",
        )
        return RawData(data, None)


def center_digit(digit: ImageArray) -> ImageArray:
    """Scale the digit to a box of 20x20 and place the box so that its centre of mass is the middle of 28x28."""
    box = np.asarray(fit_to_size(Image.fromarray(digit), BOX_SIDE, BOX_SIDE, "stretch"))
    center = [np.average(np.arange(BOX_SIDE) + 0.5, weights=box.sum(axis=axis)) for axis in (1, 0)]
    top, left = (int(np.clip(round(SIDE / 2 - middle), 0, SIDE - BOX_SIDE)) for middle in center)
    return np.pad(box, ((top, SIDE - BOX_SIDE - top), (left, SIDE - BOX_SIDE - left)))


def read_array(path: Path, item_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except Exception as error:  # of many types, for a damaged header
        raise StageError(f"{path}: not readable ({' '.join(str(error).split()):.300}); {REFETCH}") from None
    if getattr(array, "dtype", None) != np.uint8 or array.shape[1:] != item_shape:
        raise StageError(f"{path}: does not hold what download writes; {REFETCH}")
    return array
