"""The interface of a data set, and what its methods return."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]  # images of one size: (count, height, width) grey, or (count, height, width, 3)
REFETCH = "run `dvc repro -f download` to fetch it again"


@dataclass(frozen=True)
class LabelledImages:
    labels: NDArray[Any]  # integers, of as few bytes as the data set needs
    # Called with the number of channels, 1 or 3; gives all images in blocks, in the order of the labels. Grey blocks
    # are allowed for 3 channels. Blocks may be of different heights and widths: preprocess scales them.
    images: Callable[[int], Iterator[ImageArray]]
    locate: Callable[[int], str]  # the file and position of the image with this index, for error messages
    names: list[str] | None = None  # of the image files, for reports; None if images have no files of their own


@dataclass(frozen=True)
class RawData:
    train: LabelledImages
    test: LabelledImages | None  # None: published without a test split


@dataclass(frozen=True)
class FetchedFiles:
    origin: str
    classes: list[str]
    files: list[str]  # relative to the folder


class Dataset(Protocol):
    @property
    def preparation(self) -> str:
        """How consumers prepare an image of their own for a network that was trained on this data set.

        `mnist`: grey, cropped and centred as MNIST's digits are. `resize`: scaled to the network's size, as
        `preprocess.fit` says.
        """

    def fetch(self, folder: Path, existing: Path, own_images: Path) -> FetchedFiles:
        """Write the raw files into `folder`, which replaces the raw folder when this has returned.

        `existing` is the raw folder as it is now: a file that it already has can be copied from there. `own_images` is
        the folder of the person's own images; only the data set `own` reads it.
        """

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        """Read the raw files as uint8 images. `source` is the content of source.json, which `fetch_dataset` writes."""

    def check(self, existing: Path, own_images: Path) -> None:
        """Raise UnavailableError, or another StageError, if `fetch` would not find its files now.

        The data set `own` prints what it has.
        """
