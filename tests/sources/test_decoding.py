"""Image files of any mode are decoded as people see them."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lockstep import ImageError
from lockstep.decoding import WHITE, flatten_image
from stages.core.errors import StageError
from stages.sources.image_folder import decode_image

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


@pytest.mark.parametrize(
    ("levels", "suffix"),
    [
        (GREY.astype(np.uint16) * 2, "png"),
        (GREY.astype(np.uint16) * 128, "tif"),
        (GREY.astype(np.uint16), "pgm"),
        (GREY.astype(np.int32) * 100, "tif"),
        (GREY.astype(np.int32) * 257, "pgm"),
        (GREY.astype(np.float32) / 255, "tif"),
        (GREY.astype(np.float32) / 2550, "tif"),
    ],
    ids=["dark 16 bits", "16 bits", "dark PGM", "32 bits", "PGM", "float", "dark float"],
)
def test_more_than_eight_bits_have_one_range_whatever_the_brightest_pixel_is(
    levels: np.ndarray, suffix: str, tmp_path: Path
) -> None:
    Image.fromarray(levels).save(tmp_path / f"picture.{suffix}")
    white = 1 if levels.dtype == np.float32 else 65535
    expected = np.rint(levels.astype(float) * 255 / white)
    np.testing.assert_array_equal(decode_image(tmp_path / f"picture.{suffix}", 1), expected)


@pytest.mark.parametrize("level", [np.nan, np.inf, -0.01, 1.01, 200.0])
def test_floating_point_pixels_outside_their_range_are_refused(level: float, tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    Image.fromarray(np.array([[0.5, level]], np.float32)).save(path)
    with pytest.raises(StageError) as caught:
        decode_image(path, 1)
    reason = "its floating-point pixels are not all within 0..1, black to white; scale them"
    assert str(caught.value) == f"{path}: {reason}; replace or remove it among your own images"


@pytest.mark.parametrize("level", [-1, 65536])
def test_integers_outside_their_range_are_refused(level: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, level]], np.int32)).save(tmp_path / "picture.tif")
    with pytest.raises(StageError, match=r"not all within 0\.\.65535, black to white"):
        decode_image(tmp_path / "picture.tif", 3)


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


def dds_file() -> bytes:
    """A DDS header with a pixel format of which Pillow's plug-in raises NotImplementedError."""
    return b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44) + struct.pack("<2I", 32, 4) + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        noise_png()[:20],
        noise_png()[:-30],
        noise_png().replace(b"IDAT", b"IDAX"),
        dds_file(),
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miafMA1B" + bytes(90),
    ],
    ids=["empty", "text", "header", "truncated", "no data", "DDS", "AVIF"],
)
def test_a_broken_or_foreign_file_is_one_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(StageError, match=r"the file is empty|not a readable image.*supported formats: PNG, ") as caught:
        decode_image(path, 1)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; replace or remove it among your own images")
    assert "\n" not in str(caught.value)


DAMAGED_EXIF = {  # an orientation of 6, and a tag whose type is none that it can have
    "TypeError": (0x011A, 2, b"\0\0\0\x48"),
    "AttributeError": (0x0131, 5, b"\0\0\0\x08"),
    "struct.error": (0x0102, 5, b"\0\0\0\x08"),
}


def exif_with_tag(tag: int, kind: int, value: bytes) -> bytes:
    entries = sorted([(0x0112, 3, b"\0\x06\0\0"), (tag, kind, value)])
    directory = b"".join(struct.pack(">HHI", number, type_, 1) + data for number, type_, data in entries)
    return b"Exif\0\0MM\0\x2a\0\0\0\x08" + struct.pack(">H", len(entries)) + directory + bytes(4)


@pytest.mark.parametrize("error", DAMAGED_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_exif_beside_an_orientation_is_one_line(error: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(GREY).save(path, exif=exif_with_tag(*DAMAGED_EXIF[error]))
    with Image.open(path) as image, pytest.raises((TypeError, AttributeError, struct.error)) as raised:
        ImageOps.exif_transpose(image)
    assert raised.type.__name__ == error.removeprefix("struct.")
    with pytest.raises(StageError) as caught:
        decode_image(path, 1)
    reason = "its EXIF data are damaged; save it again without them; replace or remove it among your own images"
    assert str(caught.value) == f"{path}: {reason}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gone\.png: missing"):
        decode_image(tmp_path / "gone.png", 1)


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(StageError, match=r"has more than 50,000,000 pixels.*; replace or remove it"):
        decode_image(tmp_path / "huge.png", 1)


def test_colours_that_cannot_be_converted_are_one_line(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2))
    image.info["transparency"] = "nonsense"
    with pytest.raises(ImageError, match=r"its colours cannot be converted \(.*\); save it as grey or RGB"):
        flatten_image(image, "L", WHITE)
