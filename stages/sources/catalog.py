"""The data sets by name, and the folder of raw files that download writes and preprocess reads."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import StageError
from stages.core.files import atomic_write, file_sha256, remove_path, write_json
from stages.sources.dataset import REFETCH, Dataset, RawData
from stages.sources.embedded import EmbeddedDigits
from stages.sources.image_folder import ImageFolder
from stages.sources.published import PUBLISHED

SOURCE_FILE = "source.json"
DATASETS: dict[str, Dataset] = {**PUBLISHED, "digits": EmbeddedDigits(), "own": ImageFolder()}


def check_dataset_name(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(f"input should be one of {', '.join(DATASETS)}")
    return name


DatasetName = Annotated[str, AfterValidator(check_dataset_name)]


class Source(BaseModel):
    """The content of SOURCE_FILE."""

    model_config = ConfigDict(frozen=True)

    dataset: DatasetName
    origin: str
    preparation: Literal["mnist", "resize"]
    classes: list[str] = Field(min_length=1)
    files: dict[str, str]  # the hash of each file


def fetch_dataset(name: DatasetName, folder: Path, own_images: Path) -> None:
    """Replace the folder, atomically, by one that holds the data set's files and source.json."""
    incoming = folder.with_name(f".{folder.name}.incoming")  # kept after a failure, so that its files are not refetched
    incoming.mkdir(parents=True, exist_ok=True)
    fetched = DATASETS[name].fetch(incoming, folder, own_images)
    remove_others(incoming, set(fetched.files))
    source = {
        "dataset": name,
        "origin": fetched.origin,
        "preparation": DATASETS[name].preparation,
        "classes": fetched.classes,
        "files": {file: file_sha256(incoming / file) for file in fetched.files},
    }
    write_json(incoming / SOURCE_FILE, source)
    with atomic_write(folder) as tmp:
        incoming.rename(tmp)


def remove_others(folder: Path, files: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):  # the content of a folder before the folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path.relative_to(folder).as_posix() not in files:
            remove_path(path)


def read_raw(folder: Path) -> tuple[dict[str, Any], RawData]:
    """The content of source.json, and the labelled images."""
    path = folder / SOURCE_FILE
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro download`") from None
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path}: not valid JSON ({error}); {REFETCH}") from None
    if not isinstance(source, dict) or str(source.get("dataset")) not in DATASETS:
        raise StageError(f"{path}: names no known data set; {REFETCH}")
    try:
        source = Source.model_validate(source, strict=True).model_dump()
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise StageError(f"{path}: its {key!r} is not what download writes; {REFETCH}") from None
    return source, DATASETS[source["dataset"]].read(folder, source)
