"""Two sets of hard pictures in colour, made from nothing but a seed: printed glyphs, and signs.

Each picture shows one object turned, partly covered, blurred and noisy, among other things. No class is the mirror
image of another. `write_image_folder` writes them as a person would have them in data/own.
"""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Color = tuple[int, int, int]
Point = tuple[float, float]
SCALE = 3  # pictures are drawn larger, then reduced
SIZE = 64
GLYPHS = "ABCEFGHKMPRTXY34568&"
# Shape, colour of the ground, colour of the mark, and the mark: some classes differ in one of them only.
SIGNS: dict[str, tuple[str, Color, Color, str]] = {
    "stop": ("octagon", (190, 30, 40), (240, 240, 240), "bar"),
    "closed": ("circle", (190, 30, 40), (240, 240, 240), "bar"),
    "keep-out": ("circle", (190, 30, 40), (240, 240, 240), "cross"),
    "clinic": ("square", (40, 80, 180), (240, 240, 240), "plus"),
    "chemist": ("square", (30, 140, 70), (240, 240, 240), "plus"),
    "way-up": ("square", (40, 80, 180), (240, 240, 240), "arrow"),
    "exit": ("square", (30, 140, 70), (240, 240, 240), "arrow"),
    "must-go": ("circle", (40, 80, 180), (240, 240, 240), "arrow"),
    "must-walk": ("circle", (40, 80, 180), (240, 240, 240), "figure"),
    "danger": ("triangle", (235, 190, 40), (30, 30, 30), "exclamation"),
    "crossing": ("triangle", (235, 190, 40), (30, 30, 30), "figure"),
    "crossroads": ("triangle", (235, 190, 40), (30, 30, 30), "plus"),
    "works": ("diamond", (230, 120, 30), (30, 30, 30), "figure"),
    "diversion": ("diamond", (230, 120, 30), (30, 30, 30), "arrow"),
    "hazard": ("diamond", (235, 190, 40), (30, 30, 30), "exclamation"),
    "main-road": ("diamond", (240, 240, 240), (235, 190, 40), "dot"),
}


def draw_glyph(name: str, rng: random.Random) -> Image.Image:
    """A letter, digit or ampersand in a random colour, with an outline that is light if it is dark, or the reverse."""
    side = SIZE * SCALE
    image = Image.new("RGBA", (side, side))
    font = ImageFont.load_default(size=side * rng.uniform(0.6, 0.85))
    color = random_color(rng)
    outline = vary_color((225, 225, 225) if sum(color) < 3 * 128 else (30, 30, 30), rng)
    stroke = rng.randrange(side // 60, side // 24)
    draw = ImageDraw.Draw(image)
    draw.text((side / 2, side / 2), name, color, font, anchor="mm", stroke_width=stroke, stroke_fill=outline)
    return image


def draw_sign(name: str, rng: random.Random) -> Image.Image:
    """A sign whose colours have faded, or are in the shade."""
    shape, ground, ink, mark = SIGNS[name]
    side = SIZE * SCALE
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    radius = side * rng.uniform(0.3, 0.42)
    ground, ink = vary_color(ground, rng), vary_color(ink, rng)
    outline, angle = OUTLINES[shape]
    draw.polygon(regular_polygon(side / 2, radius, outline, angle), ink)
    draw.polygon(regular_polygon(side / 2, radius * 0.9, outline, angle), ground)
    draw_mark(draw, mark, side / 2, radius * (0.4 if shape == "triangle" else 0.5), ink)
    return image


# By name: number of corners, and the angle of the first, in degrees clockwise from the top.
OUTLINES = {"circle": (48, 0.0), "octagon": (8, 22.5), "square": (4, 45.0), "diamond": (4, 0.0), "triangle": (3, 0.0)}


def regular_polygon(centre: float, radius: float, corners: int, start: float) -> list[Point]:
    angles = [math.radians(start + 360 * corner / corners) for corner in range(corners)]
    return [(centre + radius * math.sin(angle), centre - radius * math.cos(angle)) for angle in angles]


def draw_mark(draw: ImageDraw.ImageDraw, mark: str, centre: float, size: float, ink: Color) -> None:
    def place(*points: Point) -> list[Point]:
        return [(centre + size * x, centre + size * y) for x, y in points]

    width = round(size * 0.45)
    lines: dict[str, list[tuple[Point, Point]]] = {
        "bar": [((-1, 0), (1, 0))],
        "plus": [((-1, 0), (1, 0)), ((0, -1), (0, 1))],
        "cross": [((-0.8, -0.8), (0.8, 0.8)), ((-0.8, 0.8), (0.8, -0.8))],
        "arrow": [((0, -0.6), (0, 1))],
        "exclamation": [((0, -1), (0, 0.3))],
        "figure": [((0, -0.4), (0, 0.3)), ((0, 0.2), (-0.45, 1)), ((0, 0.2), (0.45, 1)), ((-0.6, -0.1), (0.6, -0.1))],
        "dot": [],
    }
    for line in lines[mark]:
        draw.line(place(*line), ink, width // 2 if mark == "figure" else width)
    dots = {"dot": ((0, 0), 0.7), "figure": ((0, -0.8), 0.3), "exclamation": ((0, 0.8), 0.25)}
    if mark in dots:
        (x, y), radius = dots[mark]
        draw.ellipse(place((x - radius, y - radius), (x + radius, y + radius)), ink)
    if mark == "arrow":
        draw.polygon(place((0, -1.1), (-0.7, -0.2), (0.7, -0.2)), ink)


MADE_SETS: dict[str, tuple[list[str], Callable[[str, random.Random], Image.Image]]] = {
    "glyphs": ([*GLYPHS], draw_glyph),
    "signs": ([*SIGNS], draw_sign),
}


def make_picture(kind: str, name: str, seed: str) -> Image.Image:
    """RGB, SIZE x SIZE: an object of the class, turned and tilted, on a cluttered ground; covered, blurred, noisy."""
    rng = random.Random(f"{kind}/{name}/{seed}")
    side = SIZE * SCALE
    picture = draw_clutter(side, rng)
    subject = MADE_SETS[kind][1](name, rng)
    subject = subject.transform((side, side), Image.Transform.PERSPECTIVE, random_tilt(side, rng), BILINEAR)
    shift = (rng.randrange(-side // 10, side // 10), rng.randrange(-side // 10, side // 10))
    subject = subject.rotate(rng.gauss(0, 14), BILINEAR, translate=shift)
    shadow = subject.getchannel("A").point(lambda alpha: alpha // 3)
    picture.paste((0, 0, 0), (side // 40, side // 40), shadow)
    picture.paste(subject, (0, 0), subject)
    for _ in range(rng.choice((0, 1, 1, 2))):
        cover(picture, rng)
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.45, 1.3))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.5, 1.2))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.choice((0, 0.5, 1, 1.6))))
    return add_noise(picture, rng)


BILINEAR = Image.Resampling.BILINEAR


def draw_clutter(side: int, rng: random.Random) -> Image.Image:
    """A ground of two colours with lines, discs, boxes and scraps of text on it."""
    picture = Image.new("RGB", (side, side), random_color(rng))
    picture.paste(random_color(rng), (0, rng.randrange(side), side, side))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(4, 14)):
        corners = sorted(rng.uniform(-0.2, 1.2) * side for _ in range(4))
        color, kind = random_color(rng), rng.randrange(4)
        box = (corners[0], corners[1], corners[2], corners[3])
        if kind == 0:
            draw.line([(rng.uniform(0, side), rng.uniform(0, side)) for _ in "ab"], color, rng.randrange(1, side // 12))
        elif kind == 1:
            draw.ellipse(shrink(box, rng), color)
        elif kind == 2:
            draw.rectangle(shrink(box, rng), color)
        else:
            font = ImageFont.load_default(size=side * rng.uniform(0.1, 0.3))
            draw.text((rng.uniform(0, side), rng.uniform(0, side)), rng.choice("abdhkz27%?#"), color, font, anchor="mm")
    return picture


def shrink(box: tuple[float, float, float, float], rng: random.Random) -> tuple[float, float, float, float]:
    """A part of the box, somewhere."""
    width, height = (box[2] - box[0]) * rng.uniform(0.1, 0.5), (box[3] - box[1]) * rng.uniform(0.1, 0.5)
    left, top = rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3])
    return left, top, left + width, top + height


