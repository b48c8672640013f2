"""The interface of a data set: it fetches raw files into a folder, and reads them back as labelled images."""

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
    images: Callable[[int], Iterator[ImageArray]]  # from the channels, 1 or 3, to blocks; grey ones may come for 3
    locate: Callable[[int], str]  # from an index to the file and position of the image, for messages


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
        """How an image from elsewhere becomes an input of a network trained on this data set: `mnist` or `resize`."""

    def fetch(self, folder: Path, existing: Path, own_images: Path) -> FetchedFiles:
        """Bring the raw files into `folder`. Files that `existing`, the current raw folder, has may be copied."""

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        """Read the raw files. `source` is the content of source.json."""

    def check(self, existing: Path) -> None:
        """Raise UnavailableError if `fetch` would not find its files now."""
