"""The data sets by name, and the folder of raw files that download writes and preprocess reads."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from stages.common.embedded import Embedded
from stages.common.own import Own
from stages.common.problem import Problem
from stages.common.published import Published
from stages.common.raw import AGAIN, Dataset, Raw
from stages.common.whole import remove, whole, write_json

Name = Literal["mnist", "fashion-mnist", "kmnist", "digits", "own"]
SOURCE = "source.json"
DATASETS: dict[str, Dataset] = {
    "mnist": Published("MNIST", "http://yann.lecun.com/exdb/mnist/", "mnist"),
    "fashion-mnist": Published("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", "resize"),
    "kmnist": Published("KMNIST", "http://codh.rois.ac.jp/kmnist/", "resize"),
    "digits": Embedded(),
    "own": Own(),
}


def fetch(name: Name, folder: Path, own: Path) -> None:
    """Make the folder hold the data set's files and source.json, and nothing else, all at once."""
    incoming = folder.with_name(
        f".{folder.name}.incoming"
    )  # outlives a failure: what is whole in it is not fetched again
    incoming.mkdir(parents=True, exist_ok=True)
    fetched = DATASETS[name].fetch(incoming, folder, own)
    prune(incoming, set(fetched.files))
    write_json(
        incoming / SOURCE,
        {
            "dataset": name,
            "origin": fetched.origin,
            "preparation": DATASETS[name].preparation,
            "classes": fetched.classes,
            "files": {file: sha256(incoming / file) for file in fetched.files},
        },
    )
    with whole(folder) as beside:
        incoming.rename(beside)


def prune(folder: Path, keep: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds comes before the folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path.relative_to(folder).as_posix() not in keep:
            remove(path)


def read(folder: Path) -> tuple[dict[str, Any], Raw]:
    """What source.json says, and the images with their labels."""
    path = folder / SOURCE
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: missing; run `dvc repro download`") from None
    except ValueError as error:
        raise Problem(f"{path}: not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(source, dict) or source.get("dataset") not in DATASETS:
        raise Problem(f"{path}: names no known data set; {AGAIN}")
    return source, DATASETS[source["dataset"]].read(folder, source)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
