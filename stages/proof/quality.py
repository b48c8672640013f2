"""How good a classifier is, from its probabilities and the true labels."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 15


@dataclass(frozen=True)
class Bin:
    """The answers of about one confidence."""

    confidence: float
    accuracy: float
    count: int


def wilson_interval(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share: it stays within 0..1 and is right for shares near 1, where the usual one is not."""
    share, square = hits / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return middle - half, middle + half


def log_loss(probabilities: Floats, labels: Ints) -> float:
    chosen = probabilities[np.arange(len(labels)), labels]
    # math.log, since numpy's log chooses its kernel by the CPU.
    return -math.fsum(math.log(max(probability, 1e-12)) for probability in chosen.tolist()) / len(labels)


def class_scores(predicted: Ints, labels: Ints, classes: int) -> Floats:
    """(classes, 3): precision, recall and F1; a class that is never predicted has precision 0."""
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    right = np.diag(confusion).astype(np.float64)
    precision = right / np.maximum(confusion.sum(axis=0), 1)
    recall = right / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * right / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1), 1)
    return np.stack([precision, recall, f1], axis=1)


def reliability_bins(probabilities: Floats, labels: Ints) -> list[Bin]:
    """The answers by confidence, in bins of equal width; empty bins are left out."""
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [place == number for number in range(BINS)]
    return [Bin(float(confidence[m].mean()), float(hit[m].mean()), int(m.sum())) for m in members if m.any()]


def calibration_error(bins: list[Bin]) -> float:
    """How far confidence is from accuracy, on average over the answers."""
    count = sum(each.count for each in bins)
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / count
