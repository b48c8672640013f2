"""Outputs that appear whole or not at all: written beside their place, then renamed into it."""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core.errors import StageError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what was written there takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    remove_path(beside)  # a killed run's
    try:
        yield beside
        if path.is_dir():
            former = path.with_name(f".{path.name}.former.partial")
            remove_path(former)
            path.rename(former)
            beside.rename(path)
            remove_path(former)
        else:
            beside.replace(path)
    except OSError as error:
        if error.filename is not None:  # of another file than what is written here
            raise
        raise StageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        remove_path(beside)


def remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
