"""Looks for what is often wrong with a data set, in its splits, and writes it as a report in Markdown."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.files import atomic_write
from stages.core.splits import SPLIT_NAMES, Split, SplitsInfo, read_images, read_labels, read_names

FEW = 20  # training images of a class
RARE = 0.1  # of the median class
MAX_LISTED = 20  # of one kind
BLOCK = 1024  # images in memory at a time


@dataclass(frozen=True)
class Finding:
    kind: str  # as in "3 flat images"
    items: list[str]
    advice: str


class SplitImages:
    """All images of the splits in one sequence: where each comes from, its label, and what it looks like."""

    def __init__(self, folder: Path, info: SplitsInfo) -> None:
        self.folder, self.classes = folder, info.classes
        labels = [read_labels(folder, split).astype(np.int32) for split in SPLIT_NAMES]
        self.starts = np.cumsum([0, *map(len, labels)])  # of the splits
        self.labels = np.concatenate(labels)
        self.digests = np.empty(len(self.labels), "V16")
        self.flat = np.zeros(len(self.labels), np.bool_)
        for split, first in zip(SPLIT_NAMES, self.starts, strict=False):
            start = int(first)
            for block in read_blocks(read_images(folder, split)):
                pixels = block.reshape(len(block), -1)
                digests = b"".join(hashlib.blake2b(image.data, digest_size=16).digest() for image in pixels)
                self.digests[start : start + len(block)] = np.frombuffer(digests, "V16")
                self.flat[start : start + len(block)] = pixels.min(axis=1) == pixels.max(axis=1)
                start += len(block)

    def split(self, index: int) -> Split:
        return SPLIT_NAMES[int(np.searchsorted(self.starts, index, side="right")) - 1]

    def name(self, index: int) -> str:
        split = self.split(index)
        first = int(self.starts[SPLIT_NAMES.index(split)])
        names = read_names(self.folder, split)
        name = names[index - first] if names is not None else str(index - first)
        return f"{split} {name} ({self.classes[self.labels[index]]})"


def read_blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), BLOCK):
        yield np.ascontiguousarray(images[start : start + BLOCK])


def write_findings(path: Path, folder: Path, info: SplitsInfo) -> str:
    """Write the report; returns a line of counts."""
    findings = [*find_in_classes(info), *find_in_images(SplitImages(folder, info))]
    found = [finding for finding in findings if finding.items]
    with atomic_write(path) as tmp:
        tmp.write_text("\n".join(format_report(info, found)), encoding="utf-8")
    return ", ".join(f"{len(finding.items)} {finding.kind}" for finding in found) or "nothing stands out"


def find_in_classes(info: SplitsInfo) -> Iterator[Finding]:
    counts = np.array(info.counts_by_class["train"])
    median = float(np.median(counts))
    few = [f"{name}: {count}" for name, count in zip(info.classes, counts, strict=True) if count < FEW]
    rare = [f"{name}: {count}" for name, count in zip(info.classes, counts, strict=True) if count < RARE * median]
    yield Finding(f"classes with fewer than {FEW} training images", few, "Add images, or merge classes.")
    advice = "Its accuracy weighs little in that of all images: look at macro F1 and at the scores of each class."
    yield Finding(f"classes with less than {RARE:.0%} of the images of the median class ({median:g})", rare, advice)


def find_in_images(images: SplitImages) -> Iterator[Finding]:
    flat = [images.name(int(index)) for index in np.flatnonzero(images.flat)]
    yield Finding("flat images (one value in every pixel)", flat, "They show nothing: remove them.")
    leaks, contradictions, repeats = [], [], []
    for group in equal_images(images):
        names = " = ".join(map(images.name, group))
        splits = {images.split(index) for index in group}
        if len({*images.labels[group].tolist()}) > 1:
            contradictions.append(names)
        elif "test" in splits and len(splits) > 1:
            leaks.append(names)
        else:
            repeats.append(names)
    yield Finding(
        "images that are in several classes", contradictions, "At least one label is wrong: keep one image of each."
    )
    yield Finding(
        "images that are in the test split and in another one",
        leaks,
        "The network has seen them, so the accuracy is too high: remove the copies.",
    )
    yield Finding("images that occur more than once", repeats, "Copies count twice: keep one image of each.")


def equal_images(images: SplitImages) -> Iterator[list[int]]:
    """Groups of images, other than flat ones, that are the same pixels as the network sees them."""
    order = np.argsort(images.digests, kind="stable")
    order = order[~images.flat[order]]
    is_repeat = images.digests[order[1:]] == images.digests[order[:-1]]
    groups: dict[int, list[int]] = {}  # by the first image
    first = -1
    for place in np.flatnonzero(is_repeat).tolist():
        if first < 0 or not is_repeat[place - 1]:
            first = int(order[place])
        groups.setdefault(first, [first]).append(int(order[place + 1]))
    yield from (groups[first] for first in sorted(groups))


def format_report(info: SplitsInfo, findings: Sequence[Finding]) -> Iterator[str]:
    yield f"# The data set {info.dataset}\n"
    yield "## What stands out\n"
    if not findings:
        yield "Nothing: no class with few images, no flat image, no image that occurs twice.\n"
    for finding in findings:
        yield f"### {len(finding.items)} {finding.kind}\n"
        yield f"{finding.advice}\n"
        yield from (f"- {item}" for item in finding.items[:MAX_LISTED])
        if len(finding.items) > MAX_LISTED:
            yield f"- and {len(finding.items) - MAX_LISTED} more"
        yield ""
    yield "## Images by class\n"
    yield f"| class | {' | '.join(SPLIT_NAMES)} |"
    yield f"|---|{'---|' * len(SPLIT_NAMES)}"
    for label, name in enumerate(info.classes):
        counts = (str(info.counts_by_class[split][label]) for split in SPLIT_NAMES)
        cell = name.replace("|", "\\|")
        yield f"| {cell} | {' | '.join(counts)} |"
    yield f"| all | {' | '.join(str(info.counts[split]) for split in SPLIT_NAMES)} |"
    yield ""
