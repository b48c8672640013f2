"""Image files of any mode are decoded as people see them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.errors import StageError
from stages.sources.decoding import decode_image, resize_image

GREY = np.array([[0, 64, 128], [192, 255, 32]], np.uint8)
RED, HALF_RED = (255, 0, 0), (255, 128, 128)


def plain_image(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (3, 2), color)  # type: ignore[arg-type]


def palette_image(**options: object) -> Image.Image:
    """Red and, at index 1, blue."""
    image = Image.new("P", (3, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.info.update(options)
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (plain_image("1", 1), "png", (255, 255, 255)),
        (plain_image("L", 77), "png", (77, 77, 77)),
        (plain_image("LA", (0, 255)), "png", (0, 0, 0)),
        (plain_image("LA", (0, 0)), "png", (255, 255, 255)),
        (plain_image("P", 0), "png", (0, 0, 0)),
        (palette_image(), "png", RED),
        (palette_image(transparency=0), "png", (255, 255, 255)),
        (palette_image(transparency=b"\x80\xff"), "png", (255, 127, 127)),
        (plain_image("RGB", RED), "png", RED),
        (plain_image("RGBA", (255, 0, 0, 255)), "png", RED),
        (plain_image("RGBA", (255, 0, 0, 0)), "png", (255, 255, 255)),
        (plain_image("RGBA", (255, 0, 0, 127)), "png", HALF_RED),
        (plain_image("L", 77), "jpg", (77, 77, 77)),
        (plain_image("RGB", (10, 20, 30)), "jpg", (10, 20, 30)),
        (plain_image("CMYK", (0, 0, 0, 0)), "jpg", (255, 255, 255)),
        (plain_image("CMYK", (0, 0, 0, 255)), "jpg", (0, 0, 0)),
        (plain_image("I;16", 65535), "png", (255, 255, 255)),
    ],
    ids=lambda value: f"{value.mode} {value.getpixel((0, 0))}" if isinstance(value, Image.Image) else None,
)
def test_a_picture_of_any_mode_has_the_colour_that_people_see(
    image: Image.Image, suffix: str, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
    colored, grey = decode_image(path, 3), decode_image(path, 1)
    assert (colored.shape, colored.dtype, grey.shape, grey.dtype) == ((2, 3, 3), np.uint8, (2, 3), np.uint8)
    np.testing.assert_allclose(colored[0, 0].astype(int), expected, atol=2)
    np.testing.assert_allclose(int(grey[0, 0]), np.dot(expected, (0.299, 0.587, 0.114)), atol=3)


def test_a_transparent_colour_of_a_grey_picture_is_white(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "picture.png", transparency=128)
    expected = GREY.copy()
    expected[GREY == 128] = 255
    np.testing.assert_array_equal(decode_image(tmp_path / "picture.png", 1), expected)


def test_greys_of_sixteen_bits_keep_their_order_and_range(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.mode == "I;16"
    np.testing.assert_array_equal(decode_image(tmp_path / "picture.png", 1), GREY)
    np.testing.assert_array_equal(decode_image(tmp_path / "picture.png", 3), np.repeat(GREY[..., None], 3, axis=-1))


def test_sixteen_bits_are_scaled_by_their_range_and_not_by_the_brightest_pixel(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 128).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "picture.png", 1), np.round(GREY.astype(float) * 128 / 257))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, GREY),
        (2, GREY[:, ::-1]),
        (3, GREY[::-1, ::-1]),
        (4, GREY[::-1]),
        (6, np.rot90(GREY, -1)),
        (8, np.rot90(GREY)),
    ],
)
def test_a_photograph_stands_upright(orientation: int, upright: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    big, path = Image.fromarray(np.kron(GREY, np.ones((8, 8), np.uint8))), tmp_path / "photo.jpg"
    big.save(path, exif=exif, quality=100)
    result = decode_image(path, 1)[4::8, 4::8]  # the middle of each square
    np.testing.assert_allclose(result.astype(int), upright, atol=3)


def noise_png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((16, 16), 50).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", noise_png()[:20], noise_png()[:-30], noise_png().replace(b"IDAT", b"IDAX")],
    ids=range(5),
)
def test_a_broken_file_is_one_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(StageError, match=r"not a readable image .*; replace or remove it$") as caught:
        decode_image(path, 1)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gone\.png: missing"):
        decode_image(tmp_path / "gone.png", 1)


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 30)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(StageError, match="not a readable image"):
        decode_image(tmp_path / "huge.png", 1)


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 3), (28, 28), (40, 9)])
def test_an_image_of_any_size_is_stretched_to_a_square(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 90, np.uint8)
    result = resize_image(image, 14)
    assert (result.shape, result.dtype) == ((14, 14, *shape[2:]), np.uint8)
    assert (result == 90).all()


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (14, 14), dtype=np.uint8)
    np.testing.assert_array_equal(resize_image(image, 14), image)
