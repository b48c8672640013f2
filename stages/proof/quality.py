"""Measures of a classifier, from its probabilities and the true labels."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 15  # of confidence, as in Guo et al. 2017


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % score interval of an accuracy (Wilson 1927, "Probable Inference"): within 0..1, valid near 1 too."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # here, since it takes a second to import

    interval = binomtest(correct, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def log_loss(probabilities: Floats, labels: Ints) -> float:
    """Cross-entropy in nats. By math.log: numpy's and scikit-learn's logarithm depends on the CPU in the last digit."""
    label_probabilities = probabilities[np.arange(len(labels)), labels].tolist()
    return -math.fsum(math.log(max(probability, 1e-12)) for probability in label_probabilities) / len(labels)


def class_scores(predicted: Ints, labels: Ints, classes: int) -> Floats:
    """(classes, 3): precision, recall and F1, 0 where a class has no predictions or no images."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0.0)
    return np.stack(scores[:3], axis=1)


def majority_scores(labels: Ints, classes: int) -> tuple[float, float]:
    """Accuracy and macro F1 of a classifier that always answers the most frequent class."""
    frequency = int(np.bincount(labels).max()) / len(labels)
    return frequency, 2 * frequency / (1 + frequency) / classes


def confused_pairs(predicted: Ints, labels: Ints, count: int) -> list[tuple[int, int, int]]:
    """The `count` pairs of classes that are taken for each other most often, in either direction, with how often."""
    wrong = predicted != labels
    pairs = np.sort(np.stack([predicted[wrong], labels[wrong]], axis=1), axis=1)
    unique, times = np.unique(pairs, axis=0, return_counts=True)
    most = np.argsort(-times, kind="stable")[:count]
    return [(int(one), int(other), int(number)) for (one, other), number in zip(unique[most], times[most], strict=True)]


def reliability_table(probabilities: Floats, labels: Ints) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of images, in bins of confidence of equal width; without empty bins."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    masks = [bin_index == index for index in np.unique(bin_index)]
    return [(float(confidence[mask].mean()), float(correct[mask].mean()), int(mask.sum())) for mask in masks]


def calibration_error(table: list[tuple[float, float, int]]) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599)."""
    confidence, accuracy, images = np.array(table).T
    return float(np.average(np.abs(confidence - accuracy), weights=images))
