"""Batches of images shifted, rotated, scaled, cropped, mirrored, recoloured and partly erased, each in its own way."""

import pytest
import torch
from torch import Generator, Tensor

from stages.training.augmentation import (
    random_affine,
    random_color,
    random_crop,
    random_erasing,
    random_flip,
    random_shift,
)


def make_generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def random_images(count: int = 64, channels: int = 1, height: int = 9, width: int = 11) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=make_generator(9))


def shift_all(images: Tensor, down: int, right: int) -> Tensor:
    """Shift all images by the same number of pixels: pad by repeating the border, then crop."""
    padded = torch.nn.functional.pad(images.float(), (9, 9, 9, 9), mode="replicate")
    height, width = images.shape[2:]
    return padded[:, :, 9 - down : 9 - down + height, 9 - right : 9 - right + width]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shifting_keeps_the_shape_and_gives_floats(dtype: torch.dtype) -> None:
    images = random_images(channels=3).to(dtype)
    result = random_shift(images, 2, make_generator())
    assert (result.dtype, result.shape) == (torch.float32, images.shape)


def test_each_image_is_shifted_by_whole_pixels_within_bounds_and_its_border_is_repeated() -> None:
    images = random_images(count=16 * 200, channels=3)  # in groups of 16
    result = random_shift(images, 2, make_generator())
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    matches = torch.stack([(shift_all(images, *shift) == result).all(3).all(2).all(1) for shift in shifts])
    assert (matches.sum(0) == 1).all()  # each image was shifted in one way
    assert matches.any(1).all()  # and each way occurs


def test_a_shift_of_zero_pixels_changes_nothing() -> None:
    assert torch.equal(random_shift(random_images(), 0, make_generator()), random_images().float())


def test_a_shift_wider_than_the_image_repeats_border_pixels() -> None:
    images = torch.full((20, 1, 4, 4), 7, dtype=torch.uint8)
    assert torch.equal(random_shift(images, 30, make_generator()), images.float())


def test_a_warp_of_zero_degrees_and_zoom_changes_nothing() -> None:
    images = random_images(channels=3)
    torch.testing.assert_close(random_affine(images, 0.0, 0.0, make_generator()), images.float(), atol=1e-2, rtol=0)


def test_a_warp_stays_within_the_range_of_pixels_and_repeats_the_border() -> None:
    result = random_affine(random_images(), 45.0, 0.3, make_generator())
    assert result.min() >= 0
    assert result.max() <= 255.001
    white = torch.full((10, 1, 12, 12), 255, dtype=torch.uint8)  # pixels from outside, if not repeated, would be dark
    torch.testing.assert_close(random_affine(white, 45.0, 0.3, make_generator()), white.float())


def test_a_rotation_keeps_the_distance_from_the_centre() -> None:
    images = torch.zeros(50, 1, 41, 41, dtype=torch.uint8)
    images[:, :, 9:12, 19:22] = 255  # a spot 10 pixels above the centre
    result = random_affine(images, 90.0, 0.0, make_generator())[:, 0]
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    mass = result.sum((1, 2))
    down, right = (result * rows).sum((1, 2)) / mass, (result * columns).sum((1, 2)) / mass
    torch.testing.assert_close((down**2 + right**2).sqrt(), torch.full((50,), 10.0), atol=0.2, rtol=0)
    assert right.min() < -5
    assert right.max() > 5


def test_a_zoom_scales_the_area_within_its_range() -> None:
    images = torch.zeros(50, 1, 40, 40, dtype=torch.uint8)
    images[:, :, 10:30, 10:30] = 255
    areas = random_affine(images, 0.0, 0.2, make_generator()).sum((1, 2, 3)) / 255 / 400
    assert areas.min() > 0.8**2 - 0.02
    assert areas.max() < 1.2**2 + 0.02
    assert areas.max() - areas.min() > 0.4


