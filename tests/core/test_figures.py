"""Grids of captioned images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.figures import GAP, LINE, SIDE, CaptionedImage, draw_grid


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
    assert red.max() <= GAP + SIDE + GAP


def test_a_long_title_widens_the_page(tmp_path: Path) -> None:
    draw_grid(tmp_path / "grid.png", "a long title " * 5, make_cells(1), 1)
    assert read_pixels(tmp_path / "grid.png").shape[1] > 3 * SIDE
