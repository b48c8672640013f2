"""Writes predictions, and the errors of images without one, as a table, JSON lines, CSV or Parquet."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lockstep.classifier import Prediction
from lockstep.errors import ImageError, LockstepError

SUFFIX_FORMATS = {".txt": "table", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
FORMATS = tuple(dict.fromkeys(SUFFIX_FORMATS.values()))
ROW_GROUP = 10_000  # rows of a Parquet file that are in memory at once

Row = tuple[str, Prediction | ImageError]


def choose_format(name: str | None, output: Path | None) -> str:
    """The named format, or that of the file's suffix; LockstepError if it cannot be written there."""
    try:
        if output and output.exists() and not output.is_file():
            raise LockstepError(f"{output} is not a file; without --output the results go to the standard output")
    except OSError as error:
        raise LockstepError(f"{output!s:.80}: cannot be written: {error.strerror or error}") from None
    if name is None and output and output.suffix.lower() not in SUFFIX_FORMATS:
        raise LockstepError(f"{output}: its suffix names no format; add --format {', '.join(FORMATS)}")
    name = name or (SUFFIX_FORMATS[output.suffix.lower()] if output else "table")
    if name == "parquet":
        if output is None:
            raise LockstepError("--format parquet needs --output FILE")
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise LockstepError("Parquet needs pyarrow: pip install pyarrow, or choose --format csv") from None
    return name


@contextmanager
def open_writer(name: str, output: Path | None, classes: Sequence[str], top: int) -> Iterator["Writer"]:
    """The file appears whole when the block ends, or not at all. Without one, rows are printed at once."""
    if output is None:
        yield WRITERS[name](sys.stdout, classes, top)
        return
    output = output.resolve()  # the file, not a link to it, is replaced
    tmp = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with open_stream(tmp, is_binary=name == "parquet") as file:
            writer = WRITERS[name](file, classes, top)
            try:
                yield writer
            finally:
                writer.close()
        tmp.replace(output)
    except OSError as error:
        raise LockstepError(f"{output}: cannot be written: {error.strerror or error}") from None
    finally:
        tmp.unlink(missing_ok=True)


def open_stream(path: Path, is_binary: bool) -> IO[Any]:
    if is_binary:
        return path.open("wb")
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")  # a file name need not be valid text


@dataclass
class Writer:
    stream: IO[Any]  # of text; for Parquet of bytes
    classes: Sequence[str]
    top: int  # classes to show in a table

    def __post_init__(self) -> None:
        """Write what comes before the rows."""

    def write(self, rows: list[Row]) -> None:
        self.write_rows(rows)
        self.stream.flush()

    def write_rows(self, rows: list[Row]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what was held back."""


class TableWriter(Writer):
    """For people, who see the errors on the standard error."""

    width = 0

    def write_rows(self, rows: list[Row]) -> None:
        predicted = [(name, result) for name, result in rows if isinstance(result, Prediction)]
        self.width = max([self.width, *(len(name) for name, _ in predicted)])
        for name, prediction in predicted:
            best = "   ".join(f"{label} {probability:7.2%}" for label, probability in prediction.top(self.top))
            rejected = "none of these   " if prediction.label is None else ""
            print(f"{name:<{self.width}}  {rejected}{best}", file=self.stream)


class JsonWriter(Writer):
    def write_rows(self, rows: list[Row]) -> None:
        for name, result in rows:
            values = {"error": str(result)} if isinstance(result, ImageError) else vars(result)
            print(json.dumps({"file": name, **values}), file=self.stream)


class CsvWriter(Writer):
    def __post_init__(self) -> None:
        self.csv = csv.writer(self.stream, lineterminator="\n")
        self.csv.writerow(column_names(self.classes))

    def write_rows(self, rows: list[Row]) -> None:
        self.csv.writerows(column_values(name, result, len(self.classes)) for name, result in rows)


class ParquetWriter(Writer):
    def __post_init__(self) -> None:
        import pyarrow
        import pyarrow.parquet

        types = dict.fromkeys(("file", "label", "error"), pyarrow.string())
        names = column_names(self.classes)
        self.schema = pyarrow.schema([(name, types.get(name, pyarrow.float32())) for name in names])
        self.file = pyarrow.parquet.ParquetWriter(self.stream, self.schema)
        self.rows: list[list[Any]] = []

    def write_rows(self, rows: list[Row]) -> None:
        for name, result in rows:
            name = name.encode(errors="backslashreplace").decode()
            self.rows.append(column_values(name, result, len(self.classes)))
        if len(self.rows) >= ROW_GROUP:
            self.write_row_group()

    def write_row_group(self) -> None:
        import pyarrow

        columns = [list(column) for column in zip(*self.rows, strict=True)]
        self.file.write_table(pyarrow.table(columns, schema=self.schema))
        self.rows = []

    def close(self) -> None:
        if self.rows:
            self.write_row_group()
        self.file.close()


WRITERS = {"table": TableWriter, "json": JsonWriter, "csv": CsvWriter, "parquet": ParquetWriter}


def column_names(classes: Sequence[str]) -> list[str]:
    return ["file", "label", "probability", "error", *(f"probability_{label}" for label in classes)]


def column_values(name: str, result: Prediction | ImageError, class_count: int) -> list[Any]:
    if isinstance(result, ImageError):
        return [name, None, None, str(result), *[None] * class_count]
    return [name, result.label, result.probability, None, *result.probabilities.values()]
