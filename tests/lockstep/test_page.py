"""The page at /, in a real Chromium: strokes that draw a digit give its label."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser import Chromium, Page
from PIL import Image, ImageDraw
from served import Service, png_bytes, run_service

pytestmark = pytest.mark.slow

Stroke = list[tuple[float, float]]
# Fractions of the drawing area.
ONE: list[Stroke] = [[(0.52, 0.18), (0.5, 0.5), (0.48, 0.84)]]
SEVEN: list[Stroke] = [[(0.28, 0.22), (0.5, 0.21), (0.72, 0.2), (0.6, 0.45), (0.5, 0.65), (0.44, 0.85)]]
ZERO: list[Stroke] = [
    [(0.5 + 0.2 * math.sin(turn / 12 * math.tau), 0.5 - 0.3 * math.cos(turn / 12 * math.tau)) for turn in range(13)]
]
DIGITS = [("1", ONE), ("7", SEVEN), ("0", ZERO)]


@pytest.fixture(scope="module")
def digit_service(handwriting_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("reader"), handwriting_model) as service:
        yield service


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium") / "profile") as chromium:
        yield chromium


@pytest.fixture
def page(digit_service: Service, chromium: Chromium) -> Iterator[Page]:
    page = open_page(digit_service, chromium)
    yield page
    assert [url for url in page.requested_urls if not url.startswith((digit_service.url, "data:", "blob:"))] == []
    assert page.errors == []


def open_page(digit_service: Service, chromium: Chromium) -> Page:
    page = chromium.page(digit_service.url)
    page.wait_until("document.querySelectorAll('#bars li').length === 10")
    return page


def canvas_box(page: Page) -> tuple[float, float, float]:
    """Left, top and side."""
    box = page.evaluate("JSON.stringify(document.getElementById('draw').getBoundingClientRect())")
    x, y, width = (json.loads(box)[key] for key in ("x", "y", "width"))
    return x, y, width


def draw_stroke(page: Page, points: Stroke, finger: bool = False) -> None:
    x, y, side = canvas_box(page)
    path = [
        (x + side * (a[0] + (b[0] - a[0]) * part / 6), y + side * (a[1] + (b[1] - a[1]) * part / 6))
        for a, b in pairwise(points)
        for part in range(7)
    ]
    if finger:
        page.send_touch("touchStart", path[0])
        for point in path[1:]:
            page.send_touch("touchMove", point)
        page.send_touch("touchEnd")
        return
    page.send_mouse("mousePressed", *path[0])
    for point in path[1:]:
        page.send_mouse("mouseMoved", *point)
    page.send_mouse("mouseReleased", *path[-1])


def wait_for_label(page: Page, label: str) -> None:
    page.wait_until(f"document.getElementById('label').textContent === '{label}'")
    page.wait_until(f"document.querySelector('#bars .best .name').textContent === '{label}'")


@pytest.mark.parametrize(("label", "strokes"), DIGITS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_strokes_that_draw_a_digit_give_its_label(page: Page, label: str, strokes: list[Stroke], scheme: str) -> None:
    page.set_color_scheme(scheme)
    for points in strokes:
        draw_stroke(page, points)
    wait_for_label(page, label)
    probabilities = page.evaluate(
        "[...document.querySelectorAll('#bars .probability')].map(bar => parseFloat(bar.textContent))"
    )
    assert sum(probabilities) == pytest.approx(100, abs=1)
    assert probabilities[int(label)] == max(probabilities)
    input_data = page.evaluate(
        "Array.from(document.getElementById('input').getContext('2d').getImageData(0, 0, 28, 28).data)"
    )
    gray = np.array(input_data).reshape(28, 28, 4)[:, :, 0]
    rows, columns = np.nonzero(gray > 40)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
    page.evaluate("document.getElementById('clear').click()")
    assert page.evaluate("document.getElementById('label').textContent") == "?"


def test_the_label_is_shown_while_a_stroke_is_being_drawn(page: Page) -> None:
    x, y, side = canvas_box(page)
    page.send_mouse("mousePressed", x + side / 2, y + side * 0.2)
    for part in range(20):
        page.send_mouse("mouseMoved", x + side / 2, y + side * (0.2 + 0.03 * part))
    wait_for_label(page, "1")
    page.send_mouse("mouseReleased", x + side / 2, y + side * 0.8)


def test_a_finger_draws_on_a_phone(page: Page) -> None:
    page.set_viewport(360, 740, mobile=True, scale=2)
    page.wait_until("innerWidth === 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for points in SEVEN:
        draw_stroke(page, points, finger=True)
    wait_for_label(page, "7")


def test_the_keyboard_draws_and_clears(page: Page) -> None:
    page.evaluate("document.getElementById('draw').focus()")
    page.press_key("ArrowUp", 8)
    page.press_key(" ")
    page.press_key("ArrowDown", 16)
    page.press_key(" ")
    wait_for_label(page, "1")
    page.press_key("Delete")
    assert page.evaluate("document.getElementById('label').textContent") == "?"
    page.press_key("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"


def test_an_image_file_is_opened(page: Page, tmp_path: Path) -> None:
    image = Image.new("RGB", (640, 480), "#e9e2d0")
    ImageDraw.Draw(image).line([(180, 100), (400, 95), (270, 400)], fill="#27324f", width=26, joint="curve")
    (tmp_path / "seven.png").write_bytes(png_bytes(image))
    (tmp_path / "none.png").write_bytes(b"not an image")
    for name, label in (("seven.png", "7"), ("none.png", "?")):
        node = page.send("DOM.getDocument")["root"]["nodeId"]
        file_input = page.send("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
        page.send("DOM.setFileInputFiles", nodeId=file_input, files=[str(tmp_path / name)])
        page.wait_until(f"document.getElementById('label').textContent === '{label}'")
    page.wait_until("document.getElementById('message').textContent.includes('not a readable image')")
    page.errors.clear()  # Chromium logs the 422
