"""The command: pictures -> a table for people, or a line of JSON for each picture."""

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

from lockstep.classifier import BATCH, Classifier, Prediction
from lockstep.decoding import PIXELS
from lockstep.errors import ImageError, LockstepError
from lockstep.preparation import Pixels

MODEL = Path("data/model/model.onnx")
ENDINGS = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm"}
STDIN = "-"


def main(arguments: list[str] | None = None) -> int:
    """0: every picture has its line. 1: some have not. 2: nothing could be begun."""
    given = parser().parse_args(arguments)
    try:
        classifier = Classifier(given.model, tuned_for="throughput", threads=given.threads, pixels=given.max_pixels)
    except LockstepError as problem:
        print(problem, file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    sources = found(given.files or ([] if sys.stdin.isatty() else [STDIN]))
    bad = False
    any_source = False
    width = 0
    while some := list(islice(sources, BATCH)):
        any_source = True
        good: list[tuple[str, Pixels]] = []
        for source in some:
            try:
                good.append((source, classifier.prepare(content(source))))
            except ImageError as problem:
                bad = True
                print(f"{source}: {problem}", file=sys.stderr)
        if not good:
            continue
        predictions = classifier.predictions(np.stack([pixels for _, pixels in good]))
        width = max(width, *(len(source) for source, _ in good))
        for (source, _), prediction in zip(good, predictions, strict=True):
            print(as_json(source, prediction) if given.json else as_row(source, prediction, given.top, width))
        sys.stdout.flush()
    if not any_source:
        print("no picture: name files or folders, or send one to the standard input", file=sys.stderr)
        return 2
    return int(bad)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lockstep.predict", description=__doc__)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="pictures, folders of them, globs; - is the standard input"
    )
    parser.add_argument("--model", type=Path, default=MODEL, help=f"the ONNX file; {MODEL} unless given")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each picture")
    parser.add_argument("--top", type=positive, default=1, metavar="N", help="classes to show in the table")
    parser.add_argument("--threads", type=positive, help="to compute with; all cores unless given")
    parser.add_argument("--max-pixels", type=positive, default=PIXELS, help=f"of a picture; {PIXELS} unless given")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def found(names: list[str]) -> Iterator[str]:
    """Folders opened, to their depths and in order; globs that no shell expanded."""
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112, Path.is_dir raises at a name that is too long
            inside = (Path(folder) / file for folder, _, files in sorted(os.walk(name)) for file in sorted(files))
            pictures = [str(file) for file in inside if file.suffix.lower() in ENDINGS]
            yield from pictures or [name]
        elif name != STDIN and not os.path.exists(name) and glob.has_magic(name):  # noqa: PTH110
            yield from sorted(glob.glob(name, recursive=True)) or [name]  # noqa: PTH207, it may be absolute
        else:
            yield name


def content(source: str) -> bytes | str:
    if source == STDIN:
        return sys.stdin.buffer.read()
    if os.path.isdir(source):  # noqa: PTH112
        raise ImageError("has no picture in it")
    return source


def as_json(source: str, prediction: Prediction) -> str:
    known = {"file": source, "label": prediction.label, "probability": prediction.probability}
    return json.dumps({**known, "probabilities": prediction.probabilities})


def as_row(source: str, prediction: Prediction, top: int, width: int) -> str:
    return f"{source:<{width}}  " + "   ".join(f"{label} {share:7.2%}" for label, share in prediction.top(top))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # of a reader that has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