@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (0.4, 0.4, 0.4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_stay_within_the_range_of_pixels_and_zero_changes_nothing(
    color: tuple[float, float, float], channels: int
) -> None:
    images = random_images(channels=channels)
    result = random_color(images, *color, make_generator())
    assert (result.dtype, result.shape) == (torch.float32, images.shape)
    assert 0 <= result.min() <= result.max() <= 255
    assert torch.equal(result, images.float()) == (not any(color))


def test_brightness_multiplies_the_pixels_of_each_image_by_its_own_factor() -> None:
    images = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    factors = random_color(images, 0.3, 0.0, 0.0, make_generator())[:, 0, 0, 0] / 100
    assert 0.7 <= factors.min() < 0.72
    assert 1.28 < factors.max() <= 1.3


def test_contrast_and_saturation_keep_what_they_are_relative_to() -> None:
    grey = torch.full((50, 3, 4, 4), 90, dtype=torch.uint8)
    torch.testing.assert_close(random_color(grey, 0.0, 0.5, 0.0, make_generator()), grey.float())  # its mean
    pixels = random_images(channels=1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(random_color(pixels, 0.0, 0.0, 0.5, make_generator()), pixels.float())  # is grey
    images = torch.tensor([120, 100, 80], dtype=torch.uint8).view(1, 3, 1, 1).expand(200, 3, 4, 4)
    result = random_color(images, 0.0, 0.0, 0.5, make_generator())[:, :, 0, 0]
    spread = (result[:, 0] - result[:, 2]) / 40
    assert 0.5 <= spread.min() < 0.55
    assert 1.45 < spread.max() <= 1.501


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = random_images(count=400, channels=3)
    result = random_flip(images, make_generator())
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    assert torch.equal(result[~mirrored], images[~mirrored].float())
    assert 150 < mirrored.sum() < 250


def test_a_crop_shows_a_part_of_the_image_within_its_limits() -> None:
    ramp = torch.arange(40.0).view(1, 1, 1, 40).expand(300, 1, 40, 40)
    result = random_crop(ramp, 0.5, make_generator())[:, 0, 20]
    width = (result[:, 30] - result[:, 10]) / 20  # of the part, as a fraction of the image's
    assert 0.49 < width.min() < 0.52
    assert 0.97 < width.max() < 1.01
    assert result.min() >= 0
    assert result.max() <= 39
    assert result[:, 20].std() > 1  # parts from all over the image
    torch.testing.assert_close(random_crop(ramp, 1.0, make_generator()), ramp, atol=1e-3, rtol=0)


def test_erasing_fills_one_rectangle_with_one_colour_in_the_given_fraction_of_the_images() -> None:
    images = torch.full((400, 3, 40, 40), 7, dtype=torch.uint8)
    changed = (random_erasing(images, 0.25, make_generator()) != 7).any(1)
    erased = changed.flatten(1).any(1)
    assert 70 < erased.sum() < 130
    rows, columns = changed.any(2).sum(1)[erased], changed.any(1).sum(1)[erased]
    assert torch.equal(changed.sum((1, 2))[erased], rows * columns)
    assert rows.min() >= 5
    assert rows.max() <= 21
    result = random_erasing(images, 1.0, make_generator())
    assert all(len(image.flatten(1).unique(dim=1).T) == 2 for image in result)
    assert torch.equal(random_erasing(images, 0.0, make_generator()), images.float())


@pytest.mark.parametrize(
    "change",
    [
        lambda images, generator: random_shift(images, 2, generator),
        lambda images, generator: random_affine(images, 20.0, 0.1, generator),
        lambda images, generator: random_crop(images, 0.6, generator),
        random_flip,
        lambda images, generator: random_color(images, 0.2, 0.2, 0.2, generator),
        lambda images, generator: random_erasing(images, 0.5, generator),
    ],
)
def test_the_result_depends_on_the_generator_alone(change: object) -> None:
    torch.manual_seed(1)
    first = change(random_images(), make_generator(3))  # type: ignore[operator]
    torch.manual_seed(2)
    assert torch.equal(change(random_images(), make_generator(3)), first)  # type: ignore[operator]
    assert not torch.equal(change(random_images(), make_generator(4)), first)  # type: ignore[operator]
