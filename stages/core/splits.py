"""The folder of splits: uint8 images and labels as .npy, opened by memory map, and one JSON that describes them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from stages.core.errors import StageError

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[Split, ...] = ("train", "validation", "test")
INFO_FILE = "about.json"
AGAIN = "run `dvc repro preprocess`"


class SplitsInfo(pydantic.BaseModel):
    """What preprocess knows of the splits and every later stage needs."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    dataset: str
    origin: str
    preparation: Literal["mnist", "resize"]
    classes: list[str]
    channels: int
    size: int
    counts: dict[Split, int]
    counts_by_class: dict[Split, list[int]]
    mean: list[float]  # of the training pixels in 0..1, a number for each channel
    std: list[float]


def read_splits_info(folder: Path) -> SplitsInfo:
    try:
        return SplitsInfo.model_validate_json((folder / INFO_FILE).read_bytes())
    except FileNotFoundError:
        raise StageError(f"{folder / INFO_FILE}: missing; {AGAIN}") from None
    except pydantic.ValidationError as error:
        raise StageError(
            f"{folder / INFO_FILE}: not what preprocess writes ({error.error_count()} errors); {AGAIN}"
        ) from None


def read_images(folder: Path, split: Split) -> NDArray[np.uint8]:
    """(count, channels, height, width), on disk until it is touched."""
    return open_npy(folder / f"{split}-images.npy", 4)


def read_labels(folder: Path, split: Split) -> NDArray[np.int64]:
    """(count,), in memory."""
    return np.array(open_npy(folder / f"{split}-labels.npy", 1), np.int64)


def open_npy(path: Path, dimensions: int) -> NDArray[Any]:
    try:
        # Copy on write: torch warns of arrays that it may not write, and never writes to these.
        array: NDArray[Any] = np.load(path, mmap_mode="c") if path.stat().st_size > 128 else np.load(path)
    except FileNotFoundError:
        raise StageError(f"{path}: missing; {AGAIN}") from None
    except (ValueError, EOFError) as error:
        raise StageError(f"{path}: not a whole .npy file ({error}); {AGAIN}") from None
    if array.ndim != dimensions:
        raise StageError(f"{path}: has {array.ndim} dimensions where {dimensions} should be; {AGAIN}")
    return array


class NpyWriter:
    """A .npy file of a known shape, written block by block: it needs the memory of one block."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.file, self.dtype, self.missing = path.open("wb"), np.dtype(dtype), int(np.prod(shape))
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, description)

    def write(self, block: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(block, self.dtype).tobytes())
        self.missing -= block.size


@contextmanager
def npy_writer(path: Path, shape: tuple[int, ...], dtype: str) -> Iterator[NpyWriter]:
    array = NpyWriter(path, shape, dtype)
    with array.file:
        yield array
    assert array.missing == 0, f"{path}: {array.missing} numbers short of its shape"


def stratified_mask(labels: NDArray[Any], fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for a seeded share of the items: the same share of each class, as near as whole numbers allow."""
    shares = np.bincount(labels) * fraction
    quota = np.floor(shares).astype(int)
    missing = round(float(shares.sum())) - int(quota.sum())
    quota[np.argsort(quota - shares, kind="stable")[:missing]] += 1  # to the largest remainders
    taken = np.zeros(len(labels), np.bool_)
    for label, number in enumerate(quota):
        members = np.flatnonzero(labels == label)
        taken[members[random.Random(f"{seed}/{label}").sample(range(len(members)), number)]] = True
    return taken
