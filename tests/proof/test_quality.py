"""Measures of quality, compared with known values and with scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from stages.proof import quality


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [
        (9950, 10000, 0.99342, 0.99620),
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72246, 1.0),
        (0, 10, 0.0, 0.27754),
        (1, 1, 0.20654, 1.0),
    ],
)
def test_the_interval_has_known_values(correct: int, images: int, low: float, high: float) -> None:
    assert quality.wilson_interval(correct, images) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize("images", [1, 3, 10, 200, 10000])
def test_the_rounded_interval_stays_within_0_and_1(images: int) -> None:
    for correct in {0, images // 2, images}:
        low, high = (round(bound, 6) for bound in quality.wilson_interval(correct, images))
        assert 0 <= low <= correct / images <= high <= 1


@pytest.fixture
def probabilities_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Of 500 images and 7 classes; most predictions are correct."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 7, 500)
    logits = generator.normal(size=(500, 7)) + 2 * np.eye(7)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_precision_recall_and_f1_of_a_small_example() -> None:
    scores = quality.class_scores(predicted=np.array([0, 0, 0, 1, 1]), labels=np.array([0, 0, 1, 1, 1]), classes=2)
    np.testing.assert_allclose(scores, [[2 / 3, 1, 0.8], [1, 2 / 3, 0.8]])


def test_a_class_without_predictions_or_images_scores_0_without_a_warning() -> None:
    scores = quality.class_scores(predicted=np.array([0, 0, 2]), labels=np.array([0, 1, 0]), classes=4)
    np.testing.assert_allclose(scores, [[0.5, 0.5, 0.5], [0, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_the_loss_agrees_with_scikit_learn(probabilities_and_labels: tuple[np.ndarray, np.ndarray]) -> None:
    assert quality.log_loss(*probabilities_and_labels) == pytest.approx(
        metrics.log_loss(probabilities_and_labels[1], probabilities_and_labels[0])
    )


def test_the_loss_of_a_mistake_with_probability_1_is_finite() -> None:
    assert quality.log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(27.63, abs=0.01)


def test_bins_and_calibration_error_of_a_small_example() -> None:
    # of 15 bins: 0.92 and 0.90 fall into the 14th, 0.61 into the 10th, and 1.0 into the last
    confidence = np.array([0.92, 0.90, 0.61, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    bins = quality.reliability_table(probabilities, np.array([0, 1, 1, 0]))
    assert bins == [
        (0.61, 0.0, 1),
        (pytest.approx(0.91), 0.5, 2),
        (1.0, 1.0, 1),
    ]
    assert quality.calibration_error(bins) == pytest.approx((0.61 + 2 * 0.41 + 0) / 4)


def test_every_image_is_in_one_bin_and_the_bins_average_to_the_accuracy(
    probabilities_and_labels: tuple[np.ndarray, np.ndarray],
) -> None:
    bins = quality.reliability_table(*probabilities_and_labels)
    accuracy = float((probabilities_and_labels[0].argmax(axis=1) == probabilities_and_labels[1]).mean())
    assert sum(images for _, _, images in bins) == 500
    assert sum(images * bin_accuracy for _, bin_accuracy, images in bins) / 500 == pytest.approx(accuracy)
    assert all(images for _, _, images in bins)
    assert bins == sorted(bins)
