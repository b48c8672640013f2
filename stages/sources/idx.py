"""Gzipped IDX files, the format that MNIST is published in: read in blocks, and checked while they are read."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import StageError
from stages.sources.dataset import REFETCH

MAX_RATIO = 1100  # of data to its gzipped size: DEFLATE cannot compress more


def read_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape in the header: (count,) of labels, (count, height, width) of images."""
    with open_idx(path, dimensions) as (_, shape):
        return shape


def read_blocks(path: Path, dimensions: int, size: int = 1024) -> Iterator[NDArray[np.uint8]]:
    """The items, labels or images, `size` at a time: exactly as many as the header declares."""
    with open_idx(path, dimensions) as (file, (count, *item_shape)):
        item_bytes = math.prod(item_shape)
        for start in range(0, count, size):
            items = min(size, count - start)
            data = file.read(items * item_bytes)
            if len(data) < items * item_bytes:
                raise StageError(f"{path}: truncated at item {start + len(data) // item_bytes} of {count}; {REFETCH}")
            yield np.frombuffer(data, np.uint8).reshape(items, *item_shape)
        if file.read(1):
            raise StageError(f"{path}: has more data than the {count} items that its header declares; {REFETCH}")


@contextmanager
def open_idx(path: Path, dimensions: int) -> Iterator[tuple[gzip.GzipFile, tuple[int, ...]]]:
    """The file after its header, and the shape in the header."""
    expected = struct.pack(">I", 0x0800 | dimensions)  # 08: unsigned bytes
    try:
        with gzip.open(path, "rb") as file:
            if (magic := file.read(4)) != expected:
                actual = f"0x{magic.hex()}" if magic else "nothing"
                raise StageError(f"{path}: wrong magic number: {actual} where 0x{expected.hex()} should be; {REFETCH}")
            if len(sizes := file.read(4 * dimensions)) < 4 * dimensions:
                raise StageError(f"{path}: truncated in its header; {REFETCH}")
            shape = struct.unpack(f">{dimensions}I", sizes)
            if math.prod(shape) > MAX_RATIO * path.stat().st_size:
                raise StageError(f"{path}: its header declares {shape}, more than the file can hold; {REFETCH}")
            yield file, shape
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro download`") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StageError(f"{path}: corrupted gzip file ({error}); {REFETCH}") from None
