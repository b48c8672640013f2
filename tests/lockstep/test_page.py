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
from served import Service, png, running

pytestmark = pytest.mark.slow

Stroke = list[tuple[float, float]]
# In shares of the drawing area.
ONE: list[Stroke] = [[(0.52, 0.18), (0.5, 0.5), (0.48, 0.84)]]
SEVEN: list[Stroke] = [[(0.28, 0.22), (0.5, 0.21), (0.72, 0.2), (0.6, 0.45), (0.5, 0.65), (0.44, 0.85)]]
NOUGHT: list[Stroke] = [
    [(0.5 + 0.2 * math.sin(turn / 12 * math.tau), 0.5 - 0.3 * math.cos(turn / 12 * math.tau)) for turn in range(13)]
]
DIGITS = [("1", ONE), ("7", SEVEN), ("0", NOUGHT)]


@pytest.fixture(scope="module")
def reader(handwritten: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("reader"), handwritten) as service:
        yield service


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium") / "profile") as one:
        yield one


@pytest.fixture
def page(reader: Service, chromium: Chromium) -> Iterator[Page]:
    page = opened(reader, chromium)
    yield page
    assert [url for url in page.asked if not url.startswith((reader.url, "data:", "blob:"))] == []
    assert page.complaints == []


def opened(reader: Service, chromium: Chromium) -> Page:
    page = chromium.page(reader.url)
    page.until("document.querySelectorAll('#bars li').length === 10")
    return page


def place(page: Page) -> tuple[float, float, float]:
    box = page.value("JSON.stringify(document.getElementById('draw').getBoundingClientRect())")
    found = json.loads(box)
    return found["x"], found["y"], found["width"]


def stroke(page: Page, points: Stroke, finger: bool = False) -> None:
    x, y, side = place(page)
    fine = [
        (x + side * (a[0] + (b[0] - a[0]) * part / 6), y + side * (a[1] + (b[1] - a[1]) * part / 6))
        for a, b in pairwise(points)
        for part in range(7)
    ]
    if finger:
        page.touch("touchStart", fine[0])
        for point in fine[1:]:
            page.touch("touchMove", point)
        page.touch("touchEnd")
        return
    page.mouse("mousePressed", *fine[0])
    for point in fine[1:]:
        page.mouse("mouseMoved", *point)
    page.mouse("mouseReleased", *fine[-1])


def says(page: Page, label: str) -> None:
    page.until(f"document.getElementById('label').textContent === '{label}'")
    page.until(f"document.querySelector('#bars .best .name').textContent === '{label}'")


@pytest.mark.parametrize(("label", "strokes"), DIGITS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_strokes_that_draw_a_digit_give_its_label(page: Page, label: str, strokes: list[Stroke], scheme: str) -> None:
    page.scheme(scheme)
    for points in strokes:
        stroke(page, points)
    says(page, label)
    shares = page.value("[...document.querySelectorAll('#bars .probability')].map(one => parseFloat(one.textContent))")
    assert sum(shares) == pytest.approx(100, abs=1)
    assert shares[int(label)] == max(shares)
    seen = page.value("Array.from(document.getElementById('input').getContext('2d').getImageData(0, 0, 28, 28).data)")
    grey = np.array(seen).reshape(28, 28, 4)[:, :, 0]
    rows, columns = np.nonzero(grey > 40)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
    page.value("document.getElementById('clear').click()")
    assert page.value("document.getElementById('label').textContent") == "?"


def test_it_answers_while_a_stroke_is_still_drawn(page: Page) -> None:
    x, y, side = place(page)
    page.mouse("mousePressed", x + side / 2, y + side * 0.2)
    for part in range(20):
        page.mouse("mouseMoved", x + side / 2, y + side * (0.2 + 0.03 * part))
    says(page, "1")
    page.mouse("mouseReleased", x + side / 2, y + side * 0.8)


def test_a_finger_on_a_phone(page: Page) -> None:
    page.shape(360, 740, mobile=True, scale=2)
    page.until("innerWidth === 360")
    assert page.value("document.documentElement.scrollWidth") <= 360
    for points in SEVEN:
        stroke(page, points, finger=True)
    says(page, "7")


def test_the_keyboard_draws_and_clears(page: Page) -> None:
    page.value("document.getElementById('draw').focus()")
    page.key("ArrowUp", 8)
    page.key(" ")
    page.key("ArrowDown", 16)
    page.key(" ")
    says(page, "1")
    page.key("Delete")
    assert page.value("document.getElementById('label').textContent") == "?"
    page.key("Tab")
    assert page.value("document.activeElement.id") == "clear"


def test_a_picture_that_is_opened(page: Page, tmp_path: Path) -> None:
    picture = Image.new("RGB", (640, 480), "#e9e2d0")
    ImageDraw.Draw(picture).line([(180, 100), (400, 95), (270, 400)], fill="#27324f", width=26, joint="curve")
    (tmp_path / "seven.png").write_bytes(png(picture))
    (tmp_path / "none.png").write_bytes(b"no picture")
    for name, wanted in (("seven.png", "7"), ("none.png", "?")):
        node = page.tell("DOM.getDocument")["root"]["nodeId"]
        found = page.tell("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
        page.tell("DOM.setFileInputFiles", nodeId=found, files=[str(tmp_path / name)])
        page.until(f"document.getElementById('label').textContent === '{wanted}'")
    page.until("document.getElementById('message').textContent.includes('not a readable image')")
    page.complaints.clear()  # Chromium logs the 422
