"""Raw files in; checked, scaled splits out: memory-mappable uint8 images and labels, what describes them, a picture."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common import datasets, pictures
from stages.common.command import run, say
from stages.common.decoding import scaled
from stages.common.params import Section, read_section
from stages.common.problem import Problem
from stages.common.raw import Part, Raw
from stages.common.splits import ABOUT, NAMES, About, growing, read_images, read_labels, stratified
from stages.common.whole import whole, write_json


class Preprocess(Section):
    size: int = Field(ge=4, le=1024)
    channels: Literal[1, 3]
    validation: float = Field(ge=0, lt=1)
    test: float = Field(
        gt=0, lt=1, description="share that is held out to test, of data published without a test split"
    )
    seed: int = Field(ge=0)


def preprocess(*, params: Path, raw: Path, splits: Path, samples: Path) -> None:
    """Turn the folder RAW into SPLITS, and draw labelled SAMPLES of it."""
    section = read_section(params, "preprocess", Preprocess)
    source, data = datasets.read(raw)
    classes: list[str] = source["classes"]
    train, test = held_out(data, section)
    for part, name in ((train, "training"), (test, "test")):
        check_labels(part, classes, name)
    carved = stratified(train.labels, section.validation, section.seed)
    if bare := set(train.labels.tolist()) - set(train.labels[~carved].tolist()):
        names = ", ".join(classes[label] for label in sorted(bare))
        raise Problem(f"no training image of the class {names} is left: lower preprocess.validation")
    with whole(splits) as beside:
        beside.mkdir()
        statistics = write(beside, train, np.where(carved, "validation", "train"), section)
        statistics |= write(beside, test, np.full(len(test.labels), "test"), section)
        about = describe(source, section, statistics)
        write_json(beside / ABOUT, about.model_dump())
        draw(samples, beside, about)
    say(
        f"{about.dataset}: {about.counts}, {len(classes)} classes, mean {rounded(about.mean)}, std {rounded(about.std)}"
    )


def held_out(data: Raw, section: Preprocess) -> tuple[Part, Part]:
    """The training and test data as published, or a seeded, stratified split of data that has none."""
    if data.test is not None:
        return data.train, data.test
    taken = stratified(data.train.labels, section.test, section.seed)
    return subset(data.train, ~taken), subset(data.train, taken)


def subset(part: Part, chosen: NDArray[np.bool_]) -> Part:
    def images(channels: int) -> Iterator[NDArray[np.uint8]]:
        start = 0
        for block in part.images(channels):
            yield block[chosen[start : start + len(block)]]
            start += len(block)

    where = np.flatnonzero(chosen)
    return Part(part.labels[chosen], images, lambda i: part.name(where[i]), lambda i: part.label_name(where[i]))


def check_labels(part: Part, classes: list[str], name: str) -> None:
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= len(classes)))
    if len(wrong):
        index = int(wrong[0])
        raise Problem(
            f"{part.label_name(index)}: {part.labels[index]} is no class; the labels go from 0 to {len(classes) - 1}"
        )
    counts = np.bincount(part.labels, minlength=len(classes))
    if not counts.all():
        empty = ", ".join(classes[label] for label in np.flatnonzero(counts == 0))
        raise Problem(
            f"no image of the class {empty} among the {len(part.labels)} {name} images; add some, or remove the class"
        )


def write(folder: Path, part: Part, split_of: NDArray[np.str_], section: Preprocess) -> dict[str, Any]:
    """Stream the images into the files of their splits; gives each split's labels and histogram of pixels."""
    statistics: dict[str, Any] = {}
    shape = (section.channels, section.size, section.size)
    with ExitStack() as stack:
        files = {}
        for split in sorted(set(split_of) | ({"train", "validation"} if "test" not in split_of else set())):
            labels = part.labels[split_of == split]
            np.save(folder / f"{split}-labels.npy", labels)
            statistics[split] = (labels, np.zeros((section.channels, 256), np.int64))
            array = growing(folder / f"{split}-images.npy", (len(labels), *shape), "u1")
            files[split] = stack.enter_context(array)
        start = 0
        for block in planes(part, section):
            members = split_of[start : start + len(block)]
            for split in files:
                chosen = block[members == split]
                files[split].write(chosen)
                for channel, counts in enumerate(statistics[split][1]):
                    counts += np.bincount(chosen[:, channel].ravel(), minlength=256)
            start += len(block)
    return statistics


def planes(part: Part, section: Preprocess) -> Iterator[NDArray[np.uint8]]:
    """The images as blocks of (count, channels, size, size)."""
    done = 0
    for block in part.images(section.channels):
        if 0 in block.shape[1:]:
            raise Problem(f"{part.name(done)}: has no pixels: {block.shape[1]} x {block.shape[2]}")
        if block.shape[1:3] != (section.size, section.size):
            block = np.stack([scaled(image, section.size) for image in block]) if len(block) else block
        done += len(block)
        yield np.ascontiguousarray(block[:, None] if section.channels == 1 else np.moveaxis(block, -1, 1))


def describe(source: dict[str, Any], section: Preprocess, statistics: dict[str, Any]) -> About:
    histogram = statistics["train"][1]
    if ((histogram > 0).sum(axis=1) == 1).any():  # nothing to learn, and a deviation of 0 to divide by
        raise Problem("the training images are flat: one channel has the same value in every pixel of every image")
    pixels, levels = histogram.sum(axis=1), np.arange(256) / 255
    mean = histogram @ levels / pixels
    std = np.sqrt(histogram @ levels**2 / pixels - mean**2)
    return About(
        dataset=source["dataset"],
        origin=source["origin"],
        preparation=source["preparation"],
        classes=source["classes"],
        channels=section.channels,
        size=section.size,
        counts={name: len(statistics[name][0]) for name in NAMES},
        counts_by_class={
            name: np.bincount(statistics[name][0], minlength=len(source["classes"])).tolist() for name in NAMES
        },
        mean=mean.tolist(),
        std=std.tolist(),
    )


def draw(path: Path, folder: Path, about: About) -> None:
    """Up to eight training images of each class, a row for each."""
    images, labels = read_images(folder, "train"), read_labels(folder, "train")
    shown = range(min(len(about.classes), 20))
    columns = int(min(8, *(np.sum(labels == label) for label in shown)))
    cells = [
        pictures.Captioned(images[index], about.classes[label])
        for label in shown
        for index in np.flatnonzero(labels == label)[:columns]
    ]
    pictures.grid(path, f"{about.dataset}: training images by class", cells, columns)


def rounded(numbers: list[float]) -> str:
    return ", ".join(f"{number:.4f}" for number in numbers)


if __name__ == "__main__":
    run(preprocess)
