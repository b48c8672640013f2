"""Your own images: their folders, their classes, and errors in them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import WriteParams
from PIL import Image

from lockstep.decoding import SUFFIXES
from stages.core.errors import StageError
from stages.core.splits import SPLIT_NAMES, read_images, read_labels, read_names
from stages.download import download
from stages.preprocess import preprocess
from stages.sources.catalog import read_raw

Fetch = Callable[[], Path]


def write_images(own_images: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = own_images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg", ".jpeg", ".PNG"):
            Image.linear_gradient("L").rotate(45 * number).resize((8, 8)).save(path)
        else:
            path.write_text("not an image")


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def fetch(params: WriteParams, tmp_path: Path, own_images: Path) -> Fetch:
    def run() -> Path:
        download(params=params({"download.dataset": "own"}), own=own_images, raw=tmp_path / "raw")
        return tmp_path / "raw"

    return run


def read_source(raw: Path) -> dict[str, object]:
    return dict(json.loads((raw / "source.json").read_text()))


def count_images(params: WriteParams, raw: Path, tmp_path: Path) -> dict[str, list[int]]:
    """The number of images of each class in each split, as preprocess finds them."""
    splits = tmp_path / "splits"
    changes = {"size": 8, "validation_fraction": 0.2, "test_fraction": 1 / 3}
    changes = {f"preprocess.{key}": value for key, value in changes.items()}
    preprocess(
        params=params(changes), raw=raw, splits=splits, samples=tmp_path / "samples.png", findings=tmp_path / "data.md"
    )
    return dict(json.loads((splits / "about.json").read_text())["counts_by_class"])


def test_class_folders_alone_are_split_by_a_seed(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own_images, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(15)))
    raw = fetch()
    assert (raw / "cat/3.png").read_bytes() == (own_images / "cat/3.png").read_bytes()
    assert count_images(params, raw, tmp_path) == {"train": [8, 8], "validation": [2, 2], "test": [5, 5]}


def test_the_first_images_are_of_all_classes(fetch: Fetch, own_images: Path) -> None:
    write_images(own_images, *(f"{name}/{number}.png" for name in "abcd" for number in range(25)))
    _, data = read_raw(fetch())
    assert {*data.train.labels[:20].tolist()} == {0, 1, 2, 3}
    assert [Path(data.train.locate(index)).parent.name for index in range(3)] == [
        "abcd"[label] for label in data.train.labels[:3]
    ]


def test_train_and_test_folders_are_kept_apart(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own_images, *(f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(5)))
    write_images(own_images, *(f"test/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)))
    assert count_images(params, fetch(), tmp_path) == {"train": [4, 4], "validation": [1, 1], "test": [3, 3]}


def test_numbered_classes_are_sorted_as_numbers_and_come_before_names(fetch: Fetch, own_images: Path) -> None:
    write_images(own_images, "10/1.png", "2/1.png", "0/1.png", "ant/1.png")
    assert read_source(fetch())["classes"] == ["0", "2", "10", "ant"]


def test_hidden_files_and_folders_are_ignored(fetch: Fetch, own_images: Path) -> None:
    write_images(own_images, "cat/1.png", "dog/1.PNG", "cat/.DS_Store", "cat/._1.png", ".git/config", ".DS_Store")
    raw = fetch()
    assert read_source(raw)["classes"] == ["cat", "dog"]
    assert sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.*")) == [
        "cat/1.png",
        "dog/1.PNG",
        "source.json",
    ]


def test_hidden_folders_within_a_class_are_ignored(fetch: Fetch, own_images: Path) -> None:
    write_images(
        own_images, "cat/1.png", "dog/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "dog/.thumbnails/index"
    )
    assert read_source(fetch())["files"].keys() == {"cat/1.png", "dog/1.png"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.png"], "{own}: holds one class, 'cat'; a classifier needs at least two folders of images"),
        (
            ["1.png", "2.png"],
            "{own}: has no class folders; put the images of each class into a folder, as {own}/cat/1.png",
        ),
        (["cat/1.png", "dog/.hidden"], "{own}/dog: an empty class; add images or remove the folder"),
        (
            ["cat/1.png", "dog/1.png", "dog/notes.txt"],
            "{own}/dog/notes.txt: not an image by its name (.png, .jpg, .jpeg, .gif, .bmp, .webp, .tif, .tiff, .ppm, "
            ".pgm, .pbm are); convert or remove it",
        ),
        (
            ["cat/1.png", "dog/old/1.png"],
            "{own}/dog/old: is a folder inside a class; move its images into {own}/dog and remove it",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png"],
            "{own}: has train/ only; put the class folders into train/ and test/, or into {own} itself",
        ),
        (
            ["test/cat/1.png", "test/dog/1.png", "cat/1.png"],
            "{own}: has test/ only; put the class folders into train/ and test/, or into {own} itself",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/fox/1.png"],
            "{own}: train/ and test/ must have the same classes; only one of them has: dog, fox",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/readme.txt"],
            "{own}/test: has no class folders; put the images of each class into a folder, as {own}/test/cat/1.png",
        ),
        (
            ["cat/1.png", "dog/1.png", "loose.png"],
            "{own}/loose.png: is in no class folder; move it into the folder of its class",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png", "test/loose.jpg"],
            "{own}/test/loose.jpg: is in no class folder; move it into the folder of its class",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png", "fox/1.png"],
            "{own}/fox: is neither train/ nor test/; move its images into class folders of these",
        ),
        ([], "{own}: there is no such folder; make it, with one folder of images for each class"),
    ],
)
def test_an_error_is_one_line_that_names_the_file_or_folder(
    names: list[str], message: str, fetch: Fetch, own_images: Path, tmp_path: Path
) -> None:
    write_images(own_images, *names)
    with pytest.raises(StageError) as caught:
        fetch()
    assert str(caught.value) == message.format(own=own_images)
    assert not (tmp_path / "raw").exists()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: path.symlink_to("gone.png"), "cat/2.png", "is a link to nothing; replace it by the image, or "),
        (lambda path: path.symlink_to("2.png"), "cat/2.png", "is a link to nothing; replace it by the image, or "),
        (lambda path: path.symlink_to("gone"), "emu", "is a link to nothing; replace it by the image, or remove it"),
        (make_fifo, "cat/2.png", "is neither a file nor a folder; replace it by the image, or remove it"),
        (make_fifo, "pipe", "is neither a file nor a folder; replace it by the image, or remove it"),
        (lambda path: path.symlink_to("../dog"), "cat/more", "is a folder inside a class; move its images into {own}/"),
        (lambda path: path.symlink_to(".."), "cat/up", "is a folder inside a class; move its images into {own}/cat "),
        (Path.mkdir, "cat/z.png", "is a folder inside a class; move its images into {own}/cat and remove it"),
        (Path.mkdir, "z.png", "an empty class; add images or remove the folder"),
        (lambda path: path.symlink_to("."), "all", "is a folder inside a class; move its images into {own}/all "),
    ],
    ids=["dangling", "looping", "dangling class", "fifo", "fifo class", "linked folder", "upwards", "empty folder",
         "empty class", "linked to itself"],
)  # fmt: skip
def test_what_is_no_image_is_not_passed_over(
    make: Callable[[Path], object], name: str, message: str, fetch: Fetch, own_images: Path
) -> None:
    write_images(own_images, "cat/1.png", "dog/1.png")
    make(own_images / name)
    with pytest.raises(StageError) as caught:
        fetch()
    path = own_images / ("all/all" if name == "all" else name)
    assert str(caught.value).startswith(f"{path}: {message.format(own=own_images)}")


def test_links_to_images_and_a_linked_class_are_read(fetch: Fetch, own_images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", "cat/1.png", "dog/1.png")
    own_images.mkdir()
    (own_images / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (own_images / "dog").mkdir()
    (own_images / "dog/2.png").symlink_to(tmp_path / "elsewhere/dog/1.png")
    raw = fetch()
    assert not any(path.is_symlink() for path in raw.rglob("*"))
    assert (raw / "dog/2.png").read_bytes() == (tmp_path / "elsewhere/dog/1.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        (b"cat/\xff.png", r"cat/\xff.png"),
        (b"\xe9t\xe9/1.png", r"\xe9t\xe9"),
        (b"two\nlines/1.png", r"two\nlines"),
        (b"cat/a\rb.png", r"cat/a\rb.png"),
        ("cat/a\u2028b.png".encode(), r"cat/a\u2028b.png"),
    ],
)
def test_a_name_that_no_report_can_hold_is_one_line(name: bytes, escaped: str, fetch: Fetch, own_images: Path) -> None:
    write_images(own_images, "cat/1.png", "dog/1.png", os.fsdecode(name))
    with pytest.raises(StageError) as caught:
        fetch()
    reason = "its name is not UTF-8, or has a line break or another control character; rename it"
    assert str(caught.value) == f"{own_images}/{escaped}: {reason}"
    str(caught.value).encode()


def test_any_other_name_is_kept(fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path) -> None:
    names = ["été 水/Bild\u202f1,\u00a02.png", 'a "b"\'c/#;=.png']
    write_images(own_images, *names)
    assert read_source(fetch())["classes"] == ['a "b"\'c', "été 水"]
    assert sorted(read_source(tmp_path / "raw")["files"]) == sorted(names)  # type: ignore[call-overload]


def test_it_says_what_was_passed_over(fetch: Fetch, own_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(own_images, "cat/1.png", "dog/1.png")
    fetch()
    assert capsys.readouterr().out.splitlines()[0] == "2 images in 2 classes"
    write_images(own_images, "cat/.DS_Store", "cat/.thumbs/1.png", ".git/config", "README.md", "cat.dvc")
    fetch()
    assert capsys.readouterr().out.splitlines()[0] == (
        "2 images in 2 classes; passed over: 3 hidden (such as .git), 2 beside the class folders (such as README.md)"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_formats_that_consumers_read_are_read(
    suffix: str, fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        (own_images / name).mkdir(parents=True)
        for number in range(5):
            image = Image.linear_gradient("L").rotate(45 * number).resize((8, 8))
            image.convert("1" if suffix == ".pbm" else "L").save(own_images / name / f"{number}{suffix.upper()}")
    assert sum(map(sum, count_images(params, fetch(), tmp_path).values())) == 10


def test_the_splits_name_the_files_of_their_images(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(15)]
    write_images(own_images, *names)
    counts = count_images(params, fetch(), tmp_path)
    found = {split: read_names(tmp_path / "splits", split) for split in SPLIT_NAMES}
    assert sorted(name for part in found.values() for name in part or []) == sorted(names)
    for split, part in found.items():
        assert part is not None
        labels, images = read_labels(tmp_path / "splits", split), read_images(tmp_path / "splits", split)
        assert len(part) == sum(counts[split])
        for name, label, image in zip(part, labels, images, strict=True):
            assert name.split("/")[0] == ("cat", "dog")[label]
            np.testing.assert_array_equal(image[0], np.asarray(Image.open(own_images / name)))


def test_an_image_that_was_removed_is_removed_from_the_raw_files(fetch: Fetch, own_images: Path) -> None:
    write_images(own_images, "cat/1.png", "cat/2.png", "dog/1.png", "emu/1.png")
    fetch()
    (own_images / "cat/2.png").unlink()
    shutil.rmtree(own_images / "emu")
    raw = fetch()
    assert sorted(path.name for path in raw.iterdir()) == ["cat", "dog", "source.json"]
    assert [path.name for path in (raw / "cat").iterdir()] == ["1.png"]


def test_preprocess_names_the_file_that_is_no_image(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own_images, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)))
    (own_images / "dog/3.png").write_bytes((own_images / "dog/3.png").read_bytes()[:60])
    raw = fetch()
    with pytest.raises(StageError, match=r"raw/dog/3\.png: not a readable image .*; replace or remove it") as caught:
        count_images(params, raw, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "splits").exists()


def test_preprocess_names_the_file_that_is_missing(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own_images, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)))
    raw = fetch()
    (raw / "cat/2.png").unlink()
    with pytest.raises(StageError, match=r"raw/cat/2\.png: missing; run `dvc repro -f download`"):
        count_images(params, raw, tmp_path)


def test_preprocess_names_the_class_with_too_few_images(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own_images, *(f"cat/{number}.png" for number in range(9)), "dog/1.png")
    with pytest.raises(
        StageError,
        match=r"no image of the class dog among the 3 held-out test \(preprocess\.test_fraction\) images",
    ):
        count_images(params, fetch(), tmp_path)


def test_preprocess_names_the_classes_that_validation_would_empty(
    fetch: Fetch, own_images: Path, params: WriteParams, tmp_path: Path
) -> None:
    write_images(own_images, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in range(8)))
    with pytest.raises(
        StageError,
        match=r"of the class \d, \d among the 6 remaining training images; lower preprocess\.validation_fraction",
    ):
        count_images(params, fetch(), tmp_path)
    assert not (tmp_path / "splits").exists()