def cover(picture: Image.Image, rng: random.Random) -> None:
    """Lay a bar or a box over a part of the picture."""
    side = picture.width
    draw = ImageDraw.Draw(picture)
    if rng.random() < 0.5:
        ends = [(rng.uniform(0, side), 0), (rng.uniform(0, side), side)]
        draw.line(ends if rng.random() < 0.5 else [(y, x) for x, y in ends], random_color(rng), side // 10)
    else:
        left, top = (rng.uniform(0.1, 0.7) * side for _ in "xy")
        width, height = (rng.uniform(0.12, 0.3) * side for _ in "xy")
        draw.rectangle((left, top, left + width, top + height), random_color(rng))


def random_tilt(side: int, rng: random.Random) -> list[float]:
    """Coefficients of Image.transform, near those of no change."""
    a, b, d, e = (rng.uniform(-0.15, 0.15) for _ in range(4))
    perspective = [rng.uniform(-1e-3, 1e-3) / SCALE for _ in range(2)]
    return [1 + a, b, -side * (a + b) / 2, d, 1 + e, -side * (d + e) / 2, *perspective]


def add_noise(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = Image.frombytes("RGB", picture.size, rng.randbytes(3 * picture.width * picture.height))
    return ImageChops.blend(picture, noise, rng.uniform(0, 0.18))


def random_color(rng: random.Random) -> Color:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def vary_color(color: Color, rng: random.Random) -> Color:
    red, green, blue = (min(255, max(0, round(value + rng.gauss(0, 22)))) for value in color)
    return red, green, blue


def write_image_folder(
    folder: Path, kind: str, train: int, test: int, seed: int = 0, label_noise: float = 0.0
) -> list[str]:
    """Write train/CLASS/*.png and test/CLASS/*.png, so many of each class; returns the names of the classes.

    A fraction `label_noise` of the training pictures lies in the folder of another class.
    """
    names = MADE_SETS[kind][0]
    for part, count, wrong in (("train", train, label_noise), ("test", test, 0.0)):
        for name, index, label in labelled(names, count, wrong, f"{seed}/{part}"):
            path = folder / part / class_folder(label) / f"{class_folder(name)}-{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            make_picture(kind, name, f"{seed}/{part}/{index}").save(path)
    return [class_folder(name) for name in names]


def labelled(names: list[str], count: int, wrong: float, seed: str) -> Iterator[tuple[str, int, str]]:
    """Each class with the indices of its pictures and the label of each, which may be another class."""
    for name in names:
        rng = random.Random(f"{seed}/{name}/labels")
        mislabelled = set(rng.sample(range(count), round(wrong * count)))
        for index in range(count):
            others = [other for other in names if other != name]
            yield name, index, rng.choice(others) if index in mislabelled else name


def class_folder(name: str) -> str:
    return {"&": "and"}.get(name, name)
