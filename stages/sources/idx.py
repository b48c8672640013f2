"""Gzipped IDX files, the format that MNIST is published in, read as a stream of blocks and checked as they are read."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import StageError
from stages.sources.dataset import REFETCH


def shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape that the header declares: (count,) of labels, (count, height, width) of images."""
    with reading(path) as file:
        return header(path, file, dimensions)


def blocks(path: Path, dimensions: int, items: int = 1024) -> Iterator[NDArray[np.uint8]]:
    """The content, `items` labels or images at a time, and not a byte less or more than the header declares."""
    with reading(path) as file:
        count, *rest = header(path, file, dimensions)
        size = int(np.prod(rest))
        for start in range(0, count, items):
            wanted = min(items, count - start)
            data = file.read(wanted * size)
            if len(data) < wanted * size:
                raise StageError(f"{path}: truncated at item {start + len(data) // size} of {count}; {REFETCH}")
            yield np.frombuffer(data, np.uint8).reshape(wanted, *rest)
        if file.read(1):
            raise StageError(f"{path}: goes on after the {count} items that its header declares; {REFETCH}")


def header(path: Path, file: gzip.GzipFile, dimensions: int) -> tuple[int, ...]:
    start = file.read(4 + 4 * dimensions)
    wanted = 0x0800 | dimensions  # 08: unsigned bytes
    if len(start) < 4 or (magic := struct.unpack(">I", start[:4])[0]) != wanted:
        found = f"{magic:#010x}" if len(start) >= 4 else "nothing"
        raise StageError(f"{path}: wrong magic number: {found} where {wanted:#010x} should be; {REFETCH}")
    if len(start) < 4 + 4 * dimensions:
        raise StageError(f"{path}: truncated in its header; {REFETCH}")
    return struct.unpack(f">{dimensions}I", start[4:])


@contextmanager
def reading(path: Path) -> Iterator[gzip.GzipFile]:
    try:
        with gzip.open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro download`") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StageError(f"{path}: corrupted gzip file ({error}); {REFETCH}") from None
