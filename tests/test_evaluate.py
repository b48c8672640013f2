"""Trained weights and the test split in; metrics, tables and pictures out, then the gate."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, run_stage_in, stage_command
from PIL import Image
from sklearn import metrics

from stages.core.errors import GateError, StageError
from stages.core.splits import read_images, read_labels
from stages.evaluate import evaluate
from stages.network.models import build_model
from stages.network.weights import WeightsHeader, read_weights, write_weights

PICTURES = ("first_nine.png", "mistakes.png", "tsne.png", "suspicious.png")
OUTPUTS = ("evaluate.json", "predictions.csv", "classes.csv", "reliability.csv", "suspects.csv", *PICTURES)
NO_FLOOR = {"evaluate.min_accuracy": 0.0, "evaluate.min_macro_f1": 0.0}


def evaluate_in(folder: Path, params: Path, splits: Path, weights: Path) -> Path:
    run_stage_in(folder, evaluate, params=params, splits=splits, weights=weights)
    return folder


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "evaluate.json").read_text())
    return report


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def noisy_weights(stage_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained weights with noise on the last layer, which classifies better than chance and makes mistakes."""
    network, header = read_weights(stage_outputs / "weights.safetensors")
    noise = torch.randn(network.head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.head.weight += 0.2 * noise
    path = tmp_path_factory.mktemp("noisy_weights") / "weights.safetensors"
    write_weights(path, network, header)
    return path


@pytest.fixture(scope="module")
def noisy_evaluation(stage_outputs: Path, noisy_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of evaluate for the noisy weights."""
    folder = tmp_path_factory.mktemp("noisy_evaluation")
    content = json.loads((stage_outputs / "params.yaml").read_text())
    content["evaluate"] |= {"min_accuracy": 0.0, "min_macro_f1": 0.0}
    (folder / "params.yaml").write_text(json.dumps(content))
    return evaluate_in(folder, folder / "params.yaml", stage_outputs / "splits", noisy_weights)


@pytest.fixture
def shorten_splits(stage_outputs: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write splits with fewer test images, or with changes in about.json."""

    def write(images: int = 200, **changes: Any) -> Path:
        splits = tmp_path / "splits"
        splits.mkdir()
        for name in ("images", "labels"):
            np.save(splits / f"test-{name}.npy", np.load(stage_outputs / "splits" / f"test-{name}.npy")[:images])
            for split in ("train", "validation"):
                shutil.copyfile(stage_outputs / "splits" / f"{split}-{name}.npy", splits / f"{split}-{name}.npy")
        about = json.loads((stage_outputs / "splits" / "about.json").read_text())
        (splits / "about.json").write_text(json.dumps({**about, **changes}))
        return splits

    return write


def test_the_small_data_set_is_classified_well(stage_outputs: Path) -> None:
    report = read_report(stage_outputs)
    assert report["accuracy"] > 0.97
    assert report["images"] == 200
    assert report["accuracy_low"] <= report["accuracy"] <= report["accuracy_high"]


def test_the_metrics_agree_with_the_predictions(noisy_evaluation: Path, stage_outputs: Path) -> None:
    predictions, report = read_table(noisy_evaluation / "predictions.csv"), read_report(noisy_evaluation)
    assert list(predictions[0]) == ["image", "actual", "predicted", "confidence"]
    assert [row["image"] for row in predictions] == [str(index) for index in range(200)]
    actual, predicted = [row["actual"] for row in predictions], [row["predicted"] for row in predictions]
    assert actual == [str(label) for label in np.load(stage_outputs / "splits" / "test-labels.npy")]
    assert 0.2 < report["accuracy"] < 0.98
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(actual, predicted))
    assert report["macro_f1"] == pytest.approx(metrics.f1_score(actual, predicted, average="macro"), abs=1e-6)
    assert report["images"] == len(predictions) == 200


def test_loss_and_predictions_agree_with_the_network(
    noisy_evaluation: Path, noisy_weights: Path, stage_outputs: Path
) -> None:
    network, header = read_weights(noisy_weights)
    with torch.no_grad():
        logits = network(torch.from_numpy(read_images(stage_outputs / "splits", "test")))
    labels = torch.from_numpy(read_labels(stage_outputs / "splits", "test"))
    loss = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    assert read_report(noisy_evaluation)["loss"] == pytest.approx(loss, abs=1e-5)
    predicted = [row["predicted"] for row in read_table(noisy_evaluation / "predictions.csv")]
    assert predicted == [header.classes[label] for label in logits.argmax(1)]


def test_the_table_of_classes_agrees_with_scikit_learn(noisy_evaluation: Path) -> None:
    predictions, classes = (
        read_table(noisy_evaluation / "predictions.csv"),
        read_table(noisy_evaluation / "classes.csv"),
    )
    assert [row["class"] for row in classes] == list("0123456789")
    actual, predicted = [row["actual"] for row in predictions], [row["predicted"] for row in predictions]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(actual, predicted, zero_division=0.0)
    for name, scores in (("precision", precision), ("recall", recall), ("f1", f1), ("accuracy", recall)):
        np.testing.assert_allclose([float(row[name]) for row in classes], scores, atol=1e-6)


def test_the_reliability_table_adds_up_to_the_report(noisy_evaluation: Path) -> None:
    bins, report = read_table(noisy_evaluation / "reliability.csv"), read_report(noisy_evaluation)
    assert list(bins[0]) == ["confidence", "accuracy", "perfect", "images"]
    assert all(row["perfect"] == row["confidence"] for row in bins)
    counts = np.array([int(row["images"]) for row in bins])
    confidence, accuracy = (np.array([float(row[name]) for row in bins]) for name in ("confidence", "accuracy"))
    assert counts.sum() == report["images"]
    assert (counts * accuracy).sum() / counts.sum() == pytest.approx(report["accuracy"], abs=1e-5)
    error = (counts * abs(confidence - accuracy)).sum() / counts.sum()
    assert report["calibration_error"] == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("folder", ["stage_outputs", "noisy_evaluation"])
def test_the_pictures_are_png_and_not_blank(folder: str, picture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder) / picture
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 40
        assert len(image.convert("RGB").getcolors(1 << 24)) > 2


def test_mistakes_are_drawn_in_three_rows_or_not_at_all(stage_outputs: Path, noisy_evaluation: Path) -> None:
    with (
        Image.open(stage_outputs / "mistakes.png") as empty_page,
        Image.open(noisy_evaluation / "mistakes.png") as full_page,
    ):
        assert empty_page.height < 60  # only a title
        assert full_page.height > 3 * 84


def test_a_run_in_another_folder_writes_the_same_bytes(
    noisy_evaluation: Path, noisy_weights: Path, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    params_file = params(NO_FLOOR)
    folder = evaluate_in(tmp_path / "elsewhere", params_file, stage_outputs / "splits", noisy_weights)
    for file in OUTPUTS:
        assert (folder / file).read_bytes() == (noisy_evaluation / file).read_bytes(), file


def test_tsne_images_changes_only_the_tsne_picture(
    noisy_evaluation: Path, noisy_weights: Path, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    params_file = params({**NO_FLOOR, "evaluate.tsne_images": 29})
    folder = evaluate_in(tmp_path / "other", params_file, stage_outputs / "splits", noisy_weights)
    changed = {file for file in OUTPUTS if (folder / file).read_bytes() != (noisy_evaluation / file).read_bytes()}
    assert changed == {"tsne.png"}


def test_below_min_accuracy_it_fails_with_all_outputs_written(
    noisy_weights: Path, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    paths = {
        "params": params({"evaluate.min_accuracy": 1.0, "evaluate.min_macro_f1": 0.0}),
        "splits": stage_outputs / "splits",
        "weights": noisy_weights,
    }
    command = stage_command(tmp_path, evaluate, **paths)
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    accuracy = read_report(tmp_path)["accuracy"]
    assert completed.returncode == 3
    assert re.fullmatch(
        rf"evaluate: accuracy {accuracy:.4f} is below evaluate\.min_accuracy 1\.0; most confused: "
        rf"(\d and \d \(\d+\), ){{2}}\d and \d \(\d+\); the report is in {tmp_path / 'evaluate.json'}\n",
        completed.stderr,
    )
    assert all((tmp_path / file).exists() for file in OUTPUTS)


def test_at_min_accuracy_it_passes(
    noisy_weights: Path, noisy_evaluation: Path, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    accuracy = read_report(noisy_evaluation)["accuracy"]
    evaluate_in(
        tmp_path, params({**NO_FLOOR, "evaluate.min_accuracy": accuracy}), stage_outputs / "splits", noisy_weights
    )
    with pytest.raises(StageError, match=r"is below evaluate\.min_accuracy"):
        evaluate_in(
            tmp_path, params({"evaluate.min_accuracy": accuracy + 0.001}), stage_outputs / "splits", noisy_weights
        )


@pytest.mark.parametrize("images", [2, 7, 12])
def test_a_test_split_with_few_images_works(
    images: int, shorten_splits: Any, noisy_weights: Path, tmp_path: Path, params: Any
) -> None:
    evaluate_in(tmp_path, params(NO_FLOOR), shorten_splits(images), noisy_weights)
    assert read_report(tmp_path)["images"] == images
    assert (tmp_path / "tsne.png").stat().st_size > 1000


@pytest.mark.parametrize(("name", "value"), [("size", 32), ("channels", 3), ("classes", list("abcdefghij"))])
def test_weights_for_other_data_are_rejected(
    name: str, value: Any, shorten_splits: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=f"trained for {name} .* but the splits have"):
        evaluate_in(tmp_path / "out", params(), shorten_splits(**{name: value}), stage_outputs / "weights.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("first", ["Öl", "猫"])
def test_colour_images_and_unicode_class_names_are_drawn(first: str, tmp_path: Path, params: Any) -> None:
    splits = tmp_path / "splits"
    splits.mkdir()
    images = np.zeros((12, 3, 28, 28), np.uint8)
    images[:, 0] = np.random.default_rng(0).integers(200, 256, (12, 28, 28))  # red
    for split in ("train", "validation", "test"):
        np.save(splits / f"{split}-images.npy", images)
        np.save(splits / f"{split}-labels.npy", np.arange(12) % 2)
    about = {"dataset": "own", "origin": "made", "preparation": "resize", "classes": [first, "a very long class name"],
             "channels": 3, "size": 28, "counts": {}, "counts_by_class": {}, "mean": [0.5], "std": [0.5]}  # fmt: skip
    (splits / "about.json").write_text(json.dumps(about))
    header_fields = {name: about[name] for name in ("size", "channels", "classes", "dataset", "origin", "preparation")}
    header = WeightsHeader(architecture="reference_e", width=8, params={}, **header_fields)  # type: ignore[arg-type]
    write_weights(tmp_path / "w", build_model("reference_e", 8, 28, 3, 2, [0.5] * 3, [0.5] * 3), header)
    evaluate_in(tmp_path, params(NO_FLOOR), splits, tmp_path / "w")
    assert {row["actual"] for row in read_table(tmp_path / "predictions.csv")} == {first, "a very long class name"}
    with Image.open(tmp_path / "first_nine.png") as page:
        assert any(r > 190 and g == b == 0 for _, (r, g, b) in page.convert("RGB").getcolors(1 << 24))


@pytest.mark.parametrize(
    ("key", "value"), [("min_accuracy", 1.1), ("tsne_images", 5), ("gate", "off"), ("min_lift", 2.0), ("floor", 1)]
)
def test_an_invalid_param_is_named(key: str, value: Any, stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=f"evaluate.{key}"):
        evaluate_in(
            tmp_path,
            params({f"evaluate.{key}": value}),
            stage_outputs / "splits",
            stage_outputs / "weights.safetensors",
        )


def test_missing_weights_are_named(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match="nowhere: missing; run `dvc repro train`"):
        evaluate_in(tmp_path, params(), stage_outputs / "splits", tmp_path / "nowhere")


def set_labels(stage_outputs: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the splits with other labels: for a split, a function of its labels."""
    splits = Path(shutil.copytree(stage_outputs / "splits", folder / "splits"))
    for split, change in changes.items():
        np.save(splits / f"{split}-labels.npy", change(np.load(splits / f"{split}-labels.npy")))
    return splits


@pytest.mark.parametrize(
    ("dataset", "changes", "floor"),
    [
        ("mnist", {}, 0.97),
        ("own", {}, 0.55),  # half of the way from 1 of 10 classes to 1
        ("own", {"evaluate.min_lift": 0.0}, 0.1),
        ("own", {"evaluate.min_lift": 0.9}, 0.91),
        ("own", {"evaluate.min_accuracy": 0.8}, 0.8),
        ("mnist", {"evaluate.min_accuracy": 0.2}, 0.2),
    ],
)
def test_the_floor_is_the_params_or_the_data_sets_or_above_the_majority_class(
    dataset: str, changes: Any, floor: float, stage_outputs: Path, shorten_splits: Any, tmp_path: Path, params: Any
) -> None:
    evaluate_in(tmp_path, params(changes), shorten_splits(dataset=dataset), stage_outputs / "weights.safetensors")
    report = read_report(tmp_path)
    assert (report["min_accuracy"], report["passed"], report["dataset"]) == (floor, True, dataset)


def test_macro_f1_is_in_the_gate(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    """Nearly all test images are of one class: the others hardly count for accuracy."""
    splits = set_labels(stage_outputs, tmp_path)
    images, labels = np.load(splits / "test-images.npy"), np.load(splits / "test-labels.npy")
    chosen = np.concatenate([np.tile(np.flatnonzero(labels == 0), 20), np.flatnonzero(labels != 0)[:40]])
    np.save(splits / "test-images.npy", images[chosen])
    np.save(splits / "test-labels.npy", np.where(labels[chosen] == 0, 0, (labels[chosen] + 1) % 10))
    changes = {"evaluate.min_accuracy": 0.85, "evaluate.min_lift": 0.3}
    with pytest.raises(
        GateError, match=r"^macro F1 0\.\d{4} is below 0\.\d{4}, which evaluate.min_lift 0.3 asks for; m"
    ):
        evaluate_in(tmp_path, params(changes), splits, stage_outputs / "weights.safetensors")
    assert read_report(tmp_path)["passed"] is False


def test_the_gate_names_the_pairs_of_classes_that_are_confused_most(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    def exchange(labels: np.ndarray) -> np.ndarray:
        return np.where(labels == 3, 5, np.where(labels == 5, 3, labels))

    splits = set_labels(stage_outputs, tmp_path, test=exchange)
    with pytest.raises(GateError, match=r"min_accuracy_by_dataset.mnist 0.97; most confused: 3 and 5 \((39|40)\)"):
        evaluate_in(tmp_path, params(), splits, stage_outputs / "weights.safetensors")


def test_a_gate_that_only_records_does_not_fail(
    noisy_weights: Path, stage_outputs: Path, tmp_path: Path, params: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    params_file = params({"evaluate.min_accuracy": 1.0, "evaluate.gate": "record"})
    evaluate_in(tmp_path, params_file, stage_outputs / "splits", noisy_weights)
    assert read_report(tmp_path)["passed"] is False
    assert "not good enough, only recorded (evaluate.gate): accuracy 0." in capsys.readouterr().out


def test_images_have_their_file_names_in_the_tables(
    noisy_weights: Path, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    splits = set_labels(stage_outputs, tmp_path)
    names = [f"a folder/image, {index}.png" for index in range(200)]
    (splits / "test-names.txt").write_text("".join(f"{name}\n" for name in names))
    evaluate_in(tmp_path, params(NO_FLOOR), splits, noisy_weights)
    assert [row["image"] for row in read_table(tmp_path / "predictions.csv")] == names
    (splits / "test-names.txt").write_text("only one\n")
    with pytest.raises(StageError, match="has 1 names of 200 images; run `dvc repro preprocess`"):
        evaluate_in(tmp_path, params(NO_FLOOR), splits, noisy_weights)


def test_another_test_set_has_another_hash(
    noisy_weights: Path, stage_outputs: Path, noisy_evaluation: Path, tmp_path: Path, params: Any
) -> None:
    splits = set_labels(stage_outputs, tmp_path, test=lambda labels: np.roll(labels, 1))
    evaluate_in(tmp_path, params(NO_FLOOR), splits, noisy_weights)
    before = read_report(noisy_evaluation)["test_sha256"]
    assert re.fullmatch("[0-9a-f]{12}", before)
    assert read_report(tmp_path)["test_sha256"] != before


def test_wrong_labels_are_found_and_drawn(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    def corrupt(labels: np.ndarray) -> np.ndarray:
        labels[[11, 222, 333]] = (labels[[11, 222, 333]] + 1) % 10
        return labels

    splits = set_labels(stage_outputs, tmp_path, train=corrupt)
    evaluate_in(tmp_path, params(), splits, stage_outputs / "weights.safetensors")
    suspects = read_table(tmp_path / "suspects.csv")
    assert {row["image"] for row in suspects[:3]} == {"11", "222", "333"}
    assert all(row["split"] == "train" and float(row["label_probability"]) < 0.5 for row in suspects[:3])
    assert all(int(row["label"]) == (int(row["predicted"]) + 1) % 10 for row in suspects[:3])
    with Image.open(tmp_path / "suspicious.png") as page:
        assert page.height > 84

    evaluate_in(tmp_path, params({"evaluate.label_check_images": 0}), splits, stage_outputs / "weights.safetensors")
    assert read_table(tmp_path / "suspects.csv") == []
    evaluate_in(tmp_path, params({"evaluate.label_check_images": 100}), splits, stage_outputs / "weights.safetensors")
    assert len(read_table(tmp_path / "suspects.csv")) <= 3
