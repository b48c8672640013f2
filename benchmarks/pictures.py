"""Pictures that are not of the data set: digits in printed fonts, and handwriting photographed badly on purpose.

python -m benchmarks.pictures [MODEL]   # accuracy on each kind, of MNIST's test images
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


def rendered(sizes: tuple[int, ...] = (24, 60, 200)) -> Iterator[tuple[Image.Image, int]]:
    """Every digit in each of matplotlib's fonts, dark on light and light on dark."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in FONTS:
        for size in sizes:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), size)
            for digit in range(10):
                for paper, ink in (("white", "black"), ("#123", "#ffd")):
                    picture = Image.new("RGB", (2 * size, 2 * size), paper)
                    ImageDraw.Draw(picture).text((size, size), str(digit), ink, font, anchor="mm")
                    yield picture, digit


def on_paper(
    digit: Digit, chance: Generator, side: int, share: tuple[float, float] = (0.45, 0.8)
) -> NDArray[np.float32]:
    """How much ink is where, in 0..1: the digit somewhere on a square sheet."""
    size = int(side * chance.uniform(*share))
    drawn = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    sheet = np.zeros((side, side), np.float32)
    top, left = chance.integers(0, side - size, 2)
    sheet[top : top + size, left : left + size] = drawn
    return sheet


def photo(ink: NDArray[np.float32], paper: float, pen: float) -> NDArray[np.float32]:
    return paper + (pen - paper) * ink


def plain(digit: Digit, chance: Generator) -> Image.Image:
    return grey(photo(on_paper(digit, chance, 280), 255, 0))


def transparent(digit: Digit, chance: Generator) -> Image.Image:
    """Drawn in a dark or a bright colour on nothing."""
    alpha = np.rint(255 * on_paper(digit, chance, 280)).clip(0, 255).astype(np.uint8)
    color = (20, 30, 90) if chance.random() < 0.5 else (250, 240, 200)
    picture = Image.new("RGBA", (280, 280), color)
    picture.putalpha(Image.fromarray(alpha))
    return picture


def noisy(digit: Digit, chance: Generator) -> Image.Image:
    flat = photo(on_paper(digit, chance, 200), 200, 60)
    return grey(flat + chance.normal(0, 25, flat.shape))


def shaded(digit: Digit, chance: Generator) -> Image.Image:
    """Light from one side: the paper's dark corner is as dark as the ink in the bright one."""
    flat = photo(on_paper(digit, chance, 320), 235, 60)
    angle = chance.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1:1:320j, -1:1:320j]
    light = 0.7 + 0.3 * (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2)
    return grey(flat * light + chance.normal(0, 3, flat.shape))


def blurred(digit: Digit, chance: Generator) -> Image.Image:
    return plain(digit, chance).filter(ImageFilter.GaussianBlur(5))


def tiny(digit: Digit, chance: Generator) -> Image.Image:
    """Small in a corner of a large sheet."""
    return grey(photo(on_paper(digit, chance, 900, (0.1, 0.16)), 240, 40))


def phone(digit: Digit, chance: Generator) -> Image.Image:
    """All at once: a large JPEG on its side, as its EXIF says, of coloured paper in poor light with a dark edge."""
    flat = photo(on_paper(digit, chance, 1200, (0.35, 0.6)), 1, 0.3)
    y, x = np.mgrid[-1:1:1200j, -1:1:1200j]
    light = 190 + 35 * x - 25 * y - 15 * x * x
    paper = np.stack([light, light * 0.95, light * 0.82], -1) * flat[..., None]
    if chance.random() < 0.5:
        paper[:, : int(chance.integers(20, 90))] = (60, 45, 40)  # the table
    picture = rgb(paper + chance.normal(0, 8, (1200, 1200, 1))).filter(ImageFilter.GaussianBlur(2))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned a quarter clockwise
    data = io.BytesIO()
    picture.rotate(90).save(data, "JPEG", quality=70, exif=exif)
    return Image.open(data)


HARD: dict[str, Callable[[Digit, Generator], Image.Image]] = {
    "dark on white, somewhere": plain,
    "transparent, dark or bright": transparent,
    "noise": noisy,
    "shading": shaded,
    "blur": blurred,
    "small in a large sheet": tiny,
    "phone: turned, shaded, noisy, table's edge": phone,
}


def grey(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def rgb(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "RGB")


def accuracy(classifier: Classifier, pictures: Iterator[tuple[Image.Image, int]]) -> float:
    hits = []
    for picture, digit in pictures:
        try:
            hits.append(classifier.predict(picture).label == str(digit))
        except ImageError:
            hits.append(False)
    return float(np.mean(hits))


def made(kind: str, digits: NDArray[np.uint8], labels: NDArray[np.int64]) -> Iterator[tuple[Image.Image, int]]:
    """Each digit made into a picture of the kind, by a seed of its own."""
    return ((HARD[kind](digit, default_rng(seed)), int(label)) for seed, (digit, label) in
            enumerate(zip(digits, labels, strict=True)))  # fmt: skip


if __name__ == "__main__":
    classifier = Classifier(sys.argv[1] if len(sys.argv) > 1 else "data/model/model.onnx")
    images = np.load("data/splits/test-images.npy", mmap_mode="r")[:500, 0]
    labels = np.load("data/splits/test-labels.npy")[:500]
    own = [one.label == str(label) for one, label in zip(classifier.predict(images), labels, strict=True)]
    print(f"| pictures | accuracy |\n|---|---|\n| MNIST's own pixels, as they are | {np.mean(own):.1%} |")
    print(f"| printed, {len(FONTS)} fonts, 3 sizes, both ways round | {accuracy(classifier, rendered()):.1%} |")
    for kind in HARD:
        print(f"| {kind} | {accuracy(classifier, made(kind, images, labels)):.1%} |", flush=True)
