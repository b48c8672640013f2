"""Classify image files: a table for people, or one line of JSON per image."""

import argparse
import glob
import io
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from lockstep.arguments import MODEL_HELP, add_proof_arguments, positive, proof_files_or_none
from lockstep.classifier import BATCH_SIZE, Classifier, Prediction
from lockstep.decoding import MAX_PIXELS, SUFFIXES
from lockstep.errors import ImageError, LockstepError
from lockstep.preparation import Pixels

EXAMPLE = """example: lockstep predict scans/ digit.png --top 3
exit status: 0 every image was classified, 1 some were not, 2 nothing could be started"""
STDIN = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="image files, folders and globs; - is the standard input")
    add("--model", type=Path, help=MODEL_HELP)
    add_proof_arguments(parser)
    add("--no-verify", action="store_true", help="use any model, also without a golden sample and a certificate")
    add("--reject", action="store_true", help="say of an image that looks like none of the classes: none of these")
    add("--json", action="store_true", help="print one line of JSON per image")
    add("--top", type=positive, default=1, metavar="N", help="classes to show in the table")
    add("--threads", type=positive, metavar="N", help="CPU threads; default: all cores")
    add("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="of an image; default: %(default)s")


def run(args: argparse.Namespace) -> int:
    try:
        verify = proof_files_or_none(args) or False
        classifier = Classifier(args.model, threads=args.threads, max_pixels=args.max_pixels, verify=verify)
        if args.reject:
            classifier.require_reject_rule()
    except LockstepError as error:
        print(error, file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    sources = expand_sources(args.files or ([] if sys.stdin.isatty() else [STDIN]))
    status, source_count, width = 0, 0, 0
    while batch := list(islice(sources, BATCH_SIZE)):
        source_count += len(batch)
        prepared: dict[int, Pixels] = {}
        for index, source in enumerate(batch):
            try:
                prepared[index] = classifier.prepare(read_source(source))
            except ImageError as error:
                status = 1
                print(f"{source}: {error}", file=sys.stderr)
        if prepared:
            width = max(width, *(len(batch[index]) for index in prepared))
            predictions = classifier.predict_prepared(np.stack(list(prepared.values())), reject=args.reject)
            for index, prediction in zip(prepared, predictions, strict=True):
                if args.json:
                    print(json.dumps({"file": batch[index], **vars(prediction)}))
                else:
                    print(format_row(batch[index], prediction, args.top, width))
        sys.stdout.flush()
    if not source_count:
        print("no image: name files or folders, or send an image to the standard input", file=sys.stderr)
        return 2
    return status


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


def read_source(source: str) -> bytes | str:
    if source == STDIN:
        return sys.stdin.buffer.read()
    if os.path.isdir(source):  # noqa: PTH112
        raise ImageError("the folder contains no image")
    return source


def format_row(source: str, prediction: Prediction, top: int, width: int) -> str:
    classes = (f"{label} {probability:7.2%}" for label, probability in prediction.top(top))
    rejected = "none of these   " if prediction.label is None else ""
    return f"{source:<{width}}  {rejected}" + "   ".join(classes)
