"""Finds training images whose label the trained network does not believe: often the label is wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.splits import Split, name_images, read_images, read_labels
from stages.network.models import Classifier
from stages.proof.quality import Floats

BATCH = 1000


@dataclass(frozen=True)
class Suspect:
    split: Split
    index: int
    name: str
    label: int
    predicted: int
    label_probability: float  # by which the loss is -log
    confidence: float

    @property
    def numbers(self) -> tuple[float, float]:
        return self.label_probability, self.confidence


@dataclass(frozen=True)
class LabelCheck:
    checked: int
    images: int  # in the training and validation splits
    suspects: list[Suspect]  # the least probable label first


def check_labels(network: Classifier, splits: Path, limit: int) -> LabelCheck:
    """Check the labels of at most `limit` training and validation images, chosen at even intervals.

    A label is suspicious if the network gives it less than one half. That the network was trained on these images makes
    it believe their labels, but a network that generalises does not learn all wrong ones.
    """
    searched: tuple[Split, ...] = ("train", "validation") if limit else ()
    labels = {split: read_labels(splits, split) for split in searched}
    images = sum(map(len, labels.values()))
    suspects: list[Suspect] = []
    checked = 0
    for split, split_labels in labels.items():
        share = min(len(split_labels), limit * len(split_labels) // images)
        indices = np.arange(share) * len(split_labels) // max(share, 1)
        checked += share
        suspects += find_suspects(network, splits, split, indices)
    suspects.sort(key=lambda suspect: suspect.label_probability)
    return LabelCheck(checked, images, suspects)


def find_suspects(network: Classifier, splits: Path, split: Split, indices: NDArray[np.int64]) -> list[Suspect]:
    images, labels = read_images(splits, split), read_labels(splits, split)
    names = name_images(splits, split, len(labels))
    suspects = []
    for start in range(0, len(indices), BATCH):
        batch = indices[start : start + BATCH]
        probabilities = run_batch(network, images[batch])
        label_probabilities = probabilities[np.arange(len(batch)), labels[batch]]
        for row in np.flatnonzero(label_probabilities < 0.5):
            index = int(batch[row])
            suspects.append(
                Suspect(
                    split=split,
                    index=index,
                    name=names[index],
                    label=int(labels[index]),
                    predicted=int(probabilities[row].argmax()),
                    label_probability=round(float(label_probabilities[row]), 6),
                    confidence=round(float(probabilities[row].max()), 6),
                )
            )
    return suspects


@torch.no_grad()
def run_batch(network: Classifier, images: NDArray[np.uint8]) -> Floats:
    logits: torch.Tensor = network(torch.from_numpy(images).to(network.mean.device))
    return logits.cpu().double().softmax(1).numpy()
