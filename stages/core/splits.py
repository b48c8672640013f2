"""The format of the folder of splits: memory-mapped .npy files of images and labels, and a JSON that describes them."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from stages.core.errors import StageError

Split = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[Split, ...] = ("train", "validation", "test")
SPLITS_INFO_FILE = "about.json"
Fit = Literal["stretch", "crop", "pad"]  # how an image of other proportions becomes a square
RERUN = "run `dvc repro preprocess`"


class SplitsInfo(pydantic.BaseModel):
    """The content of SPLITS_INFO_FILE."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    dataset: str
    origin: str
    preparation: Literal["mnist", "resize"]
    classes: list[str]
    channels: int
    size: int
    fit: Fit = "stretch"
    counts: dict[Split, int]
    counts_by_class: dict[Split, list[int]]
    mean: list[float]  # of the training pixels in 0..1, one number for each channel
    std: list[float]


def read_splits_info(folder: Path) -> SplitsInfo:
    path = folder / SPLITS_INFO_FILE
    try:
        return SplitsInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: missing; {RERUN}") from None
    except pydantic.ValidationError as error:
        raise StageError(f"{path}: not what preprocess writes ({error.error_count()} errors); {RERUN}") from None


def read_images(folder: Path, split: Split) -> NDArray[np.uint8]:
    """(count, channels, height, width), memory-mapped."""
    return open_npy(folder / f"{split}-images.npy", 4)


def read_labels(folder: Path, split: Split) -> NDArray[np.int64]:
    """(count,), in memory."""
    return np.array(open_npy(folder / f"{split}-labels.npy", 1), np.int64)


def read_names(folder: Path, split: Split) -> list[str] | None:
    """The name of the file of each image; None for a data set whose images have no files of their own."""
    path = names_file(folder, split)
    if not path.exists():
        return None
    try:
        names = path.read_text(encoding="utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not UTF-8 ({error.reason}); {RERUN}") from None
    if len(names) != (count := len(open_npy(folder / f"{split}-labels.npy", 1))):
        raise StageError(f"{path}: has {len(names)} names of {count} images; {RERUN}")
    return names


def names_file(folder: Path, split: Split) -> Path:
    """One name on each line."""
    return folder / f"{split}-names.txt"


def name_images(folder: Path, split: Split, count: int) -> list[str]:
    """What reports call the `count` images of the split: their file names, or their indices in the split."""
    return read_names(folder, split) or [str(index) for index in range(count)]


def hash_split(folder: Path, split: Split) -> str:
    """The start of the SHA-256 of the split's images and labels: equal only if a model is tested on the same images."""
    digest = hashlib.sha256()
    for part in ("images", "labels"):
        with (folder / f"{split}-{part}.npy").open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:12]


def open_npy(path: Path, dimensions: int) -> NDArray[Any]:
    try:
        # Copy on write, since torch warns of arrays that are not writable. A file of 128 bytes or fewer is a header
        # without data, which cannot be mapped.
        array: NDArray[Any] = np.load(path, mmap_mode="c") if path.stat().st_size > 128 else np.load(path)
    except FileNotFoundError:
        raise StageError(f"{path}: missing; {RERUN}") from None
    except Exception as error:  # of many types, for a damaged header
        raise StageError(f"{path}: not a whole .npy file ({' '.join(str(error).split()):.300}); {RERUN}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise StageError(f"{path}: not an array of integers; {RERUN}")
    if array.ndim != dimensions:
        raise StageError(f"{path}: has {array.ndim} dimensions where {dimensions} should be; {RERUN}")
    return array


@contextmanager
def npy_writer(path: Path, shape: tuple[int, ...], dtype: str) -> Iterator[BinaryIO]:
    """A .npy file of a known shape. The block writes C-contiguous arrays into it, as many as the shape takes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size += file.tell()
        yield file
        assert file.tell() == size, f"{path}: {size - file.tell()} bytes short of its shape"


def stratified_mask(labels: NDArray[Any], fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for a random fraction of the items: the same fraction of each class, as near as whole numbers allow."""
    exact = np.bincount(labels) * fraction
    counts = np.floor(exact).astype(int)
    missing = round(float(exact.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1  # largest remainders first
    mask = np.zeros(len(labels), np.bool_)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        mask[members[random.Random(f"{seed}/{label}").sample(range(len(members)), count)]] = True
    return mask
