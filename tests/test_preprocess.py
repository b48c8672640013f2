"""preprocess: checked, scaled, stratified splits of the raw files, and a picture of them."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, WriteParams, idx_bytes, write_raw
from PIL import Image

from stages.core.errors import StageError
from stages.download import download
from stages.preprocess import preprocess

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
Run = Callable[..., Path]


@pytest.fixture
def run_preprocess(params: WriteParams, tmp_path: Path) -> Run:
    """Preprocess a raw folder: run_preprocess(raw, size=14)."""

    def run(raw: Path, splits: Path = tmp_path / "splits", **changes: Any) -> Path:
        section = {f"preprocess.{key}": value for key, value in changes.items()}
        preprocess(
            params=params(section),
            raw=raw,
            splits=splits,
            samples=tmp_path / "samples.png",
            findings=tmp_path / "data.md",
        )
        return splits

    return run


@pytest.fixture
def digits(params: WriteParams, tmp_path: Path) -> Path:
    download(params=params({"download.dataset": "digits"}), own=tmp_path / "own", raw=tmp_path / "digits")
    return tmp_path / "digits"


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_info(splits: Path) -> dict[str, Any]:
    return dict(json.loads((splits / "about.json").read_text()))


def open_array(splits: Path, name: str) -> np.ndarray:
    array: np.ndarray = np.load(splits / f"{name}.npy", mmap_mode="r")
    return array


def raw_images(raw: Path, prefix: str) -> np.ndarray:
    data = gzip.decompress((raw / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


def test_mnist_files_become_three_splits_of_all_images(raw: Path, run_preprocess: Run) -> None:
    splits = run_preprocess(raw)
    shapes = {name: open_array(splits, f"{name}-images").shape for name in ("train", "validation", "test")}
    assert shapes == {"train": (540, 1, 28, 28), "validation": (60, 1, 28, 28), "test": (200, 1, 28, 28)}
    for name, (count, *_) in shapes.items():
        assert (open_array(splits, f"{name}-images").dtype, open_array(splits, f"{name}-labels").shape) == (
            np.uint8,
            (count,),
        )
    np.testing.assert_array_equal(open_array(splits, "test-images")[:, 0], raw_images(raw, "t10k"))
    images = np.concatenate([open_array(splits, "train-images"), open_array(splits, "validation-images")])
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in raw_images(raw, "train"))


def test_the_embedded_digits_get_a_stratified_test_split(digits: Path, run_preprocess: Run) -> None:
    splits = run_preprocess(digits, test_fraction=0.2)
    info = read_info(splits)
    assert (info["dataset"], info["preparation"], info["size"]) == ("digits", "mnist", 28)
    assert sum(info["counts"].values()) == 1797
    assert info["counts"]["test"] == round(1797 * 0.2)
    total = np.sum(list(info["counts_by_class"].values()), axis=0)
    np.testing.assert_allclose(info["counts_by_class"]["test"], total * 0.2, atol=1)
    assert open_array(splits, "train-images").max() == 255


def test_about_json_describes_the_splits(raw: Path, run_preprocess: Run) -> None:
    splits = run_preprocess(raw)
    info = read_info(splits)
    train = open_array(splits, "train-images") / 255
    assert info["classes"] == list("0123456789")
    assert (info["dataset"], info["origin"], info["preparation"]) == ("mnist", "made", "mnist")
    assert (info["channels"], info["size"]) == (1, 28)
    assert info["counts"] == {"train": 540, "validation": 60, "test": 200}
    assert info["counts_by_class"] == {"train": [54] * 10, "validation": [6] * 10, "test": [20] * 10}
    np.testing.assert_allclose([*info["mean"], *info["std"]], [train.mean(), train.std()])


def test_the_seed_alone_chooses_the_validation_images(raw: Path, run_preprocess: Run, tmp_path: Path) -> None:
    first, again, other = (
        run_preprocess(raw, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert read_files(first) == read_files(again)
    assert (open_array(first, "validation-images") != open_array(other, "validation-images")).any()
    assert read_info(other)["counts_by_class"] == read_info(first)["counts_by_class"]


def test_a_validation_fraction_of_0_gives_an_empty_split(raw: Path, run_preprocess: Run) -> None:
    splits = run_preprocess(raw, validation_fraction=0)
    assert open_array(splits, "train-images").shape[0] == 600
    assert np.load(splits / "validation-images.npy").shape == (0, 1, 28, 28)
    assert np.load(splits / "validation-labels.npy").shape == (0,)
    np.testing.assert_array_equal(open_array(splits, "train-images")[:, 0], raw_images(raw, "train"))


def test_images_are_scaled_and_coloured_as_the_params_say(raw: Path, run_preprocess: Run) -> None:
    splits = run_preprocess(raw, size=14, channels=3)
    test = open_array(splits, "test-images")
    assert test.shape == (200, 3, 14, 14)
    assert (test[:, 0] == test[:, 1]).all()
    assert (test[:, 0] == test[:, 2]).all()
    means = raw_images(raw, "t10k").reshape(200, 14, 2, 14, 2).mean((2, 4))
    assert np.corrcoef(test[:, 0].ravel(), means.ravel())[0, 1] > 0.95
    assert len(read_info(splits)["mean"]) == len(read_info(splits)["std"]) == 3


def test_the_picture_shows_eight_images_of_each_class_and_is_the_same_twice(
    raw: Path, run_preprocess: Run, tmp_path: Path
) -> None:
    run_preprocess(raw)
    first = (tmp_path / "samples.png").read_bytes()
    with Image.open(tmp_path / "samples.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (8 * 94 + 10, 40 + 10 * 114))
        picture.load()
    run_preprocess(raw)
    assert (tmp_path / "samples.png").read_bytes() == first


def test_own_images_of_any_size_keep_their_colours(params: WriteParams, run_preprocess: Run, tmp_path: Path) -> None:
    for name, color in (("red", (255, 0, 0)), ("sea", (0, 90, 255))):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8 + number, 20), color).save(tmp_path / "own" / name / f"{number}.png")
    download(params=params({"download.dataset": "own"}), own=tmp_path / "own", raw=tmp_path / "own-raw")
    splits = run_preprocess(tmp_path / "own-raw", size=8, channels=3)
    assert read_info(splits)["classes"] == ["red", "sea"]
    images, labels = open_array(splits, "test-images"), open_array(splits, "test-labels")
    assert images.shape == (4, 3, 8, 8)
    assert (images[labels == 0] == np.array([255, 0, 0])[:, None, None]).all()
    assert (images[labels == 1] == np.array([0, 90, 255])[:, None, None]).all()


@pytest.mark.parametrize(
    ("fit", "rows"), [("stretch", [10, 100, 100, 200]), ("crop", [100] * 4), ("pad", [100, 10, 200, 100])]
)
def test_fit_says_how_images_of_other_proportions_become_squares(
    fit: str, rows: list[int], params: WriteParams, run_preprocess: Run, tmp_path: Path
) -> None:
    """Each image is three bars, the middle one half of it, twice as wide as high."""
    bars = np.zeros((8, 16), np.uint8)
    bars[:, :4], bars[:, 4:12], bars[:, 12:] = 10, 100, 200
    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(bars + number // 4).save(tmp_path / "own" / name / f"{number}.png")
    download(params=params({"download.dataset": "own"}), own=tmp_path / "own", raw=tmp_path / "own-raw")
    splits = run_preprocess(tmp_path / "own-raw", size=8, fit=fit)
    assert read_info(splits)["fit"] == fit
    image = open_array(splits, "train-images")[0, 0].astype(int)
    places = [(0, 1), (3, 0), (3, 7), (7, 6)] if fit == "pad" else [(4, 0), (4, 3), (4, 4), (4, 7)]
    np.testing.assert_allclose([image[place] for place in places], rows, atol=1)


def test_published_images_have_no_names(raw: Path, run_preprocess: Run) -> None:
    assert not [path.name for path in run_preprocess(raw).iterdir() if path.suffix == ".txt"]


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_fit_changes_no_square_image(fit: str, raw: Path, run_preprocess: Run, tmp_path: Path) -> None:
    for size in (28, 14):
        stretched, other = (run_preprocess(raw, tmp_path / name, size=size, fit=name) for name in ("stretch", fit))
        changed = {name for name, content in read_files(other).items() if content != read_files(stretched)[name]}
        assert changed == {"about.json"}


def write_labels(raw: Path, labels: list[int]) -> None:
    (raw / LABELS).write_bytes(idx_bytes(np.array(labels)))


def edit_content(raw: Path, change: Callable[[bytes], bytes], name: str = IMAGES) -> None:
    (raw / name).write_bytes(gzip.compress(change(gzip.decompress((raw / name).read_bytes()))))


def edit_file(raw: Path, change: Callable[[bytes], bytes]) -> None:
    (raw / IMAGES).write_bytes(change((raw / IMAGES).read_bytes()))


def write_source(raw: Path, text: str) -> None:
    (raw / "source.json").write_text(text)


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "counts differ",
        lambda raw: write_labels(raw, [0] * 199),
        f"{{raw}}/{IMAGES} holds 200 images, but {{raw}}/{LABELS} 199 labels",
    ),
    (
        "label out of range",
        lambda raw: write_labels(raw, [*range(10), *[10] * 190]),
        f"{{raw}}/{IMAGES}, image 10: its label 10 is no class; the labels go from 0 to 9",
    ),
    (
        "empty class",
        lambda raw: write_labels(raw, [*range(9)] * 22 + [0, 1]),
        "no image of the class 9 among the 200 test images",
    ),
    (
        "wrong magic",
        lambda raw: edit_content(raw, lambda data: b"\0\0\x0d\x03" + data[4:]),
        f"{{raw}}/{IMAGES}: wrong magic number: 0x00000d03 where 0x00000803 should be",
    ),
    (
        "truncated gzip",
        lambda raw: edit_file(raw, lambda data: data[: len(data) // 2]),
        f"{{raw}}/{IMAGES}: corrupted gzip file",
    ),
    (
        "truncated IDX",
        lambda raw: edit_content(raw, lambda data: data[: 16 + 784 * 150 + 5]),
        f"{{raw}}/{IMAGES}: truncated at item 150 of 200",
    ),
    (
        "truncated header",
        lambda raw: edit_content(raw, lambda data: data[:9]),
        f"{{raw}}/{IMAGES}: truncated in its header",
    ),
    ("empty", lambda raw: edit_file(raw, lambda _: b""), f"{{raw}}/{IMAGES}: wrong magic number: nothing"),
    (
        "trailing bytes",
        lambda raw: edit_content(raw, lambda data: data + b"\0"),
        f"{{raw}}/{IMAGES}: has more data than the 200 items",
    ),
    (
        "not gzip",
        lambda raw: edit_file(raw, lambda _: b"<html>Log in</html>"),
        f"{{raw}}/{IMAGES}: corrupted gzip file (Not a gzipped file",
    ),
    (
        "no pixels",
        lambda raw: (raw / IMAGES).write_bytes(idx_bytes(np.empty((200, 0, 28)))),  # type: ignore[arg-type, return-value]
        f"{{raw}}/{IMAGES}, image 0: has no pixels: 0 x 28",
    ),
    ("missing file", lambda raw: (raw / IMAGES).unlink(), f"{{raw}}/{IMAGES}: missing; run `dvc repro download`"),
    (
        "missing source",
        lambda raw: (raw / "source.json").unlink(),
        "{raw}/source.json: missing; run `dvc repro download`",
    ),
    ("broken source", lambda raw: write_source(raw, "{"), "{raw}/source.json: not valid JSON"),
    (
        "unknown source",
        lambda raw: write_source(raw, '{"dataset": "mnits"}'),
        "{raw}/source.json: names no known data set",
    ),
    ("source is a list", lambda raw: write_source(raw, "[]"), "{raw}/source.json: names no known data set"),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_damage_is_one_line_that_names_the_file_and_the_previous_splits_stay(
    damage: Callable[[Path], None], message: str, run_preprocess: Run, tmp_path: Path
) -> None:
    raw, splits = write_raw(tmp_path / "damaged", 200, 200), tmp_path / "splits"
    splits.mkdir()
    (splits / "former").write_text("stays")
    damage(raw)
    with pytest.raises(StageError) as caught:
        run_preprocess(raw)
    assert str(caught.value).startswith(message.format(raw=raw))
    assert "\n" not in str(caught.value)
    assert read_files(splits) == {"former": b"stays"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "params.yaml", "splits"]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"x"), "not readable"),
        (Path.unlink, "not readable"),
        (lambda path: np.save(path, np.load(path)[:-1]), "images.npy holds"),
    ],
)
def test_damaged_digits_are_named(
    name: str, damage: Callable[[Path], None], message: str, digits: Path, run_preprocess: Run
) -> None:
    damage(digits / name)
    with pytest.raises(StageError, match=message) as caught:
        run_preprocess(digits)
    assert str(digits) in str(caught.value)


@pytest.mark.parametrize("level", [0, 15, 30, 57, 100, 255])
def test_images_of_one_flat_colour_are_refused(level: int, run_preprocess: Run, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "flat", 200, 200)
    flat = np.full((200, 28, 28), level)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(idx_bytes(flat))
    with pytest.raises(StageError, match="the training images are flat"):
        run_preprocess(raw)


def test_it_imports_neither_torch_nor_onnxruntime(raw: Path, params: WriteParams, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.preprocess import preprocess;"
        "names = 'params', 'raw', 'splits', 'samples', 'findings';"
        "preprocess(**{name: Path(path) for name, path in zip(names, sys.argv[1:])});"
        "sys.exit(bool({'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    flags = [params(), raw, tmp_path / "splits", tmp_path / "samples.png", tmp_path / "data.md"]
    result = subprocess.run([sys.executable, "-c", program, *map(str, flags)], cwd=ROOT)
    assert result.returncode == 0
    assert read_info(tmp_path / "splits")["counts"]["train"] == 540


MEMORY = """
import sys, threading, time
from pathlib import Path
from stages.preprocess import preprocess

def anonymous_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while True:
        peaks.append(anonymous_memory())
        time.sleep(0.005)

peaks = [anonymous_memory()]
threading.Thread(target=watch, daemon=True).start()
preprocess(**{name: Path(path) for name, path in zip(("params", "raw", "splits", "samples", "findings"), sys.argv[1:])})
print(max(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_memory_does_not_grow_with_the_images(params: WriteParams, tmp_path: Path) -> None:
    peaks = {}
    for count in (12_000, 50_000):
        raw = write_raw(tmp_path / f"raw-{count}", 20, 20)
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = bytes((0, 0, 8, 3)) + b"".join(number.to_bytes(4, "big") for number in images.shape)
        (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes(), compresslevel=0))
        (raw / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(np.arange(count) % 10))
        flags = [params(), raw, tmp_path / f"splits-{count}", tmp_path / "samples.png", tmp_path / "data.md"]
        command = [sys.executable, "-c", MEMORY, *map(str, flags)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks[count] = int(result.stdout.split()[-1])
    growth = (peaks[50_000] - peaks[12_000]) / 1024
    assert growth < 3, f"{growth:.1f} MiB more for 28 MiB of images"  # the labels and what splits them are in memory
