"""PNG figures: grids of captioned images, and scatter plots of points by class."""

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


@dataclass(frozen=True)
class CaptionedImage:
    image: NDArray[np.uint8]  # (channels, height, width)
    caption: str
    color: str = INK


def draw_grid(path: Path, title: str, cells: Sequence[CaptionedImage], columns: int) -> None:
    """Write the images row by row under a title, each with its caption below."""
    # matplotlib's own font: unlike pillow's it has arrows, and most scripts that class names are written in.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size=12)
    width = max(columns * (SIDE + GAP) + GAP, int(font.getlength(title)) + 2 * GAP)
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (width, LINE + 2 * GAP + rows * (SIDE + LINE + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = GAP + column * (SIDE + GAP), LINE + 2 * GAP + row * (SIDE + LINE + GAP)
        page.paste(enlarge_image(cell.image), (x, y))
        caption = shorten_text(cell.caption, font)
        draw.text((x + SIDE / 2, y + SIDE + 2), caption, fill=cell.color, font=font, anchor="ma")
    with atomic_write(path) as tmp:
        page.save(tmp, format="png", optimize=True)


def enlarge_image(image: NDArray[np.uint8]) -> Image.Image:
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)


def shorten_text(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, or as much of its start as fits below an image."""
    if font.getlength(text) <= SIDE + GAP:
        return text
    while text and font.getlength(text + "…") > SIDE + GAP:
        text = text[:-1]
    return text + "…"


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
