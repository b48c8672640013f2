"""Pictures for people: grids of captioned images, and points of the plane by class."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stages.core.files import atomic_write

INK, RIGHT, WRONG, PAPER = "#222222", "#1a7f37", "#cf222e", "#ffffff"
SIDE = 84  # pixels of a drawn image
GAP = 10


@dataclass(frozen=True)
class CaptionedImage:
    image: NDArray[np.uint8]  # (channels, height, width)
    caption: str
    color: str = INK


def draw_grid(path: Path, title: str, cells: Sequence[CaptionedImage], columns: int) -> None:
    """Write the images row by row under a title, each with its caption below."""
    font = readable_font()
    line = 20  # pixels of a line of text
    width = max(columns * (SIDE + GAP) + GAP, int(font.getlength(title)) + 2 * GAP)
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (width, line + 2 * GAP + rows * (SIDE + line + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = GAP + column * (SIDE + GAP), line + 2 * GAP + row * (SIDE + line + GAP)
        page.paste(drawn(cell.image), (x, y))
        draw.text((x + SIDE / 2, y + SIDE + 2), fitting(cell.caption, font), fill=cell.color, font=font, anchor="ma")
    save(page, path)


def drawn(image: NDArray[np.uint8]) -> Image.Image:
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)


def readable_font() -> ImageFont.FreeTypeFont:
    """matplotlib's own: unlike pillow's it has arrows, and most scripts that classes are named in."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size=12)


def fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= SIDE + GAP:
        return text
    while text and font.getlength(text + "…") > SIDE + GAP:
        text = text[:-1]
    return text + "…"


def save(page: Image.Image, path: Path) -> None:
    with atomic_write(path) as beside:
        page.save(beside, format="png", optimize=True)


def draw_scatter(
    path: Path, title: str, points: NDArray[np.float32], labels: NDArray[np.int64], names: list[str]
) -> None:
    """Points of the plane, coloured by class."""
    import matplotlib.figure  # only who plots pays for the import

    figure = matplotlib.figure.Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(max(len(names), 10))
    for label, name in enumerate(names):
        some = points[labels == label]
        axes.scatter(some[:, 0], some[:, 1], s=14, color=colors(label), label=fitted(name))
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    if len(names) <= 30:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with atomic_write(path) as beside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a script that the font lacks is drawn as boxes
        figure.savefig(beside, format="png", dpi=100, metadata={"Software": None})


def fitted(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
