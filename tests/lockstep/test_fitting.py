"""Images of any proportions become images of the network's size."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from lockstep.fitting import FITS, fit_to_size
from stages.core.splits import Fit

WIDE = np.repeat(np.repeat(np.array([[10, 100, 200]], np.uint8), 20, 0), 20, 1)  # three squares of 20 x 20 in a row


def fit(pixels: np.ndarray, width: int, height: int, how: str) -> np.ndarray:
    return np.asarray(fit_to_size(Image.fromarray(pixels), width, height, how))


def test_the_pipeline_knows_the_same_ways() -> None:
    assert get_args(Fit) == FITS


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_an_image_of_the_right_size_is_untouched(how: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(fit(pixels, 28, 28, how), pixels)


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 3), (40, 9), (1, 1), (1, 1, 3), (1, 300), (300, 1)])
def test_one_colour_stays_one_colour_at_any_size(how: str, shape: tuple[int, ...]) -> None:
    result = fit(np.full(shape, 90, np.uint8), 14, 14, how)
    assert (result.shape, result.dtype) == ((14, 14, *shape[2:]), np.uint8)
    assert (result == 90).all()


def test_stretch_shows_all_and_changes_the_proportions() -> None:
    row = fit(WIDE, 30, 30, "stretch")[15]
    assert (row[[4, 15, 25]] == [10, 100, 200]).all()


def test_crop_shows_the_middle() -> None:
    assert (fit(WIDE, 20, 20, "crop") == 100).all()
    assert (fit(WIDE.T, 20, 20, "crop") == 100).all()
    assert (fit(WIDE, 10, 10, "crop")[:, 1:-1] == 100).all()


def test_crop_of_the_networks_height_copies_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(pixels, 20, 20, "crop"), pixels[:, 20:40])


@pytest.mark.parametrize("shape", [(36, 29), (29, 36), (225, 225, 3), (1718, 2416)])
@pytest.mark.parametrize(("width", "height"), [(28, 28), (224, 224), (237, 181)])
def test_crop_of_sizes_whose_proportions_are_rounded(width: int, height: int, shape: tuple[int, ...]) -> None:
    assert fit(np.zeros(shape, np.uint8), width, height, "crop").shape[:2] == (height, width)


def test_pad_shows_all_on_the_median_colour_of_the_border() -> None:
    result = fit(WIDE, 60, 60, "pad")
    np.testing.assert_array_equal(result[20:40], WIDE)
    assert (result[:20] == 100).all()
    assert (result[40:] == 100).all()
    paper = np.full((40, 20, 3), (250, 240, 230), np.uint8)
    paper[10:30, 5:15] = 0
    result = fit(paper, 40, 40, "pad")
    np.testing.assert_array_equal(result[:, 10:30], paper)
    assert (result[:, :10] == (250, 240, 230)).all()


def test_proportions_are_those_of_the_result() -> None:
    assert fit(WIDE, 30, 10, "pad").shape == (10, 30)
    np.testing.assert_array_equal(fit(WIDE, 30, 10, "crop"), fit(WIDE, 30, 10, "stretch"))
    assert (fit(WIDE, 10, 30, "crop") == 100).all()
