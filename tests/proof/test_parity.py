"""Outputs compared, and the sample of images to compare on."""

import numpy as np
import pytest

from stages.proof.parity import EDGE_IMAGES, Outputs, build_sample, compare_outputs, edge_images, thin_sample


def outputs(*logits: list[float]) -> Outputs:
    return Outputs(np.array(logits, np.float32), np.zeros((len(logits), 2), np.float32))


@pytest.mark.parametrize(("flip_margin", "mismatch_count"), [(0.1, 0), (0.01, 1)])
def test_a_label_may_flip_only_within_the_flip_margin(flip_margin: float, mismatch_count: int) -> None:
    difference = compare_outputs(outputs([1.0, 1.05], [3.0, 0.0]), outputs([1.05, 1.0], [3.0, 0.0]))
    assert (difference.image_count, difference.flips) == (2, 1)
    assert difference.flip_margin == pytest.approx(0.05, abs=1e-6)
    assert len(difference.mismatches(atol=0.1, flip_margin=flip_margin)) == mismatch_count


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the quantile of an infinite error
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_a_reason_for_any_tolerance(value: float) -> None:
    difference = compare_outputs(outputs([0.0, 1.0]), outputs([0.0, value]))
    assert difference.mismatches(atol=1e9, flip_margin=1e9) == ["a number that is not finite"]


@pytest.mark.parametrize("images", [0, 40, 2000])
def test_a_sample_starts_with_the_edge_images_and_has_the_requested_size(images: int) -> None:
    split = np.random.default_rng(1).integers(0, 256, (images, 3, 8, 8), dtype=np.uint8)
    sample = build_sample(split, 1000, seed=0)
    assert (sample.shape, sample.dtype) == ((1000, 3, 8, 8), np.uint8)
    np.testing.assert_array_equal(sample[:EDGE_IMAGES], edge_images(3, 8, seed=0))
    np.testing.assert_array_equal(sample, build_sample(split, 1000, seed=0))
    from_split = {image.tobytes() for image in split} & {image.tobytes() for image in sample}
    assert len(from_split) == min(images, 1000 - EDGE_IMAGES)


@pytest.mark.parametrize("count", [1, 2, 32, 1000])
def test_a_thinned_sample_has_the_requested_size(count: int) -> None:
    sample = build_sample(np.zeros((0, 1, 8, 8), np.uint8), 1000, seed=0)
    assert len(thin_sample(sample, count)) == count
