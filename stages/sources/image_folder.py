"""The data set `own`: a person's images, as CLASS/*.png, or as train/CLASS/*.png and test/CLASS/*.png."""

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.decoding import SUFFIXES, WHITE, flatten_image, open_image
from lockstep.errors import ImageError
from stages.core.command import echo
from stages.core.errors import StageError
from stages.sources.dataset import REFETCH, FetchedFiles, ImageArray, LabelledImages, RawData
from stages.sources.survey import describe, survey_images

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, what is not UTF-8, line separators


class ImageFolder:
    preparation = "resize"

    def fetch(self, folder: Path, existing: Path, own_images: Path) -> FetchedFiles:
        images = find_images(own_images)
        for name in images:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own_images / name, folder / name)
        classes = list_classes(images)
        echo(f"{len(images)} images in {len(classes)} classes{describe_ignored(own_images)}")
        return FetchedFiles("the person's own images", classes, images)

    def check(self, existing: Path, own_images: Path) -> None:
        """The images are local: say what they are, and which params are for such images."""
        images = find_images(own_images)
        split_names = [folder.name for folder in split_folders(own_images) if folder != own_images]
        survey = survey_images((own_images / name for name in images), list_classes(images), split_names)
        echo(describe(survey, own_images))

    def read(self, folder: Path, source: dict[str, Any]) -> RawData:
        classes = source["classes"]
        if any(not is_image_name(name, classes) for name in source["files"]):
            raise StageError(f"{folder}: its list of files is not what download writes; {REFETCH}")
        names = sorted(source["files"], key=scramble)
        if all(name.count("/") == 1 for name in names):
            return RawData(label_by_folder(folder, names, classes), None)
        train, test = ([name for name in names if name.startswith(f"{split}/")] for split in ("train", "test"))
        return RawData(label_by_folder(folder, train, classes), label_by_folder(folder, test, classes))


def find_images(own_images: Path) -> list[str]:
    """The image files, relative to the folder. What can be no image of a class is an error."""
    paths = [path for split in split_folders(own_images) for path in list_images(split)]
    names = sorted(path.relative_to(own_images).as_posix() for path in paths)
    if len(classes := list_classes(names)) < 2:
        raise StageError(
            f"{own_images}: holds one class, {classes[0]!r}; a classifier needs at least two folders of images"
        )
    return names


def list_classes(names: list[str]) -> list[str]:
    return sorted({class_of(name) for name in names}, key=class_order)


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
        for path in visible_entries(folder):
            if path.suffix.lower() in SUFFIXES and not path.is_dir():
                raise StageError(f"{path}: is in no class folder; move it into the folder of its class")
    return splits or [root]


def list_images(split: Path) -> Iterator[Path]:
    """The image files of a split. An empty class, or what is no image of a class, is an error."""
    for folder in subfolders(split):
        files = visible_entries(folder)
        if not files:
            raise StageError(f"{folder}: an empty class; add images or remove the folder")
        for file in files:
            if file.is_dir():
                raise StageError(f"{file}: is a folder inside a class; move its images into {folder} and remove it")
            if file.suffix.lower() not in SUFFIXES:
                raise StageError(f"{file}: not an image by its name ({', '.join(SUFFIXES)} are); convert or remove it")
            yield file


def visible_entries(folder: Path) -> list[Path]:
    """All but hidden ones, sorted. One that is neither file nor folder, or cannot be named in reports, is an error."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in entries:
        if any(unicodedata.category(character) in UNPRINTABLE for character in path.name):
            reason = "its name is not UTF-8, or has a line break or another control character"
            raise StageError(f"{escape(path)}: {reason}; rename it")
        if not (path.is_file() or path.is_dir()):
            what = "a link to nothing" if path.is_symlink() else "neither a file nor a folder"
            raise StageError(f"{path}: is {what}; replace it by the image, or remove it")
    return entries


def subfolders(parent: Path) -> list[Path]:
    return [path for path in visible_entries(parent) if path.is_dir()]


def describe_ignored(own_images: Path) -> str:
    """How many files were passed over, and examples; empty if none was."""
    hidden, others = [], []
    for folder, subfolders, files in os.walk(own_images, followlinks=True):
        paths = [(Path(folder) / name).relative_to(own_images) for name in files]
        hidden += [path for path in paths if path.name.startswith(".")]
        hidden += [(Path(folder) / name).relative_to(own_images) for name in subfolders if name.startswith(".")]
        others += [path for path in paths if not path.name.startswith(".") and path.suffix.lower() not in SUFFIXES]
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    kinds = [("hidden", hidden), ("beside the class folders", others)]
    parts = [f"{len(paths)} {kind} (such as {escape(min(paths))})" for kind, paths in kinds if paths]
    return f"; passed over: {', '.join(parts)}" if parts else ""


def escape(path: Path) -> str:
    r"""The path as one line of printable text: bytes that are not UTF-8 as \xff, control characters as \n."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNPRINTABLE else character
        for character in text
    )


def label_by_folder(folder: Path, names: list[str], classes: list[str]) -> LabelledImages:
    return LabelledImages(
        labels=np.array([classes.index(class_of(name)) for name in names], np.int32),
        images=lambda channels: (decode_image(folder / name, channels)[None] for name in names),
        locate=lambda index: str(folder / names[index]),
        names=names,
    )


def decode_image(path: Path, channels: int) -> ImageArray:
    """(height, width) for one channel, (height, width, 3) for three; of a large JPEG at a reduced scale."""
    try:
        image = open_image(path.read_bytes())
        return np.asarray(flatten_image(image, "L" if channels == 1 else "RGB", WHITE))
    except FileNotFoundError:
        raise StageError(f"{path}: missing; {REFETCH}") from None
    except ImageError as error:
        raise StageError(f"{path}: {error}; replace or remove it among your own images") from None


def class_of(name: str) -> str:
    return name.split("/")[-2]


def is_image_name(name: str, classes: list[str]) -> bool:
    """Whether it is CLASS/FILE, or SPLIT/CLASS/FILE."""
    parts = name.split("/")
    return len(parts) in (2, 3) and not {"", ".", ".."} & {*parts} and parts[-2] in classes


def scramble(name: str) -> bytes:
    """Sort key that mixes the classes: what uses the first images, as the figures do, then sees all of them."""
    return hashlib.sha256(name.encode()).digest()


def class_order(name: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, so that 10 comes after 9, then other names."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)
