"""PNG figures: grids of captioned images, and scatter plots of points by class."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stages.core.files import atomic_write

INK, CORRECT_COLOR, WRONG_COLOR, PAPER = "#222222", "#1a7f37", "#cf222e", "#ffffff"
SIDE, GAP, LINE = 84, 10, 20  # pixels: of an image as drawn, between images, and of a line of text
MAX_CAPTION = 180  # pixels; a longer text is cut in its middle, since its ends tell class names apart


@dataclass(frozen=True)
class CaptionedImage:
    image: NDArray[np.uint8]  # (channels, height, width)
    caption: str  # a line break stands where it may be broken; it is drawn on one line if all captions of a grid fit
    color: str = INK


def draw_grid(path: Path, title: str, cells: Sequence[CaptionedImage], columns: int) -> None:
    """Write the images row by row under a title, each with its caption below."""
    # matplotlib's own font: unlike pillow's it has arrows, and most scripts that class names are written in.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size=12)
    captions = wrap_captions([cell.caption for cell in cells], font)
    lines = max(map(len, captions), default=1)
    widest = max((font.getlength(line) for caption in captions for line in caption), default=0)
    column_width = SIDE if widest <= SIDE + GAP else math.ceil(widest)
    width = max(columns * (column_width + GAP) + GAP, int(font.getlength(title)) + 2 * GAP)
    rows, row_height = -(-len(cells) // columns), SIDE + lines * LINE + GAP
    page = Image.new("RGB", (width, LINE + 2 * GAP + rows * row_height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = GAP + column * (column_width + GAP), LINE + 2 * GAP + row * row_height
        page.paste(enlarge_image(cell.image), (x + (column_width - SIDE) // 2, y))
        for number, line in enumerate(captions[index]):
            place = x + column_width / 2, y + SIDE + 2 + number * LINE
            draw.text(place, line, fill=cell.color, font=font, anchor="ma")
    with atomic_write(path) as tmp:
        page.save(tmp, format="png", optimize=True)


def enlarge_image(image: NDArray[np.uint8]) -> Image.Image:
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)


def wrap_captions(captions: list[str], font: ImageFont.FreeTypeFont) -> list[list[str]]:
    """The lines of each caption: one if all captions fit below an image, else one for each part."""
    single = [caption.replace("\n", " ") for caption in captions]
    if all(font.getlength(line) <= SIDE + GAP for line in single):
        return [[line] for line in single]
    return [[shorten_text(part.strip(), font) for part in caption.split("\n")] for caption in captions]


def shorten_text(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, or as much of its start and its end as fits into MAX_CAPTION pixels."""
    kept, shortened = len(text), text
    while font.getlength(shortened) > MAX_CAPTION:
        kept -= 1
        shortened = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shortened


def draw_scatter(
    path: Path, title: str, points: NDArray[np.float32], labels: NDArray[np.int64], names: list[str]
) -> None:
    """Write points, shape (count, 2), coloured by class."""
    import matplotlib.figure  # slow to import, and only this function needs it

    figure = matplotlib.figure.Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(max(len(names), 10))
    for label, name in enumerate(names):
        members = points[labels == label]
        legend = name if len(name) <= 16 else name[:15] + "…"
        axes.scatter(members[:, 0], members[:, 1], s=14, color=colors(label), label=legend)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    if len(names) <= 30:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with atomic_write(path) as tmp, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a script that the font lacks is drawn as boxes
        figure.savefig(tmp, format="png", dpi=100, metadata={"Software": None})
