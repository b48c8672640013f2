"""The folder of splits: uint8 images and labels as .npy, opened by memory map, and one JSON that describes them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from stages.common.problem import Problem

Split = Literal["train", "validation", "test"]
NAMES: tuple[Split, ...] = ("train", "validation", "test")
ABOUT = "about.json"
AGAIN = "run `dvc repro preprocess`"


class About(pydantic.BaseModel):
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


def read_about(folder: Path) -> About:
    try:
        return About.model_validate_json((folder / ABOUT).read_bytes())
    except FileNotFoundError:
        raise Problem(f"{folder / ABOUT}: missing; {AGAIN}") from None
    except pydantic.ValidationError as error:
        raise Problem(f"{folder / ABOUT}: not what preprocess writes ({error.error_count()} errors); {AGAIN}") from None


def read_images(folder: Path, split: Split) -> NDArray[np.uint8]:
    """(count, channels, height, width), on disk until it is touched."""
    return opened(folder / f"{split}-images.npy", 4)


def read_labels(folder: Path, split: Split) -> NDArray[np.int64]:
    """(count,), in memory."""
    return np.array(opened(folder / f"{split}-labels.npy", 1), np.int64)


def opened(path: Path, dimensions: int) -> NDArray[Any]:
    try:
        # Copy on write: torch warns of arrays that it may not write, and never writes to these.
        array: NDArray[Any] = np.load(path, mmap_mode="c") if path.stat().st_size > 128 else np.load(path)
    except FileNotFoundError:
        raise Problem(f"{path}: missing; {AGAIN}") from None
    except (ValueError, EOFError) as error:
        raise Problem(f"{path}: not a whole .npy file ({error}); {AGAIN}") from None
    if array.ndim != dimensions:
        raise Problem(f"{path}: has {array.ndim} dimensions where {dimensions} should be; {AGAIN}")
    return array


class Growing:
    """A .npy file of a known shape, written block by block: it needs the memory of one block."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.file, self.dtype, self.missing = path.open("wb"), np.dtype(dtype), int(np.prod(shape))
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, description)

    def write(self, block: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(block, self.dtype).tobytes())
        self.missing -= block.size


@contextmanager
def growing(path: Path, shape: tuple[int, ...], dtype: str) -> Iterator[Growing]:
    array = Growing(path, shape, dtype)
    with array.file:
        yield array
    assert array.missing == 0, f"{path}: {array.missing} numbers short of its shape"


def stratified(labels: NDArray[Any], fraction: float, seed: int) -> NDArray[np.bool_]:
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
