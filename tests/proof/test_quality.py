"""Quality from probabilities and labels, against known values and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from stages.proof import quality


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (9950, 10000, 0.99342, 0.99620),
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72246, 1.0),
        (0, 10, 0.0, 0.27754),
        (1, 1, 0.20654, 1.0),
    ],
)
def test_the_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert quality.wilson_interval(hits, count) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize("count", [1, 3, 10, 200, 10000])
def test_the_interval_stays_within_0_and_1_to_the_places_that_are_reported(count: int) -> None:
    for hits in {0, count // 2, count}:
        low, high = (round(end, 6) for end in quality.wilson_interval(hits, count))
        assert 0 <= low <= hits / count <= high <= 1


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities for 500 images of 7 classes, right more often than not."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 7, 500)
    logits = generator.normal(size=(500, 7)) + 2 * np.eye(7)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_precision_recall_and_f1_are_scikit_learns(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    predicted = probabilities.argmax(axis=1)
    wanted = metrics.precision_recall_fscore_support(labels, predicted, labels=range(7))[:3]
    np.testing.assert_allclose(quality.class_scores(predicted, labels, 7), np.stack(wanted, axis=1))


def test_a_class_that_is_never_predicted_or_never_there_has_zeros_and_no_warning() -> None:
    scores = quality.class_scores(np.array([0, 0, 2]), np.array([0, 1, 0]), 4)
    np.testing.assert_allclose(scores, [[0.5, 0.5, 0.5], [0, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_the_loss_is_scikit_learns(answers: tuple[np.ndarray, np.ndarray]) -> None:
    assert quality.log_loss(*answers) == pytest.approx(metrics.log_loss(answers[1], answers[0]))


def test_the_loss_of_a_sure_mistake_is_large_and_finite() -> None:
    assert quality.log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(27.63, abs=0.01)


def test_bins_and_calibration_error_are_those_of_a_case_by_hand() -> None:
    # of 15 bins: 0.92 and 0.90 fall into the 14th, 0.61 into the 10th, and 1.0 into the last
    confidence = np.array([0.92, 0.90, 0.61, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    bins = quality.reliability_bins(probabilities, np.array([0, 1, 1, 0]))
    assert [(each.confidence, each.accuracy, each.count) for each in bins] == [
        (0.61, 0.0, 1),
        (pytest.approx(0.91), 0.5, 2),
        (1.0, 1.0, 1),
    ]
    assert quality.calibration_error(bins) == pytest.approx((0.61 + 2 * 0.41 + 0) / 4)


def test_every_answer_is_in_one_bin_and_the_bins_average_to_the_accuracy(
    answers: tuple[np.ndarray, np.ndarray],
) -> None:
    bins = quality.reliability_bins(*answers)
    accuracy = float((answers[0].argmax(axis=1) == answers[1]).mean())
    assert sum(each.count for each in bins) == 500
    assert sum(each.count * each.accuracy for each in bins) / 500 == pytest.approx(accuracy)
    assert all(each.count for each in bins)
    assert [each.confidence for each in bins] == sorted(each.confidence for each in bins)
