"""The embedded digits: 1,797 real handwritten digits of 8x8 pixels that come with scikit-learn: no network."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.problem import Problem
from stages.common.raw import AGAIN, Fetched, Part, Raw, colored
from stages.common.whole import whole

LEVELS = 16  # the brightest pixel, as published


class Embedded:
    preparation = "resize"

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
        grey = np.round(images * (255 / LEVELS)).astype(np.uint8)
        part = Part(
            labels=labels,
            images=lambda channels: iter([colored(grey, channels)]),
            name=lambda index: f"{folder / 'images.npy'}, image {index}",
            label_name=lambda index: f"{folder / 'labels.npy'}, label {index}",
        )
        return Raw(part, None)


def load(path: Path) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return array
    except (OSError, ValueError, EOFError) as error:
        raise Problem(f"{path}: not readable ({error}); {AGAIN}") from None
