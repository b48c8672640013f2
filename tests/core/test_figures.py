"""Grids of captioned images."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from stages.core.figures import GAP, LINE, MAX_CAPTION, SIDE, CaptionedImage, draw_grid, shorten_text


def make_cells(count: int, channels: int = 1) -> list[CaptionedImage]:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, 12, 12), dtype=np.uint8)
    return [CaptionedImage(image, f"number {index}") for index, image in enumerate(images)]


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as page:
        return np.asarray(page, int)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (8, 8, 1), (9, 8, 2), (6, 3, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_has_room_for_every_row_and_column(
    count: int, columns: int, rows: int, channels: int, tmp_path: Path
) -> None:
    draw_grid(tmp_path / "grid.png", "a", make_cells(count, channels), columns)
    with Image.open(tmp_path / "grid.png") as page:
        assert page.format == "PNG"
        assert page.size == (GAP + columns * (SIDE + GAP), LINE + 2 * GAP + rows * (SIDE + LINE + GAP))
        page.load()


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_grid(tmp_path / name, "title", make_cells(5), 3)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_images_are_drawn_enlarged_in_the_colours_that_they_have(tmp_path: Path) -> None:
    red = np.zeros((3, 4, 4), np.uint8)
    red[0] = 255
    draw_grid(
        tmp_path / "grid.png", "a", [CaptionedImage(red, ""), CaptionedImage(np.full((1, 4, 4), 90, np.uint8), "")], 2
    )
    page = read_pixels(tmp_path / "grid.png")
    top, left = LINE + 2 * GAP, GAP
    assert (page[top : top + SIDE, left : left + SIDE] == [255, 0, 0]).all()
    left += SIDE + GAP
    assert (page[top : top + SIDE, left : left + SIDE] == 90).all()


def test_a_caption_has_its_colour_and_is_cut_to_its_cell(tmp_path: Path) -> None:
    image = np.zeros((1, 4, 4), np.uint8)
    draw_grid(tmp_path / "grid.png", "a", [CaptionedImage(image, "m" * 99, "#ff0000"), CaptionedImage(image, "")], 2)
    page = read_pixels(tmp_path / "grid.png")
    below = page[LINE + 2 * GAP + SIDE :]
    red = np.flatnonzero((below[..., 0] - below[..., 1] > 100).any(axis=0))
    assert red.size
    assert red.max() <= GAP + MAX_CAPTION + GAP


def test_long_captions_are_drawn_whole_in_several_lines_and_a_wider_column(tmp_path: Path) -> None:
    image = np.zeros((1, 4, 4), np.uint8)
    for name, caption in (("short", "cat →\ndog\n 9%"), ("long", "european_badger →\nwhite_tailed_eagle\n 97%")):
        draw_grid(tmp_path / f"{name}.png", "a", [CaptionedImage(image, caption)] * 2, 2)
    short, long = read_pixels(tmp_path / "short.png"), read_pixels(tmp_path / "long.png")
    assert short.shape[:2] == (2 * LINE + 2 * GAP + SIDE + GAP, 3 * GAP + 2 * SIDE)
    assert long.shape[0] == short.shape[0] + 2 * LINE
    assert long.shape[1] > short.shape[1]


@pytest.mark.parametrize("text", [f"station wagon of the year 1999 in {color}" for color in ("red", "blue")])
def test_a_text_that_is_too_long_keeps_its_start_and_its_end(text: str) -> None:
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size=12)
    shortened = shorten_text(text, font)
    assert font.getlength(shortened) <= MAX_CAPTION
    start, end = shortened.split("…")
    assert text.startswith(start)
    assert text.endswith(end)
    assert min(len(start), len(end)) > 8


def test_a_long_title_widens_the_page(tmp_path: Path) -> None:
    draw_grid(tmp_path / "grid.png", "a long title " * 5, make_cells(1), 1)
    assert read_pixels(tmp_path / "grid.png").shape[1] > 3 * SIDE
