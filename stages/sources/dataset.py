"""What a data set is to the stages: raw files that it fetches into a folder, and reads back as labelled images."""

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
    """Labelled images; `name` and `label_name` say where the image or label of an index stands."""

    labels: NDArray[Any]  # whole numbers, of as few bytes as the data set needs
    images: Callable[[int], Iterator[ImageArray]]  # takes the channels, 1 or 3; gives images in the order of the labels
    name: Callable[[int], str]
    label_name: Callable[[int], str]


@dataclass(frozen=True)
class RawData:
    train: LabelledImages
    test: LabelledImages | None  # None: published without a split


@dataclass(frozen=True)
class FetchedFiles:
    origin: str
    classes: list[str]
    files: list[str]  # relative to the folder


class Dataset(Protocol):
    @property
    def preparation(self) -> str:
        """How a foreign picture becomes an input of a network trained on this: `mnist` or `resize`."""

    def fetch(self, folder: Path, have: Path, own: Path) -> FetchedFiles:
        """Bring the raw files into `folder`; those that `have` holds already need not be fetched again."""

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        """The content of the raw files, checked as far as its format can be wrong."""

    def check(self, have: Path) -> None:
        """Raise Unavailable if `fetch` would not find its files now."""


def with_channels(grey: ImageArray, channels: int) -> ImageArray:
    """Grey images, or one, as they are or with their grey in three channels."""
    return grey if channels == 1 else np.repeat(grey[..., None], channels, axis=-1)
