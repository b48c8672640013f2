"""Weights and the test split in; numbers, tables and pictures out, then the gate."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

from stages.core.errors import StageError
from stages.core.splits import read_images, read_labels
from stages.evaluate import evaluate
from stages.network.models import build_model
from stages.network.weights import WeightsHeader, read_weights, write_weights

ROOT = Path(__file__).parent.parent
PICTURES = {"first_nine": "first_nine.png", "mistakes": "mistakes.png", "tsne": "tsne.png"}
OUTPUTS = {"report": "evaluate.json", "predictions": "predictions.csv", "classes": "classes.csv",
           "reliability": "reliability.csv", **PICTURES}  # fmt: skip


def evaluated(folder: Path, params: Path, splits: Path, weights: Path) -> Path:
    evaluate(params=params, splits=splits, weights=weights, **{name: folder / file for name, file in OUTPUTS.items()})
    return folder


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluate.json").read_text())
    return content


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def imperfect(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained weights with noise on the last layer: right more often than chance, and often wrong."""
    network, header = read_weights(made / "weights.safetensors")
    noise = torch.randn(network.head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.head.weight += 0.2 * noise
    path = tmp_path_factory.mktemp("imperfect") / "weights.safetensors"
    write_weights(path, network, header)
    return path


@pytest.fixture(scope="module")
def measured(made: Path, imperfect: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what evaluate says of the imperfect weights."""
    folder = tmp_path_factory.mktemp("measured")
    content = json.loads((made / "params.yaml").read_text())
    content["evaluate"]["min_accuracy"] = 0.0
    (folder / "params.yaml").write_text(json.dumps(content))
    return evaluated(folder, folder / "params.yaml", made / "splits", imperfect)


@pytest.fixture
def cut(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Splits with as few test images as asked for, and with changes in about.json."""

    def make(test: int = 200, **changes: Any) -> Path:
        splits = tmp_path / "cut"
        splits.mkdir()
        for name in ("images", "labels"):
            np.save(splits / f"test-{name}.npy", np.load(made / "splits" / f"test-{name}.npy")[:test])
        about = json.loads((made / "splits" / "about.json").read_text())
        (splits / "about.json").write_text(json.dumps({**about, **changes}))
        return splits

    return make


def test_the_small_data_set_is_told_apart(made: Path) -> None:
    numbers = report(made)
    assert numbers["accuracy"] > 0.97
    assert numbers["images"] == 200
    assert numbers["accuracy_low"] <= numbers["accuracy"] <= numbers["accuracy_high"]


def test_the_numbers_are_those_of_the_predictions(measured: Path, made: Path) -> None:
    found, numbers = table(measured / "predictions.csv"), report(measured)
    actual, predicted = [row["actual"] for row in found], [row["predicted"] for row in found]
    assert actual == [str(label) for label in np.load(made / "splits" / "test-labels.npy")]
    assert 0.2 < numbers["accuracy"] < 0.98
    assert numbers["accuracy"] == pytest.approx(metrics.accuracy_score(actual, predicted))
    assert numbers["macro_f1"] == pytest.approx(metrics.f1_score(actual, predicted, average="macro"), abs=1e-6)
    assert numbers["images"] == len(found) == 200


def test_loss_and_predictions_are_those_of_the_network(measured: Path, imperfect: Path, made: Path) -> None:
    network, header = read_weights(imperfect)
    with torch.no_grad():
        logits = network(torch.from_numpy(read_images(made / "splits", "test")))
    labels = torch.from_numpy(read_labels(made / "splits", "test"))
    loss = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    assert report(measured)["loss"] == pytest.approx(loss, abs=1e-5)
    predicted = [row["predicted"] for row in table(measured / "predictions.csv")]
    assert predicted == [header.classes[label] for label in logits.argmax(1)]


def test_the_table_of_classes_has_each_class_with_its_scores(measured: Path) -> None:
    found, classes = table(measured / "predictions.csv"), table(measured / "classes.csv")
    assert [row["class"] for row in classes] == list("0123456789")
    actual, predicted = [row["actual"] for row in found], [row["predicted"] for row in found]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(actual, predicted, zero_division=0.0)
    for name, wanted in (("precision", precision), ("recall", recall), ("f1", f1), ("accuracy", recall)):
        np.testing.assert_allclose([float(row[name]) for row in classes], wanted, atol=1e-6)


def test_the_reliability_adds_up_to_the_report(measured: Path) -> None:
    bins, numbers = table(measured / "reliability.csv"), report(measured)
    assert list(bins[0]) == ["confidence", "accuracy", "perfect", "images"]
    assert all(row["perfect"] == row["confidence"] for row in bins)
    counts = np.array([int(row["images"]) for row in bins])
    confidence, accuracy = (np.array([float(row[name]) for row in bins]) for name in ("confidence", "accuracy"))
    assert counts.sum() == numbers["images"]
    assert (counts * accuracy).sum() / counts.sum() == pytest.approx(numbers["accuracy"], abs=1e-5)
    error = (counts * abs(confidence - accuracy)).sum() / counts.sum()
    assert numbers["calibration_error"] == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize("picture", PICTURES.values())
@pytest.mark.parametrize("folder", ["made", "measured"])
def test_the_pictures_are_pictures(folder: str, picture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder) / picture
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 40
        assert len(image.convert("RGB").getcolors(1 << 24)) > 2


def test_the_picture_of_mistakes_shows_them(made: Path, measured: Path) -> None:
    with Image.open(made / "mistakes.png") as none, Image.open(measured / "mistakes.png") as twelve:
        assert none.height < 60  # a title only: no mistakes
        assert twelve.height > 3 * 84


def test_the_same_bytes_come_again_in_any_folder(
    measured: Path, imperfect: Path, made: Path, tmp_path: Path, params: Any
) -> None:
    choices = params({"evaluate.min_accuracy": 0.0})
    again = evaluated(tmp_path / "elsewhere", choices, made / "splits", imperfect)
    for file in OUTPUTS.values():
        assert (again / file).read_bytes() == (measured / file).read_bytes(), file


def test_the_number_of_images_decides_the_picture_of_the_hidden_layer_alone(
    measured: Path, imperfect: Path, made: Path, tmp_path: Path, params: Any
) -> None:
    choices = params({"evaluate.min_accuracy": 0.0, "evaluate.tsne_images": 29})
    other = evaluated(tmp_path / "other", choices, made / "splits", imperfect)
    differ = {file for file in OUTPUTS.values() if (other / file).read_bytes() != (measured / file).read_bytes()}
    assert differ == {"tsne.png"}


def test_below_the_floor_it_fails_with_all_written(imperfect: Path, made: Path, tmp_path: Path, params: Any) -> None:
    given = {"params": params({"evaluate.min_accuracy": 1.0}), "splits": made / "splits", "weights": imperfect}
    outputs = {name.replace("_", "-"): tmp_path / file for name, file in OUTPUTS.items()}
    flags = [str(part) for name, path in {**given, **outputs}.items() for part in (f"--{name}", path)]
    command = [sys.executable, "-m", "stages.evaluate", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    accuracy = report(tmp_path)["accuracy"]
    assert done.returncode == 1
    assert done.stderr == (
        f"evaluate: accuracy {accuracy:.4f} is below evaluate.min_accuracy 1.0; "
        f"the report is in {tmp_path / 'evaluate.json'}\n"
    )
    assert all((tmp_path / file).exists() for file in OUTPUTS.values())


def test_just_at_the_floor_it_passes(imperfect: Path, measured: Path, made: Path, tmp_path: Path, params: Any) -> None:
    accuracy = report(measured)["accuracy"]
    evaluated(tmp_path, params({"evaluate.min_accuracy": accuracy}), made / "splits", imperfect)
    with pytest.raises(StageError, match=r"is below evaluate\.min_accuracy"):
        evaluated(tmp_path, params({"evaluate.min_accuracy": accuracy + 0.001}), made / "splits", imperfect)


@pytest.mark.parametrize("images", [2, 7, 12])
def test_a_test_split_smaller_than_the_picture_works(
    images: int, cut: Any, imperfect: Path, tmp_path: Path, params: Any
) -> None:
    evaluated(tmp_path, params({"evaluate.min_accuracy": 0.0}), cut(images), imperfect)
    assert report(tmp_path)["images"] == images
    assert (tmp_path / "tsne.png").stat().st_size > 1000


@pytest.mark.parametrize(("name", "value"), [("size", 32), ("channels", 3), ("classes", list("abcdefghij"))])
def test_weights_for_other_data_are_refused(
    name: str, value: Any, cut: Any, made: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=f"trained for {name} .* but the splits have"):
        evaluated(tmp_path / "out", params(), cut(**{name: value}), made / "weights.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("first", ["Öl", "猫"])
def test_colour_images_of_classes_with_any_name_are_drawn_in_colour(first: str, tmp_path: Path, params: Any) -> None:
    splits = tmp_path / "splits"
    splits.mkdir()
    images = np.zeros((12, 3, 28, 28), np.uint8)
    images[:, 0] = np.random.default_rng(0).integers(200, 256, (12, 28, 28))  # red
    np.save(splits / "test-images.npy", images)
    np.save(splits / "test-labels.npy", np.arange(12) % 2)
    about = {"dataset": "own", "origin": "made", "preparation": "resize", "classes": [first, "a very long class name"],
             "channels": 3, "size": 28, "counts": {}, "counts_by_class": {}, "mean": [0.5], "std": [0.5]}  # fmt: skip
    (splits / "about.json").write_text(json.dumps(about))
    known = {name: about[name] for name in ("size", "channels", "classes", "dataset", "origin", "preparation")}
    header = WeightsHeader(architecture="reference_e", width=8, params={}, **known)  # type: ignore[arg-type]
    write_weights(tmp_path / "w", build_model("reference_e", 8, 28, 3, 2, [0.5] * 3, [0.5] * 3), header)
    evaluated(tmp_path, params({"evaluate.min_accuracy": 0.0}), splits, tmp_path / "w")
    assert {row["actual"] for row in table(tmp_path / "predictions.csv")} == {first, "a very long class name"}
    with Image.open(tmp_path / "first_nine.png") as page:
        assert any(r > 190 and g == b == 0 for _, (r, g, b) in page.convert("RGB").getcolors(1 << 24))


@pytest.mark.parametrize(("key", "value"), [("min_accuracy", 1.1), ("tsne_images", 5), ("gate", 1)])
def test_a_param_that_is_not_right_is_named(key: str, value: Any, made: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=f"evaluate.{key}"):
        evaluated(tmp_path, params({f"evaluate.{key}": value}), made / "splits", made / "weights.safetensors")


def test_missing_weights_are_named(made: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match="nowhere: missing; run `dvc repro train`"):
        evaluated(tmp_path, params(), made / "splits", tmp_path / "nowhere")
