"""Draws the test images that two models answer differently, one rightly and one wrongly, as one PNG."""

import json
from pathlib import Path
from typing import Any

from flows.comparison import Comparison
from flows.dvc.dag import read_dag
from flows.errors import FlowError
from flows.predictions import Prediction

INK, CORRECT_COLOR, WRONG_COLOR, PAPER = "#222222", "#1a7f37", "#cf222e", "#ffffff"
SIDE, GAP, LINE = 96, 12, 17  # pixels: of an image as drawn, between images, and of a line of text
COLUMNS, MAX_DRAWN = 8, 48


def draw_changes(path: Path, root: Path, comparison: Comparison) -> str:
    """Draw at most MAX_DRAWN of them, those lost first; returns what the picture shows, empty if none changed sides.

    An error if the splits are not here, or are of other images.
    """
    from PIL import Image, ImageDraw  # slow to import, and needed for this picture only

    shown, won, lost = comparison.shown_images(MAX_DRAWN), comparison.test.won, comparison.test.lost
    if not shown:
        return ""
    images = open_test_images(root, comparison)
    font, height = load_font(), SIDE + 3 * LINE + GAP  # of a row
    title = f"{comparison.new.revision} after {comparison.old.revision}: {lost} test images lost, {won} won"
    width = max(COLUMNS * (SIDE + GAP) + GAP, int(font.getlength(title)) + 2 * GAP)
    page = Image.new("RGB", (width, LINE + 2 * GAP + -(-len(shown) // COLUMNS) * height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for cell, change in enumerate(shown):
        x, y = GAP + cell % COLUMNS * (SIDE + GAP), LINE + 2 * GAP + cell // COLUMNS * height
        page.paste(enlarge_image(images[change.index]), (x, y))
        lines = [(change.new.image, INK), caption(change.old), caption(change.new, "→ ")]
        for line, (text, color) in enumerate(lines):
            draw.text((x, y + SIDE + 1 + line * LINE), shorten_text(text, font), fill=color, font=font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path, format="png")
    except OSError as error:
        raise FlowError(f"{path}: cannot be written: {error.strerror or error}") from error
    return "all of them" if len(shown) == won + lost else f"{len(shown)} of them"


def caption(answer: Prediction, before: str = "") -> tuple[str, str]:
    """A line's text and colour."""
    return f"{before}{answer.predicted}", CORRECT_COLOR if answer.is_correct else WRONG_COLOR


def open_test_images(root: Path, comparison: Comparison) -> Any:
    """The test split's images, by memory map, if its labels are those of the comparison."""
    import numpy as np

    folders = [out for stage in read_dag(root).stages.values() for out in stage.outs if Path(out).name == "splits"]
    if not folders:
        raise FlowError("dvc.yaml: has no folder of splits")
    folder = root / folders[0]
    try:
        classes = json.loads((folder / "about.json").read_text(encoding="utf-8"))["classes"]
        labels = [classes[label] for label in np.load(folder / "test-labels.npy").tolist()]
        images = np.load(folder / "test-images.npy", mmap_mode="r")  # (count, channels, height, width)
    except FileNotFoundError:
        raise FlowError(f"{folders[0]} is not here; `dvc checkout {folders[0]}` may bring it") from None
    except (OSError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        raise FlowError(f"{folders[0]} is not what preprocess writes: {error!r}") from None
    if len(images) != len(labels) or labels != [row.label for row in comparison.new.rows]:
        raise FlowError(f"{folders[0]} has other test images; check out the revision that they are of")
    return images


def load_font() -> Any:
    """matplotlib's own font: unlike pillow's it has arrows, and most scripts that class names are written in."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size=11)


def enlarge_image(pixels: Any) -> Any:
    """Of uint8[channels, height, width]."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)


def shorten_text(text: str, font: Any) -> str:
    """The text, or its end, where a file's name is, as far as it fits."""
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength("…" + text) > SIDE:
        text = text[1:]
    return "…" + text
