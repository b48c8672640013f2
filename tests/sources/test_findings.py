"""The data report: what is often wrong with a data set is found and named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_stage_in
from PIL import Image

from stages.download import download
from stages.preprocess import preprocess


def make_report(
    folder: Path, images: dict[str, np.ndarray], params: Any, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Run download and preprocess on these images of data/own; the report and the line that is printed."""
    for name, pixels in images.items():
        (folder / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "own" / name)
    params_file = params({"download.dataset": "own", "preprocess.validation_fraction": 0.0})
    run_stage_in(folder, download, params=params_file)
    run_stage_in(folder, preprocess, params=params_file)
    return (folder / "data.md").read_text(), capsys.readouterr().out


def random_images(split: str, name: str, count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(sum(f"{split}{name}".encode()))
    pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return {f"{split}/{name}/{index}.png": image for index, image in enumerate(pixels)}


def clean_images() -> dict[str, np.ndarray]:
    return {
        **random_images("train", "cat", 40),
        **random_images("train", "dog", 40),
        **random_images("test", "cat", 5),
        **random_images("test", "dog", 5),
    }


def test_nothing_stands_out_in_a_clean_data_set(tmp_path: Path, params: Any, capsys: Any) -> None:
    report, printed = make_report(tmp_path, clean_images(), params, capsys)
    assert "data: nothing stands out" in printed
    assert "Nothing: no class" in report
    assert "| dog | 40 | 0 | 5 |" in report


def test_what_is_wrong_is_counted_and_named(tmp_path: Path, params: Any, capsys: Any) -> None:
    images = {**clean_images(), **random_images("train", "eel", 3), **random_images("test", "eel", 2)}
    images["train/cat/flat.png"] = np.full((28, 28), 7, np.uint8)
    images["train/cat/copy.png"] = images["test/cat/1.png"]
    images["train/dog/cat.png"] = images["train/cat/2.png"]
    images["train/dog/again.png"] = images["train/dog/5.png"]
    report, printed = make_report(tmp_path, images, params, capsys)
    for count in (
        "1 classes with fewer than 20 training images",
        "1 classes with less than 10% of the images of the median class (42)",
        "1 flat images",
        "1 images that are in several classes",
        "1 images that are in the test split and in another one",
        "1 images that occur more than once",
    ):
        assert count in printed
        assert f"### {count}" in report
    assert "- eel: 3" in report
    assert report.count(" = ") == 3
    assert "(cat) = " in report
