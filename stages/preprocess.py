"""Decodes, checks and scales the raw images, and writes them as training, validation and test splits."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from lockstep.fitting import fit_to_size
from stages.core.command import echo, run_stage
from stages.core.errors import StageError
from stages.core.figures import CaptionedImage, draw_grid
from stages.core.files import atomic_write, write_json
from stages.core.params import Section, read_section
from stages.core.splits import (
    SPLIT_NAMES,
    SPLITS_INFO_FILE,
    Fit,
    Split,
    SplitsInfo,
    names_file,
    npy_writer,
    read_images,
    read_labels,
    stratified_mask,
)
from stages.sources import catalog as datasets
from stages.sources.dataset import LabelledImages, RawData
from stages.sources.findings import write_findings

Masks = dict[Split, NDArray[np.bool_]]  # for each split, which images belong to it


class Preprocess(Section):
    size: int = Field(ge=4, le=1024)
    channels: Literal[1, 3]
    fit: Fit
    validation_fraction: float = Field(ge=0, lt=1)
    test_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0)
    renamed: ClassVar[dict[str, str]] = {"validation": "validation_fraction", "test": "test_fraction"}


def preprocess(*, params: Path, raw: Path, splits: Path, samples: Path, findings: Path) -> None:
    """Decode, check and scale the raw images, and split them into training, validation and test.

    Args:
        params: The params file; its section `preprocess` is read.
        raw: Folder of raw files, written by the stage download.
        splits: Output folder of the splits.
        samples: Output figure of training images by class, PNG.
        findings: Output report of what is often wrong with a data set, such as images that occur twice, Markdown.
    """
    section = read_section(params, "preprocess", Preprocess)
    source, data = datasets.read_raw(raw)
    parts = split_images(data, source["classes"], section)
    with atomic_write(splits) as tmp:
        tmp.mkdir()
        for images, masks in parts:
            write_splits(tmp, images, masks, section)
        info = describe_splits(tmp, source, section)
        write_json(tmp / SPLITS_INFO_FILE, info.model_dump())
        draw_samples(samples, tmp, info)
        found = write_findings(findings, tmp, info)
    mean, std = (", ".join(f"{number:.4f}" for number in numbers) for numbers in (info.mean, info.std))
    echo(f"{info.dataset}: {info.counts}, {len(info.classes)} classes, mean {mean}, std {std}")
    echo(f"data: {found}; see {findings}")


def split_images(data: RawData, classes: list[str], section: Preprocess) -> list[tuple[LabelledImages, Masks]]:
    """Assign each image to a split. Validation images, and test images if none are published, are chosen by class."""
    for images in filter(None, (data.train, data.test)):
        check_labels(images, classes)
    labels = data.train.labels
    if data.test:
        test = np.zeros(len(labels), np.bool_)
        check_classes(labels, classes, "training")
        check_classes(data.test.labels, classes, "test")
    else:
        test = stratified_mask(labels, section.test_fraction, section.seed)
        check_classes(labels[~test], classes, "training")
        check_classes(labels[test], classes, "held-out test (preprocess.test_fraction)")
    validation = np.zeros(len(labels), np.bool_)
    validation[~test] = stratified_mask(labels[~test], section.validation_fraction, section.seed)
    train = ~test & ~validation
    check_classes(labels[train], classes, "remaining training", "lower preprocess.validation_fraction")
    masks: Masks = {"train": train, "validation": validation}
    if data.test:
        return [(data.train, masks), (data.test, {"test": np.ones(len(data.test.labels), np.bool_)})]
    return [(data.train, {**masks, "test": test})]


def check_labels(images: LabelledImages, classes: list[str]) -> None:
    if len(wrong := np.flatnonzero((images.labels < 0) | (images.labels >= len(classes)))):
        label, place = images.labels[wrong[0]], images.locate(int(wrong[0]))
        raise StageError(f"{place}: its label {label} is no class; the labels go from 0 to {len(classes) - 1}")


def check_classes(
    labels: NDArray[Any], classes: list[str], name: str, advice: str = "add some, or remove the class"
) -> None:
    """Raise an error if a class has no image among these labels."""
    counts = np.bincount(labels, minlength=len(classes))
    if missing := ", ".join(classes[label] for label in np.flatnonzero(counts == 0)):
        raise StageError(f"no image of the class {missing} among the {len(labels)} {name} images; {advice}")


def write_splits(folder: Path, images: LabelledImages, masks: Masks, section: Preprocess) -> None:
    """Stream the images into the files of the splits that they belong to."""
    shape = (section.channels, section.size, section.size)
    with ExitStack() as stack:
        files = {}
        for split, mask in masks.items():
            np.save(folder / f"{split}-labels.npy", images.labels[mask])
            if images.names is not None:
                names = (f"{images.names[index]}\n" for index in np.flatnonzero(mask))
                names_file(folder, split).write_text("".join(names), encoding="utf-8", newline="\n")
            writer = npy_writer(folder / f"{split}-images.npy", (int(mask.sum()), *shape), "u1")
            files[split] = stack.enter_context(writer)
        start = 0
        for block in scaled_blocks(images, section):
            for split, mask in masks.items():
                files[split].write(block[mask[start : start + len(block)]].data)
            start += len(block)


def scaled_blocks(images: LabelledImages, section: Preprocess) -> Iterator[NDArray[np.uint8]]:
    """The images in blocks of shape (count, channels, size, size)."""
    start = 0
    for block in images.images(section.channels):
        if 0 in block.shape[1:]:
            raise StageError(f"{images.locate(start)}: has no pixels: {block.shape[1]} x {block.shape[2]}")
        if len(block) and block.shape[1:3] != (section.size, section.size):
            block = np.stack([resize_image(image, section) for image in block])
        start += len(block)
        if block.ndim == 3:  # grey
            block = np.repeat(block[..., None], section.channels, axis=-1)
        yield np.ascontiguousarray(np.moveaxis(block, -1, 1))


def resize_image(image: NDArray[np.uint8], section: Preprocess) -> NDArray[np.uint8]:
    return np.asarray(fit_to_size(Image.fromarray(image), section.size, section.size, section.fit))


def describe_splits(folder: Path, source: dict[str, Any], section: Preprocess) -> SplitsInfo:
    labels = {split: read_labels(folder, split) for split in SPLIT_NAMES}
    mean, std = zip(*map(mean_and_std, pixel_histograms(read_images(folder, "train"))), strict=True)
    if 0 in std:
        raise StageError("the training images are flat: one channel has the same value in every pixel of every image")
    return SplitsInfo(
        dataset=source["dataset"],
        origin=source["origin"],
        preparation=source["preparation"],
        classes=source["classes"],
        channels=section.channels,
        size=section.size,
        fit=section.fit,
        counts={split: len(labels[split]) for split in SPLIT_NAMES},
        counts_by_class={
            split: np.bincount(labels[split], minlength=len(source["classes"])).tolist() for split in SPLIT_NAMES
        },
        mean=list(mean),
        std=list(std),
    )


def pixel_histograms(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(channels, 256): how many pixels of a channel have each value."""
    histograms = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), 1024):
        for histogram, pixels in zip(histograms, images[start : start + 1024].swapaxes(0, 1), strict=True):
            histogram += np.bincount(pixels.ravel(), minlength=256)
    return histograms


def mean_and_std(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Of pixels scaled to 0..1. The sums are of integers, so that the result does not depend on the machine."""
    values = np.arange(256)
    number, total, squares = (int(histogram @ values**power) for power in range(3))
    return total / number / 255, math.sqrt(number * squares - total * total) / number / 255


def draw_samples(path: Path, folder: Path, info: SplitsInfo) -> None:
    """Draw up to eight training images of each of the first twenty classes, one row for each class."""
    images, labels = read_images(folder, "train"), read_labels(folder, "train")
    rows = [np.flatnonzero(labels == label) for label in range(min(len(info.classes), 20))]
    columns = min(8, *map(len, rows))
    cells = [
        CaptionedImage(images[index], info.classes[label])
        for label, indices in enumerate(rows)
        for index in indices[:columns]
    ]
    draw_grid(path, f"{info.dataset}: training images by class", cells, columns)


if __name__ == "__main__":
    run_stage(preprocess)
