"""Raw files in; checked, scaled splits out: memory-mappable uint8 images and labels, what describes them, a picture."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.core import figures as pictures
from stages.core.command import echo, run_stage
from stages.core.errors import StageError
from stages.core.files import atomic_write, write_json
from stages.core.params import Section, read_section
from stages.core.splits import (
    INFO_FILE,
    SPLIT_NAMES,
    Split,
    SplitsInfo,
    npy_writer,
    read_images,
    read_labels,
    stratified_mask,
)
from stages.sources import catalog as datasets
from stages.sources.dataset import LabelledImages, RawData
from stages.sources.decoding import resize_image


class Preprocess(Section):
    size: int = Field(ge=4, le=1024)
    channels: Literal[1, 3]
    validation_fraction: float = Field(ge=0, lt=1)
    test_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0)
    renamed: ClassVar[dict[str, str]] = {"validation": "validation_fraction", "test": "test_fraction"}


def preprocess(*, params: Path, raw: Path, splits: Path, samples: Path) -> None:
    """Turn the folder RAW into SPLITS, and draw labelled SAMPLES of it."""
    section = read_section(params, "preprocess", Preprocess)
    source, data = datasets.read_raw(raw)
    classes: list[str] = source["classes"]
    train, test = split_test(data, section)
    check_labels(train, classes, "training")
    check_labels(test, classes, "test" if data.test else "held-out test (preprocess.test_fraction)")
    carved = stratified_mask(train.labels, section.validation_fraction, section.seed)
    check_left(train.labels[~carved], classes)
    with atomic_write(splits) as beside:
        beside.mkdir()
        kept = write_splits(beside, train, {"train": ~carved, "validation": carved}, section)
        kept |= write_splits(beside, test, {"test": np.ones(len(test.labels), np.bool_)}, section)
        about = describe(source, section, kept)
        write_json(beside / INFO_FILE, about.model_dump())
        draw_samples(samples, beside, about)
    echo(
        f"{about.dataset}: {about.counts}, {len(classes)} classes, mean {rounded(about.mean)}, std {rounded(about.std)}"
    )


def split_test(data: RawData, section: Preprocess) -> tuple[LabelledImages, LabelledImages]:
    """The training and test data as published, or a seeded, stratified split of data that has none."""
    if data.test is not None:
        return data.train, data.test
    taken = stratified_mask(data.train.labels, section.test_fraction, section.seed)
    return subset(data.train, ~taken), subset(data.train, taken)


def subset(part: LabelledImages, chosen: NDArray[np.bool_]) -> LabelledImages:
    def images(channels: int) -> Iterator[NDArray[np.uint8]]:
        start = 0
        for block in part.images(channels):
            yield block[chosen[start : start + len(block)]]
            start += len(block)

    where = np.flatnonzero(chosen)
    return LabelledImages(
        part.labels[chosen], images, lambda i: part.name(where[i]), lambda i: part.label_name(where[i])
    )


def check_labels(part: LabelledImages, classes: list[str], name: str) -> None:
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= len(classes)))
    if len(wrong):
        index = int(wrong[0])
        raise StageError(
            f"{part.label_name(index)}: {part.labels[index]} is no class; the labels go from 0 to {len(classes) - 1}"
        )
    if empty := missing(part.labels, classes):
        raise StageError(
            f"no image of the class {empty} among the {len(part.labels)} {name} images; add some, or remove the class"
        )


def check_left(labels: NDArray[Any], classes: list[str]) -> None:
    if empty := missing(labels, classes):
        raise StageError(f"no training image of the class {empty} is left: lower preprocess.validation_fraction")


def missing(labels: NDArray[Any], classes: list[str]) -> str:
    counts = np.bincount(labels, minlength=len(classes))
    return ", ".join(classes[label] for label in np.flatnonzero(counts == 0))


@dataclass(frozen=True)
class SplitStats:
    """What is known of a split once it is written."""

    by_class: NDArray[np.int64]  # images of each class
    histogram: NDArray[np.int64]  # (channels, 256): pixels of each value


def write_splits(
    folder: Path, part: LabelledImages, members: dict[Split, NDArray[np.bool_]], section: Preprocess
) -> dict[Split, SplitStats]:
    """Stream the images into the files of the splits that they are members of."""
    kept: dict[Split, SplitStats] = {}
    shape = (section.channels, section.size, section.size)
    with ExitStack() as stack:
        files = {}
        for split, chosen in members.items():
            labels = part.labels[chosen]
            np.save(folder / f"{split}-labels.npy", labels)
            kept[split] = SplitStats(np.bincount(labels), np.zeros((section.channels, 256), np.int64))
            files[split] = stack.enter_context(npy_writer(folder / f"{split}-images.npy", (len(labels), *shape), "u1"))
        start = 0
        for block in to_nchw(part, section):
            for split, chosen in members.items():
                images = block[chosen[start : start + len(block)]]
                files[split].write(images)
                for channel, counts in enumerate(kept[split].histogram):
                    counts += np.bincount(images[:, channel].ravel(), minlength=256)
            start += len(block)
    return kept


def to_nchw(part: LabelledImages, section: Preprocess) -> Iterator[NDArray[np.uint8]]:
    """The images as blocks of (count, channels, size, size)."""
    done = 0
    for block in part.images(section.channels):
        if 0 in block.shape[1:]:
            raise StageError(f"{part.name(done)}: has no pixels: {block.shape[1]} x {block.shape[2]}")
        if block.shape[1:3] != (section.size, section.size):
            block = np.stack([resize_image(image, section.size) for image in block]) if len(block) else block
        done += len(block)
        yield np.ascontiguousarray(block[:, None] if section.channels == 1 else np.moveaxis(block, -1, 1))


def describe(source: dict[str, Any], section: Preprocess, kept: dict[Split, SplitStats]) -> SplitsInfo:
    mean, std = zip(*(mean_and_std(counts) for counts in kept["train"].histogram), strict=True)
    if 0 in std:
        raise StageError("the training images are flat: one channel has the same value in every pixel of every image")
    by_class = {
        name: np.pad(part.by_class, (0, len(source["classes"]) - len(part.by_class))) for name, part in kept.items()
    }
    return SplitsInfo(
        dataset=source["dataset"],
        origin=source["origin"],
        preparation=source["preparation"],
        classes=source["classes"],
        channels=section.channels,
        size=section.size,
        counts={name: int(by_class[name].sum()) for name in SPLIT_NAMES},
        counts_by_class={name: by_class[name].tolist() for name in SPLIT_NAMES},
        mean=list(mean),
        std=list(std),
    )


def mean_and_std(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Of pixels in 0..1; summed in whole numbers, so that they are the same everywhere."""
    counts = [int(count) for count in histogram]
    number = sum(counts)
    total = sum(count * value for value, count in enumerate(counts))
    squares = sum(count * value * value for value, count in enumerate(counts))
    return total / number / 255, math.sqrt(number * squares - total * total) / number / 255


def draw_samples(path: Path, folder: Path, about: SplitsInfo) -> None:
    """Up to eight training images of each class, a row for each."""
    images, labels = read_images(folder, "train"), read_labels(folder, "train")
    shown = range(min(len(about.classes), 20))
    columns = int(min(8, *(np.sum(labels == label) for label in shown)))
    cells = [
        pictures.CaptionedImage(images[index], about.classes[label])
        for label in shown
        for index in np.flatnonzero(labels == label)[:columns]
    ]
    pictures.draw_grid(path, f"{about.dataset}: training images by class", cells, columns)


def rounded(numbers: list[float]) -> str:
    return ", ".join(f"{number:.4f}" for number in numbers)


if __name__ == "__main__":
    run_stage(preprocess)
