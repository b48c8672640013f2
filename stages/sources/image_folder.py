"""A person's images, a folder for each class: <class>/*.png, or train/<class>/*.png and test/<class>/*.png."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.errors import StageError
from stages.sources.dataset import FetchedFiles, LabelledImages, RawData
from stages.sources.decoding import SUFFIXES, decode_image


class ImageFolder:
    preparation = "resize"

    def fetch(self, folder: Path, have: Path, own: Path) -> FetchedFiles:
        files = sorted(name for split in splits(own) for name in images(own, split))
        classes = sorted({Path(name).parent.name for name in files}, key=natural)
        if len(classes) < 2:
            raise StageError(
                f"{own}: holds one class, {classes[0]!r}; a classifier needs at least two folders of images"
            )
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own / name, folder / name)
        return FetchedFiles("the person's own images", classes, files)

    def check(self, have: Path) -> None:
        """No mirror is asked; what is wrong with the images, `fetch` says."""

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        files, classes = sorted(source["files"]), source["classes"]
        if all(name.count("/") == 1 for name in files):
            return RawData(part(folder, files, classes), None)
        train, test = ([name for name in files if name.startswith(f"{split}/")] for split in ("train", "test"))
        return RawData(part(folder, train, classes), part(folder, test, classes))


def splits(own: Path) -> list[Path]:
    """The folders that hold the class folders: train and test, or the folder itself."""
    if not own.is_dir():
        raise StageError(f"{own}: there is no such folder; make it, with one folder of images for each class")
    parts = [own / "train", own / "test"]
    there = [part for part in parts if part.is_dir()]
    if len(there) == 1:
        raise StageError(
            f"{own}: has {there[0].name}/ only; put the class folders into train/ and test/, or into {own} itself"
        )
    for part in there or [own]:
        if not folders(part):
            raise StageError(
                f"{part}: no classes here; put the images of each class into a folder, as {part / 'cat' / '1.png'}"
            )
    if there and (odd := {folder.name for folder in folders(parts[0])} ^ {folder.name for folder in folders(parts[1])}):
        raise StageError(f"{own}: train/ and test/ must have the same classes; in one only: {', '.join(sorted(odd))}")
    refuse_strays(own, there)
    return there or [own]


def refuse_strays(own: Path, parts: list[Path]) -> None:
    """Nothing that a person put there is passed over in silence."""
    for part in dict.fromkeys([own, *parts]):
        for path in sorted(part.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden(Path(path.name)):
                raise StageError(f"{path}: stands in no class folder; move it into the folder of its class")
    if parts and (beside := [folder for folder in folders(own) if folder not in parts]):
        raise StageError(f"{beside[0]}: stands beside train/ and test/; move its images into class folders of these")


def images(own: Path, split: Path) -> Iterator[str]:
    """The image files of a split, relative to the whole folder, once each class is known to be clean."""
    for folder in folders(split):
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not hidden(file.relative_to(folder))]
        if not files:
            raise StageError(f"{folder}: an empty class; add images or remove the folder")
        for file in files:
            if file.suffix.lower() not in SUFFIXES:
                raise StageError(f"{file}: not an image by its name ({', '.join(SUFFIXES)} are); convert or remove it")
            if file.parent != folder:
                raise StageError(f"{file}: stands below its class folder; move it into {folder}")
            yield file.relative_to(own).as_posix()


def part(folder: Path, names: list[str], classes: list[str]) -> LabelledImages:
    return LabelledImages(
        labels=np.array([classes.index(Path(name).parent.name) for name in names], np.int32),
        images=lambda channels: (decode_image(folder / name, channels)[None] for name in names),
        name=lambda index: str(folder / names[index]),
        label_name=lambda index: str(folder / names[index]),
    )


def folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def natural(name: str) -> tuple[int, int, str]:
    """Sorts 10 after 9."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)
