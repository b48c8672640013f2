"""Atomic outputs: written under a temporary name in the same folder, then renamed."""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core.errors import StageError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path. The file or folder written there replaces `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp, previous = (path.with_name(f".{path.name}{end}") for end in (".partial", ".previous.partial"))
    for left in (tmp, previous):  # by a killed run
        remove_path(left)
    try:
        yield tmp
        if path.is_dir():  # a folder that is not empty cannot be replaced by a rename
            path.rename(previous)
            tmp.rename(path)
            remove_path(previous)
        else:
            tmp.replace(path)
    except OSError as error:
        if error.filename is not None:  # the error of another file that the block used
            raise
        raise StageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        remove_path(tmp)


def remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def file_sha256(path: Path) -> str:
    """The hash of the file's bytes; empty if there is no such file."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
