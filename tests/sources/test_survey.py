"""A look at a person's images by their headers, and the params that it advises."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import WriteParams
from PIL import Image
from repositories import run_command

from stages.download import download
from stages.sources.survey import advise, survey_images

Look = Callable[[], str]


def write_images(folder: Path, count: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new(mode, size).save(folder / f"{mode}-{size[0]}-{number}.png")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def look(own: Path, params: WriteParams, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Look:
    """What `python -m stages.download --check` prints."""

    def run() -> str:
        download(params=params({"download.dataset": "own"}), own=own, raw=tmp_path / "raw", check=True)
        return capsys.readouterr().out

    return run


def advice_of(text: str) -> list[str]:
    """The lines of the last paragraph."""
    title, *lines = text.strip().rpartition("\n\n")[2].splitlines()
    assert title == "Advice; nothing is changed unless you say so:"
    return [line.removeprefix("  - ") for line in lines]


def test_it_counts_classes_images_sizes_and_colour(own: Path, look: Look, tmp_path: Path) -> None:
    write_images(own / "cat", 120, (60, 40))
    write_images(own / "dog", 130, (40, 200))
    write_images(own / "fox", 7, (64, 64), "L")
    text = look()
    assert "images     257 in 3 classes\n" in text
    assert "by class   7 (fox) to 130 (dog), median 120\n" in text
    assert "sizes      shorter side 40 to 64 pixels, median 40; 97% are oblong\n" in text
    assert "colour     250 colour, 7 grey\n" in text
    assert not (tmp_path / "raw").exists(), "nothing is written"


def test_a_split_of_ones_own_is_counted(own: Path, look: Look) -> None:
    for name in ("cat", "dog"):
        write_images(own / "train" / name, 120)
        write_images(own / "test" / name, 30)
    text = look()
    assert "images     300 in 2 classes: 240 in train, 60 in test\n" in text
    assert "by class   150 of each\n" in text
    assert "sizes      all 64x64\n" in text
    assert "colour     all colour\n" in text


def test_colour_images_are_advised_the_set_photos_alone(own: Path, look: Look) -> None:
    for name in ("cat", "dog"):
        write_images(own / name, 150)
    (line,) = advice_of(look())
    assert line == (
        "colour images: the set `photos` of experiments.yaml is for these: `make run DATASET=own EXPERIMENT=photos`"
    )


def test_small_grey_images_are_left_to_the_defaults(own: Path, look: Look) -> None:
    for name in ("0", "1"):
        write_images(own / name, 150, (28, 28), "L")
    (line,) = advice_of(look())
    assert line.startswith("small grey images, like MNIST's: the params that are committed (28x28, grey) are for these")


def test_large_grey_images_are_advised_photos_in_one_channel(own: Path, look: Look) -> None:
    for name in ("lung", "rib"):
        write_images(own / name, 150, (512, 500), "L")
    recipe, channels = advice_of(look())
    assert "EXPERIMENT=photos" in recipe
    assert "-S preprocess.channels=1" in channels


def test_small_colour_images_are_advised_their_own_size(own: Path, look: Look) -> None:
    for name in ("cat", "dog"):
        write_images(own / name, 150, (32, 32))
    assert any("-S preprocess.size=32" in line for line in advice_of(look()))


def test_oblong_images_are_advised_a_fit(own: Path, look: Look) -> None:
    for name in ("cat", "dog"):
        write_images(own / name, 150, (640, 360))
    assert any("preprocess.fit" in line for line in advice_of(look()))


def test_few_images_and_unequal_classes_are_named(own: Path, look: Look) -> None:
    write_images(own / "cat", 60)
    write_images(own / "dog", 50)
    assert any("fewer than 100 images in most classes" in line for line in advice_of(look()))
    for name in ("emu", "fox", "gnu", "yak"):
        write_images(own / name, 3)
    lines = advice_of(look())
    assert any(line.startswith("add images to emu (3), fox (3), gnu (3) and 1 more") for line in lines)
    assert any("macro F1" in line for line in lines)


def test_the_colour_of_a_palette_is_read_without_decoding(tmp_path: Path) -> None:
    for name, color in (("grey", (90, 90, 90)), ("red", (200, 10, 10))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), color).quantize(4).save(tmp_path / name / "1.png")
    files = [tmp_path / "grey" / "1.png", tmp_path / "red" / "1.png"]
    survey = survey_images(files, ["grey", "red"], [])
    assert (survey.grey, survey.colour) == (1, 1)


def test_no_pixel_is_decoded(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(own / "cat", 2)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    survey = survey_images(sorted((own / "cat").iterdir()), ["cat"], [])
    assert survey.unreadable == []


def test_unreadable_files_are_counted_and_named(own: Path, look: Look) -> None:
    for name in ("cat", "dog"):
        write_images(own / name, 150)
    for number in range(5):
        (own / "dog" / f"a{number}.jpg").write_bytes(b"not an image")
    text = look()
    assert f"unreadable 5: {own}/dog/a0.jpg, {own}/dog/a1.jpg, {own}/dog/a2.jpg and 2 more\n" in text
    assert advice_of(text)[0].startswith("replace or remove the unreadable files")


def test_a_folder_of_unreadable_files_alone_has_no_other_advice(own: Path) -> None:
    (own / "cat").mkdir(parents=True)
    (own / "cat" / "1.png").write_bytes(b"")
    assert len([*advise(survey_images([own / "cat" / "1.png"], ["cat"], []))]) == 1


def test_an_error_in_the_folders_is_one_line_before_anything_else(
    own: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own / "cat", 1)
    command = [sys.executable, "-m", "stages.download", "--params", str(params({"download.dataset": "own"}))]
    command += ["--own", str(own), "--raw", str(tmp_path / "raw"), "--check"]
    result = run_command(Path(__file__).parent.parent.parent, *command, status=1)
    assert result.stdout == ""
    assert result.stderr.startswith(f"download: {own}: holds one class, 'cat'")


def test_ten_thousand_headers_take_a_few_seconds(own: Path) -> None:
    write_images(own / "cat", 100)
    files = sorted((own / "cat").iterdir()) * 100
    assert survey_images(files, ["cat"], []).total == 10_000
