"""Classify image files: a table for people, or JSON lines, CSV or Parquet for programs."""

import argparse
import glob
import io
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from lockstep.arguments import MODEL_HELP, add_proof_arguments, positive, proof_files_or_none
from lockstep.classifier import BATCH_SIZE, Classifier, available_cores
from lockstep.decoding import MAX_PIXELS, SUFFIXES
from lockstep.errors import ImageError, LockstepError
from lockstep.output import FORMATS, Row, choose_format, open_writer
from lockstep.progress import Progress
from lockstep.workers import STDIN, Preparation, Prepared, WorkerError, prepare_files

EXAMPLE = """examples: lockstep predict scans/ digit.png --top 3
          lockstep predict scans/ --output labels.csv
exit status: 0 every image was classified, 1 some were not, 2 nothing could be started"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="image files, folders and globs; - is the standard input")
    add("--model", type=Path, help=MODEL_HELP)
    add_proof_arguments(parser)
    add("--no-verify", action="store_true", help="use any model, also without a golden sample and a certificate")
    add("--reject", action="store_true", help="say of an image that looks like none of the classes: none of these")
    add("--format", choices=FORMATS, help="of the results; default: by the suffix of --output, else table")
    add("--json", action="store_const", const="json", dest="format", help="--format json: a line of JSON per image")
    add("--output", type=Path, metavar="FILE", help="written whole or not at all; default: the standard output")
    add("--top", type=positive, default=1, metavar="N", help="classes to show in the table")
    add("--threads", type=positive, metavar="N", help="CPU cores to use; default: all")
    add("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="of an image; default: %(default)s")


def run(args: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no partial file is left
    try:
        format_name = choose_format(args.format, args.output)
        verify = proof_files_or_none(args) or False
        classifier = Classifier(args.model, threads=args.threads, max_pixels=args.max_pixels, verify=verify)
        if args.reject:
            classifier.require_reject_rule()
        status, batches = 0, classify_files(classifier, args)
        with open_writer(format_name, args.output, classifier.classes, args.top) as writer, closing(batches):
            for rows in batches:
                writer.write(rows)
                status |= any(isinstance(result, ImageError) for _, result in rows)
    except LockstepError as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, WorkerError) else 2
    return status


def classify_files(classifier: Classifier, args: argparse.Namespace) -> Generator[list[Row], None, None]:
    """Predictions and errors, in the order of the files. The errors are on the standard error too."""
    names = args.files or ([] if sys.stdin is None or sys.stdin.isatty() else [STDIN])
    shows_progress = sys.stderr.isatty() and (args.output or not sys.stdout.isatty())
    progress = Progress(sum(1 for _ in expand_sources(names)) if shows_progress else None)
    preparation = Preparation(classifier.metadata, classifier.max_pixels)
    prepared_files = prepare_files(expand_sources(names), preparation, args.threads or available_cores())
    with closing(progress), closing(prepared_files):
        while batch := list(islice(prepared_files, BATCH_SIZE)):
            for name, result in batch:
                if isinstance(result, ImageError):
                    progress.log(f"{name}: {result}")
            yield classify_batch(classifier, batch, args.reject)
            progress.advance(len(batch))
    if not progress.done:
        raise LockstepError("no image: name files or folders, or send an image to the standard input")


def classify_batch(classifier: Classifier, batch: list[Prepared], reject: bool) -> list[Row]:
    pixels = [result for _, result in batch if not isinstance(result, ImageError)]
    predictions = iter(classifier.predict_prepared(np.stack(pixels), reject=reject) if pixels else [])
    return [(name, result if isinstance(result, ImageError) else next(predictions)) for name, result in batch]


def expand_sources(names: list[str]) -> Iterator[str]:
    """The image files of folders, recursively and sorted; globs that no shell expanded; other names unchanged."""
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112, Path.is_dir raises if the name is too long
            files = (Path(folder) / file for folder, _, inside in sorted(os.walk(name)) for file in sorted(inside))
            yield from [str(file) for file in files if file.suffix.lower() in SUFFIXES] or [name]
        elif name != STDIN and not os.path.exists(name) and glob.has_magic(name):  # noqa: PTH110
            yield from sorted(glob.glob(name, recursive=True)) or [name]  # noqa: PTH207, it may be absolute
        else:
            yield name
