"""The data set `own`: a person's images, as CLASS/*.png, or as train/CLASS/*.png and test/CLASS/*.png."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.command import echo
from stages.core.errors import StageError
from stages.sources.dataset import FetchedFiles, LabelledImages, RawData
from stages.sources.decoding import SUFFIXES, decode_image
from stages.sources.survey import describe, survey_images


class ImageFolder:
    preparation = "resize"

    def fetch(self, folder: Path, existing: Path, own_images: Path) -> FetchedFiles:
        images, classes = find_images(own_images)
        names = sorted(image.relative_to(own_images).as_posix() for image in images)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own_images / name, folder / name)
        return FetchedFiles("the person's own images", classes, names)

    def check(self, existing: Path, own_images: Path) -> None:
        """The images are local: say what they are, and which params are for such images."""
        images, classes = find_images(own_images)
        split_names = [folder.name for folder in split_folders(own_images) if folder != own_images]
        echo(describe(survey_images(images, classes, split_names), own_images))

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        names, classes = sorted(source["files"], key=scramble), source["classes"]
        if all(name.count("/") == 1 for name in names):
            return RawData(label_by_folder(folder, names, classes), None)
        train, test = ([name for name in names if name.startswith(f"{split}/")] for split in ("train", "test"))
        return RawData(label_by_folder(folder, train, classes), label_by_folder(folder, test, classes))


def find_images(own_images: Path) -> tuple[list[Path], list[str]]:
    """All image files, and the classes in order."""
    images = [image for split in split_folders(own_images) for image in list_images(split)]
    classes = sorted({image.parent.name for image in images}, key=class_order)
    if len(classes) < 2:
        raise StageError(
            f"{own_images}: holds one class, {classes[0]!r}; a classifier needs at least two folders of images"
        )
    return images, classes


def split_folders(root: Path) -> list[Path]:
    """The folders that hold the class folders: train and test, or the root. A misplaced image is an error."""
    if not root.is_dir():
        raise StageError(f"{root}: there is no such folder; make it, with one folder of images for each class")
    splits = [path for path in (root / "train", root / "test") if path.is_dir()]
    if len(splits) == 1:
        name = splits[0].name
        raise StageError(
            f"{root}: has {name}/ only; put the class folders into train/ and test/, or into {root} itself"
        )
    for split in splits or [root]:
        if not subfolders(split):
            example = split / "cat" / "1.png"
            raise StageError(f"{split}: has no class folders; put the images of each class into a folder, as {example}")
    if splits:
        train, test = ({path.name for path in subfolders(split)} for split in splits)
        if different := ", ".join(sorted(train ^ test)):
            raise StageError(f"{root}: train/ and test/ must have the same classes; only one of them has: {different}")
        if others := [path for path in subfolders(root) if path not in splits]:
            raise StageError(f"{others[0]}: is neither train/ nor test/; move its images into class folders of these")
    for folder in (root, *splits):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
                raise StageError(f"{path}: is in no class folder; move it into the folder of its class")
    return splits or [root]


def list_images(split: Path) -> Iterator[Path]:
    """The image files of a split. An empty class, or a file that is no image of a class, is an error."""
    for folder in subfolders(split):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_hidden(path, folder)]
        if not files:
            raise StageError(f"{folder}: an empty class; add images or remove the folder")
        for file in files:
            if file.suffix.lower() not in SUFFIXES:
                raise StageError(f"{file}: not an image by its name ({', '.join(SUFFIXES)} are); convert or remove it")
            if file.parent != folder:
                raise StageError(f"{file}: is in a subfolder of its class; move it into {folder}")
            yield file


def label_by_folder(folder: Path, names: list[str], classes: list[str]) -> LabelledImages:
    return LabelledImages(
        labels=np.array([classes.index(Path(name).parent.name) for name in names], np.int32),
        images=lambda channels: (decode_image(folder / name, channels)[None] for name in names),
        locate=lambda index: str(folder / names[index]),
    )


def subfolders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def scramble(name: str) -> bytes:
    """Sort key that mixes the classes: what uses the first images, as the figures do, then sees all of them."""
    return hashlib.sha256(name.encode()).digest()


def class_order(name: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, so that 10 comes after 9, then other names."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)
