"""Accuracy on images unlike the data set: digits in printed fonts, and handwriting as in bad photographs.

python -m benchmarks.pictures [MODEL]   # made of the first 500 test images of MNIST
"""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lockstep import Classifier, ImageError

Digit = NDArray[np.uint8]  # bright ink on black, small
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic",
         "STIXGeneral", "STIXGeneralBol", "cmr10", "cmtt10")  # fmt: skip
EXIF_ORIENTATION = 0x0112


def render_fonts(sizes: tuple[int, ...] = (24, 60, 200)) -> Iterator[tuple[Image.Image, int]]:
    """Every digit in each of matplotlib's fonts, dark on light and light on dark."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in FONTS:
        for size in sizes:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), size)
            for digit in range(10):
                for paper, ink in (("white", "black"), ("#123", "#ffd")):
                    image = Image.new("RGB", (2 * size, 2 * size), paper)
                    ImageDraw.Draw(image).text((size, size), str(digit), ink, font, anchor="mm")
                    yield image, digit


def place_on_sheet(
    digit: Digit, generator: Generator, side: int, share: tuple[float, float] = (0.45, 0.8)
) -> NDArray[np.float32]:
    """How much ink is at each pixel, within 0..1: the digit at a random place of a square sheet."""
    size = int(side * generator.uniform(*share))
    drawn = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    sheet = np.zeros((side, side), np.float32)
    top, left = generator.integers(0, side - size, 2)
    sheet[top : top + size, left : left + size] = drawn
    return sheet


def ink_to_gray(ink: NDArray[np.float32], paper: float, pen: float) -> NDArray[np.float32]:
    return paper + (pen - paper) * ink


def plain(digit: Digit, generator: Generator) -> Image.Image:
    return gray_image(ink_to_gray(place_on_sheet(digit, generator, 280), 255, 0))


def transparent(digit: Digit, generator: Generator) -> Image.Image:
    """Drawn in a dark or a bright colour on a transparent background."""
    alpha = np.rint(255 * place_on_sheet(digit, generator, 280)).clip(0, 255).astype(np.uint8)
    color = (20, 30, 90) if generator.random() < 0.5 else (250, 240, 200)
    image = Image.new("RGBA", (280, 280), color)
    image.putalpha(Image.fromarray(alpha))
    return image


def noisy(digit: Digit, generator: Generator) -> Image.Image:
    gray = ink_to_gray(place_on_sheet(digit, generator, 200), 200, 60)
    return gray_image(gray + generator.normal(0, 25, gray.shape))


def shaded(digit: Digit, generator: Generator) -> Image.Image:
    """Lit from one side: the paper in the dark corner is as dark as the ink in the bright one."""
    gray = ink_to_gray(place_on_sheet(digit, generator, 320), 235, 60)
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1:1:320j, -1:1:320j]
    light = 0.7 + 0.3 * (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2)
    return gray_image(gray * light + generator.normal(0, 3, gray.shape))


def blurred(digit: Digit, generator: Generator) -> Image.Image:
    return plain(digit, generator).filter(ImageFilter.GaussianBlur(5))


def tiny(digit: Digit, generator: Generator) -> Image.Image:
    """Small, on a large sheet."""
    return gray_image(ink_to_gray(place_on_sheet(digit, generator, 900, (0.1, 0.16)), 240, 40))


def phone(digit: Digit, generator: Generator) -> Image.Image:
    """A large JPEG rotated by EXIF, of coloured paper in poor light with a dark edge."""
    gray = ink_to_gray(place_on_sheet(digit, generator, 1200, (0.35, 0.6)), 1, 0.3)
    y, x = np.mgrid[-1:1:1200j, -1:1:1200j]
    light = 190 + 35 * x - 25 * y - 15 * x * x
    paper = np.stack([light, light * 0.95, light * 0.82], -1) * gray[..., None]
    if generator.random() < 0.5:
        paper[:, : int(generator.integers(20, 90))] = (60, 45, 40)  # the table
    image = rgb_image(paper + generator.normal(0, 8, (1200, 1200, 1))).filter(ImageFilter.GaussianBlur(2))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # rotate by 90 degrees clockwise
    data = io.BytesIO()
    image.rotate(90).save(data, "JPEG", quality=70, exif=exif)
    return Image.open(data)


DISTORTIONS: dict[str, Callable[[Digit, Generator], Image.Image]] = {
    "dark on white, at a random place": plain,
    "transparent, dark or bright": transparent,
    "noise": noisy,
    "shading": shaded,
    "blur": blurred,
    "small in a large sheet": tiny,
    "phone: rotated, shaded, noisy, table's edge": phone,
}


def gray_image(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def rgb_image(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "RGB")


def measure_accuracy(classifier: Classifier, images: Iterator[tuple[Image.Image, int]]) -> float:
    hits = []
    for image, digit in images:
        try:
            hits.append(classifier.predict(image).label == str(digit))
        except ImageError:
            hits.append(False)
    return float(np.mean(hits))


def distort_digits(
    kind: str, digits: NDArray[np.uint8], labels: NDArray[np.int64]
) -> Iterator[tuple[Image.Image, int]]:
    """One image of the kind per digit, with its index as the seed."""
    return ((DISTORTIONS[kind](digit, default_rng(seed)), int(label)) for seed, (digit, label) in
            enumerate(zip(digits, labels, strict=True)))  # fmt: skip


if __name__ == "__main__":
    classifier = Classifier(sys.argv[1] if len(sys.argv) > 1 else "data/model/model.onnx")
    images = np.load("data/splits/test-images.npy", mmap_mode="r")[:500, 0]
    labels = np.load("data/splits/test-labels.npy")[:500]
    unchanged = [
        prediction.label == str(label) for prediction, label in zip(classifier.predict(images), labels, strict=True)
    ]
    print(f"| images | accuracy |\n|---|---|\n| MNIST's own pixels, unprepared | {np.mean(unchanged):.1%} |")
    printed = measure_accuracy(classifier, render_fonts())
    print(f"| printed, {len(FONTS)} fonts, 3 sizes, dark on light and light on dark | {printed:.1%} |")
    for kind in DISTORTIONS:
        print(f"| {kind} | {measure_accuracy(classifier, distort_digits(kind, images, labels)):.1%} |", flush=True)
