"""The data sets by name, and the folder of raw files that download writes and preprocess reads."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from stages.core.errors import StageError
from stages.core.files import atomic_write, remove_path, write_json
from stages.sources.dataset import REFETCH, Dataset, RawData
from stages.sources.embedded import EmbeddedDigits
from stages.sources.image_folder import ImageFolder
from stages.sources.published import IdxDataset

DatasetName = Literal["mnist", "fashion-mnist", "kmnist", "digits", "own"]
SOURCE_FILE = "source.json"
DATASETS: dict[str, Dataset] = {
    "mnist": IdxDataset("MNIST", "http://yann.lecun.com/exdb/mnist/", "mnist"),
    "fashion-mnist": IdxDataset("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", "resize"),
    "kmnist": IdxDataset("KMNIST", "http://codh.rois.ac.jp/kmnist/", "resize"),
    "digits": EmbeddedDigits(),
    "own": ImageFolder(),
}


def fetch_dataset(name: DatasetName, folder: Path, own: Path) -> None:
    """Make the folder hold the data set's files and source.json, and nothing else, all at once."""
    incoming = folder.with_name(
        f".{folder.name}.incoming"
    )  # outlives a failure: what is whole in it is not fetched again
    incoming.mkdir(parents=True, exist_ok=True)
    fetched = DATASETS[name].fetch(incoming, folder, own)
    prune(incoming, set(fetched.files))
    write_json(
        incoming / SOURCE_FILE,
        {
            "dataset": name,
            "origin": fetched.origin,
            "preparation": DATASETS[name].preparation,
            "classes": fetched.classes,
            "files": {file: sha256(incoming / file) for file in fetched.files},
        },
    )
    with atomic_write(folder) as beside:
        incoming.rename(beside)


def prune(folder: Path, keep: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds comes before the folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path.relative_to(folder).as_posix() not in keep:
            remove_path(path)


def read_raw(folder: Path) -> tuple[dict[str, Any], RawData]:
    """What source.json says, and the images with their labels."""
    path = folder / SOURCE_FILE
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro download`") from None
    except ValueError as error:
        raise StageError(f"{path}: not valid JSON ({error}); {REFETCH}") from None
    if not isinstance(source, dict) or source.get("dataset") not in DATASETS:
        raise StageError(f"{path}: names no known data set; {REFETCH}")
    return source, DATASETS[source["dataset"]].read(folder, source)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
