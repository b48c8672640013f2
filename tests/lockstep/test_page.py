"""The page at /, in a real Chromium: strokes that draw a digit give its label; a model of photos is given a picture."""

import base64
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser import Chromium, Page
from conftest import run_stage_in, write_params
from PIL import Image, ImageDraw
from served import Service, png_bytes, run_service

from stages.download import download
from stages.export_onnx import export_onnx
from stages.preprocess import preprocess
from stages.train import train

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


MARKUP = "<b>red ball"  # a class may have any name that a folder can have: on the page it is text
COLORS = {MARKUP: "#d22", "blue ball": "#22d", "a ball of a dark, but not quite black, green": "#041"}


def draw_ball(label: str, x: int = 24) -> Image.Image:
    image = Image.new("RGB", (48, 36), "#eee")
    ImageDraw.Draw(image).ellipse([x - 12, 6, x + 12, 30], fill=COLORS[label])
    return image


@pytest.fixture(scope="module")
def photo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with a model of own images in colour; it is not proven, which the page does not need."""
    folder = tmp_path_factory.mktemp("photos")
    for label in COLORS:
        (folder / "own" / label).mkdir(parents=True)
        for number in range(24):
            draw_ball(label, 14 + number % 20).save(folder / "own" / label / f"{number}.png")
    write_params(folder / "params.yaml", {"download.dataset": "own", "preprocess.channels": 3, "train.epochs": 20})
    for stage in (download, preprocess, train, export_onnx):
        run_stage_in(folder, stage)
    with run_service(folder, folder / "model.onnx", "--no-verify") as service:
        yield service


@pytest.fixture
def photo_page(photo_service: Service, chromium: Chromium) -> Iterator[Page]:
    page = open_page(photo_service, chromium, classes=3)
    yield page
    assert page.errors == []


@pytest.fixture
def page(digit_service: Service, chromium: Chromium) -> Iterator[Page]:
    page = open_page(digit_service, chromium)
    yield page
    assert [url for url in page.requested_urls if not url.startswith((digit_service.url, "data:", "blob:"))] == []
    assert page.errors == []


def open_page(service: Service, chromium: Chromium, classes: int = 10) -> Page:
    page = chromium.page(service.url)
    page.wait_until(f"document.querySelectorAll('#bars li').length === {classes}")
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


def choose_file(page: Page, path: Path) -> None:
    node = page.send("DOM.getDocument")["root"]["nodeId"]
    file_input = page.send("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=file_input, files=[str(path)])


def read_text(page: Page, name: str) -> str:
    return str(page.evaluate(f"document.getElementById('{name}').innerText"))


def is_visible(page: Page, name: str) -> bool:
    return bool(page.evaluate(f"document.getElementById('{name}').checkVisibility()"))


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
        choose_file(page, tmp_path / name)
        page.wait_until(f"document.getElementById('label').textContent === '{label}'")
    page.wait_until("document.getElementById('message').textContent.includes('not a readable image')")
    page.errors.clear()  # Chromium logs the 422


def test_a_model_prepared_like_mnists_asks_for_a_drawing(page: Page) -> None:
    assert read_text(page, "title") == "Classify a drawing or an image"
    assert read_text(page, "help").startswith("Draw with a mouse or a finger")
    assert not is_visible(page, "invitation")
    assert not is_visible(page, "mode")


def test_another_model_asks_for_a_picture_and_names_the_classes(photo_page: Page) -> None:
    assert read_text(photo_page, "title") == "Classify a picture"
    help_text = read_text(photo_page, "help")
    assert help_text.startswith("Drop, paste or choose a picture. The network knows 3 classes: ")
    assert all(label in help_text for label in COLORS)
    assert "Draw" not in help_text
    assert "Drop a picture here" in read_text(photo_page, "invitation")
    assert photo_page.evaluate("document.querySelector('#buttons button').textContent") == "Choose a picture…"
    draw_stroke(photo_page, ONE[0])  # opens the chooser, and draws nothing
    assert read_text(photo_page, "label") == "?"


@pytest.mark.parametrize("label", COLORS)
def test_a_chosen_picture_gives_its_label(photo_page: Page, label: str, tmp_path: Path) -> None:
    (tmp_path / "ball.png").write_bytes(png_bytes(draw_ball(label)))
    choose_file(photo_page, tmp_path / "ball.png")
    wait_for_label(photo_page, label)
    assert not is_visible(photo_page, "invitation")
    assert photo_page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    photo_page.evaluate("document.getElementById('clear').click()")
    assert read_text(photo_page, "label") == "?"
    assert is_visible(photo_page, "invitation")


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(photo_page: Page, event: str) -> None:
    data = base64.b64encode(png_bytes(draw_ball("blue ball"))).decode()
    key = {"paste": "clipboardData", "drop": "dataTransfer"}[event]
    kind = {"paste": "ClipboardEvent", "drop": "DragEvent"}[event]
    photo_page.evaluate(f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), character => character.charCodeAt(0)), transfer = new DataTransfer()
      transfer.items.add(new File([bytes], "ball.png", {{type: "image/png"}}))
      const target = document.getElementById("draw")
      target.dispatchEvent(new {kind}("{event}", {{{key}: transfer, bubbles: true, cancelable: true}}))
    }})()""")
    wait_for_label(photo_page, "blue ball")


def test_a_picture_that_the_browser_cannot_show_is_classified(photo_page: Page, tmp_path: Path) -> None:
    draw_ball(MARKUP).save(tmp_path / "ball.tif")
    choose_file(photo_page, tmp_path / "ball.tif")
    wait_for_label(photo_page, MARKUP)
    photo_page.wait_until(
        "document.getElementById('invitation').innerText.includes('This browser cannot show the file')"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_who_wants_to_can_draw_dark_on_white(photo_page: Page, scheme: str) -> None:
    photo_page.set_color_scheme(scheme)
    photo_page.evaluate("document.getElementById('mode').click()")
    assert not is_visible(photo_page, "invitation")
    for points in ZERO:
        draw_stroke(photo_page, points)
    photo_page.wait_until("document.getElementById('label').textContent !== '?'")
    pixels = photo_page.evaluate(
        "Array.from(document.getElementById('input').getContext('2d').getImageData(0, 0, 28, 28).data)"
    )
    gray = np.array(pixels).reshape(28, 28, 4)[:, :, 0]
    assert gray[0].min() > 240
    assert gray.min() < 90
    photo_page.evaluate("document.getElementById('mode').click()")
    assert "Drop a picture here" in read_text(photo_page, "invitation")


def test_the_keyboard_chooses_a_picture(photo_page: Page) -> None:
    photo_page.send("Page.setInterceptFileChooserDialog", enabled=True)
    photo_page.evaluate("window.opened = 0; document.getElementById('file').addEventListener('click', () => opened++)")
    photo_page.evaluate("document.getElementById('draw').focus()")
    photo_page.press_key("Enter")
    photo_page.wait_until("opened === 1")
    assert photo_page.evaluate("document.getElementById('draw').getAttribute('role')") == "button"
