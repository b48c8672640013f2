"""The folder of splits: memory-mapped arrays, their description, and the stratified mask."""

from pathlib import Path

import numpy as np
import pytest

from stages.core.errors import StageError
from stages.core.splits import npy_writer, read_images, read_labels, read_names, read_splits_info, stratified_mask

LABELS = np.repeat(np.arange(4), (100, 50, 10, 240))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_each_class_gives_the_same_fraction(fraction: float) -> None:
    mask = stratified_mask(LABELS, fraction, 0)
    np.testing.assert_allclose(np.bincount(LABELS[mask], minlength=4), np.bincount(LABELS) * fraction, atol=1)
    assert mask.sum() == round(len(LABELS) * fraction)


def test_the_seed_alone_chooses_the_items() -> None:
    first = stratified_mask(LABELS, 0.25, 3)
    assert (first == stratified_mask(LABELS, 0.25, 3)).all()
    assert (first != stratified_mask(LABELS, 0.25, 4)).any()


def test_images_written_in_blocks_are_read_from_disk(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 6, 6), dtype=np.uint8)
    with npy_writer(tmp_path / "train-images.npy", images.shape, "u1") as file:
        file.write(images[:7].data)
        file.write(images[7:].data)
    images_read = read_images(tmp_path, "train")
    assert isinstance(images_read, np.memmap)
    np.testing.assert_array_equal(images_read, images)


def test_an_empty_split_is_read(tmp_path: Path) -> None:
    with npy_writer(tmp_path / "validation-images.npy", (0, 1, 6, 6), "u1"):
        pass
    np.save(tmp_path / "validation-labels.npy", np.empty(0, np.int64))
    assert read_images(tmp_path, "validation").shape == (0, 1, 6, 6)
    assert read_labels(tmp_path, "validation").shape == (0,)


def test_a_file_short_of_its_shape_is_noticed_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="36 bytes short"),
        npy_writer(tmp_path / "a.npy", (2, 36), "u1") as file,
    ):
        file.write(bytes(36))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, "missing; run `dvc repro preprocess`"),
        (truncate, "not a whole .npy file"),
        (lambda path: path.write_bytes(b""), "not a whole .npy file"),
        (lambda path: np.save(path, np.zeros((100, 2), np.uint8)), "has 2 dimensions where 4 should be"),
    ],
)
def test_a_damaged_file_is_named(change: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "test-images.npy"
    np.save(path, np.zeros((10, 1, 6, 6), np.uint8))
    change(path)  # type: ignore[operator]
    with pytest.raises(StageError) as caught:
        read_images(tmp_path, "test")
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("text", "message"), [(None, "missing"), ("{}", "not what preprocess"), ("{", "not what")])
def test_a_missing_or_foreign_description_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "about.json").write_text(text)
    with pytest.raises(StageError, match=rf"about\.json: {message}.*; run `dvc repro preprocess`"):
        read_splits_info(tmp_path)


def test_names_are_read_if_the_data_set_has_any(tmp_path: Path) -> None:
    np.save(tmp_path / "test-labels.npy", np.zeros(2, np.uint8))
    assert read_names(tmp_path, "test") is None
    (tmp_path / "test-names.txt").write_text("cat/1.png\nüber uns/2\u00a03.png\n", encoding="utf-8")
    assert read_names(tmp_path, "test") == ["cat/1.png", "über uns/2\u00a03.png"]
    np.save(tmp_path / "test-labels.npy", np.zeros(3, np.uint8))
    with pytest.raises(StageError, match=r"test-names\.txt: has 2 names of 3 images; run `dvc repro preprocess`"):
        read_names(tmp_path, "test")
    (tmp_path / "train-names.txt").write_text("")
    np.save(tmp_path / "train-labels.npy", np.zeros(0, np.uint8))
    assert read_names(tmp_path, "train") == []
