"""Measures the trained weights on the test split. Writes metrics, tables and pictures."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray
from pydantic import Field

from stages.core.command import echo, run_stage
from stages.core.device import prepare_device
from stages.core.errors import GateError
from stages.core.figures import CORRECT_COLOR, WRONG_COLOR, CaptionedImage, draw_grid, draw_scatter
from stages.core.files import write_csv, write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import hash_split, name_images, read_images, read_labels, read_splits_info
from stages.network.models import Classifier
from stages.network.weights import check_weights_fit, read_weights, short_hash
from stages.proof import quality
from stages.proof.gate import Floor, absolute_floor, describe_failure, lift_floor
from stages.proof.quality import Floats, Ints
from stages.proof.suspects import LabelCheck, check_labels

Names = NDArray[np.str_]
Fraction = Annotated[float, Field(ge=0, le=1)]
MAX_SUSPECTS = 100  # in the table; the picture shows the first 24


class Evaluate(Section):
    gate: Literal["enforce", "record"]
    min_accuracy: Fraction | None
    min_accuracy_by_dataset: dict[str, Fraction]
    min_macro_f1: Fraction | None
    min_lift: Fraction
    label_check_images: int = Field(ge=0)
    tsne_images: int = Field(ge=10, le=10_000)


def evaluate(
    *,
    params: Annotated[Path, Parameter(help="params.yaml")],
    splits: Annotated[Path, Parameter(help="folder of splits")],
    weights: Annotated[Path, Parameter(help="trained weights")],
    report: Annotated[Path, Parameter(help="JSON to write accuracy, loss and the other metrics to")],
    predictions: Annotated[Path, Parameter(help="CSV to write each prediction to")],
    classes: Annotated[Path, Parameter(help="CSV to write the scores of each class to")],
    reliability: Annotated[Path, Parameter(help="CSV to write accuracy by confidence to")],
    first_nine: Annotated[Path, Parameter(help="PNG to draw the first nine test images to")],
    mistakes: Annotated[Path, Parameter(help="PNG to draw the most confident mistakes to")],
    tsne: Annotated[Path, Parameter(help="PNG to draw the t-SNE of the last hidden layer to")],
    suspects: Annotated[Path, Parameter(help="CSV to write the training images with suspicious labels to")],
    suspicious: Annotated[Path, Parameter(help="PNG to draw the most suspicious of them to")],
) -> None:
    """Measure the trained weights on the test split; write all outputs, then fail below a floor of the gate."""
    section, machine = read_section(params, "evaluate", Evaluate), read_section(params, "machine", Machine)
    network, header = read_weights(weights)
    info = read_splits_info(splits)
    check_weights_fit(weights, header, info)
    images, labels = read_images(splits, "test"), read_labels(splits, "test")
    probabilities, hidden = run_network(network.to(prepare_device(machine)), images, section.tsne_images)
    predicted, names = probabilities.argmax(axis=1), info.classes
    accuracy = float((predicted == labels).mean())
    low, high = quality.wilson_interval(int((predicted == labels).sum()), len(labels))
    scores = quality.class_scores(predicted, labels, len(names))
    reliability_table = quality.reliability_table(probabilities, labels)
    metrics = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": quality.log_loss(probabilities, labels),
        "macro_f1": float(scores[:, 2].mean()),
        "calibration_error": quality.calibration_error(reliability_table),
    }
    metrics = {name: round(value, 6) for name, value in metrics.items()}
    floors = find_floors(section, info.dataset, labels, len(names))
    failures = [failure for floor in floors if (failure := floor.failure(metrics))]
    context = {
        "images": len(labels),
        **{f"min_{floor.metric}": floor.value for floor in floors},
        "gate": section.gate,
        "passed": not failures,
        "dataset": info.dataset,
        "test_sha256": hash_split(splits, "test"),
        "weights": short_hash(weights),
    }
    write_json(report, metrics | context)
    label_names, predicted_names = np.array(names)[labels], np.array(names)[predicted]
    confidence = probabilities.max(axis=1)
    rows = zip(
        name_images(splits, "test", len(labels)),
        label_names,
        predicted_names,
        (f"{value:.6f}" for value in confidence.tolist()),
        strict=True,
    )
    write_csv(predictions, ("image", "actual", "predicted", "confidence"), rows)
    class_rows = (
        (name, *round_all(recall, precision, recall, f1))  # the accuracy on a class is its recall
        for name, (precision, recall, f1) in zip(names, scores.tolist(), strict=True)
    )
    write_csv(classes, ("class", "accuracy", "precision", "recall", "f1"), class_rows)
    bin_rows = (
        (*round_all(bin_confidence, bin_accuracy, bin_confidence), count)
        for bin_confidence, bin_accuracy, count in reliability_table
    )
    write_csv(reliability, ("confidence", "accuracy", "perfect", "images"), bin_rows)
    draw_first_nine(first_nine, images, label_names, predicted_names)
    draw_mistakes(mistakes, images, label_names, predicted_names, confidence)
    draw_tsne(tsne, hidden, labels[: len(hidden)], names)
    checked = check_labels(network, splits, section.label_check_images)
    write_suspects(suspects, checked, names)
    draw_suspects(suspicious, checked, splits, names)
    echo(f"accuracy {accuracy:.4f} ({low:.4f} to {high:.4f}) on {len(labels)} {info.dataset} test images")
    if checked.suspects:
        count = f"{len(checked.suspects)} of {checked.checked} training and validation images"
        echo(f"labels: {count} have a suspicious label; look at {suspicious}")
    if failures:
        pairs = quality.confused_pairs(predicted, labels, 3)
        line = describe_failure(failures, pairs, names, report)
        if section.gate == "enforce":
            raise GateError(line)
        echo(f"not good enough, only recorded (evaluate.gate): {line}")


def find_floors(section: Evaluate, dataset: str, labels: Ints, classes: int) -> list[Floor]:
    """The floors of accuracy and macro F1: the param's, else the data set's, else those of evaluate.min_lift."""
    accuracy, macro_f1 = quality.majority_scores(labels, classes)
    floors = [lift_floor("accuracy", accuracy, section.min_lift), lift_floor("macro_f1", macro_f1, section.min_lift)]
    if section.min_accuracy is not None:
        floors[0] = absolute_floor("accuracy", section.min_accuracy, "min_accuracy")
    elif (known := section.min_accuracy_by_dataset.get(dataset)) is not None:
        floors[0] = absolute_floor("accuracy", known, f"min_accuracy_by_dataset.{dataset}")
    if section.min_macro_f1 is not None:
        floors[1] = absolute_floor("macro_f1", section.min_macro_f1, "min_macro_f1")
    return floors


@torch.no_grad()
def run_network(network: Classifier, images: NDArray[np.uint8], hidden_images: int) -> tuple[Floats, Floats]:
    """The probabilities of all images, and the last hidden layer of the first `hidden_images`."""
    logits: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []
    for batch in torch.from_numpy(images).split(1000):
        features = network.hidden(batch.to(network.mean.device))
        logits.append(network.logits(features).cpu().double())
        if sum(map(len, hidden)) < hidden_images:
            hidden.append(features.cpu().double())
    return torch.cat(logits).softmax(1).numpy(), torch.cat(hidden)[:hidden_images].numpy()


def round_all(*numbers: float) -> list[float]:
    return [round(number, 6) for number in numbers]


def draw_first_nine(path: Path, images: NDArray[np.uint8], labels: Names, predicted: Names) -> None:
    cells = [
        CaptionedImage(image, f"{label} →\n{prediction}", CORRECT_COLOR if label == prediction else WRONG_COLOR)
        for image, label, prediction in zip(images[:9], labels, predicted, strict=False)
    ]
    draw_grid(path, "The first nine test images: label → prediction", cells, columns=3)


def draw_mistakes(path: Path, images: NDArray[np.uint8], labels: Names, predicted: Names, confidence: Floats) -> None:
    wrong = np.flatnonzero(predicted != labels)
    most_confident = wrong[np.argsort(-confidence[wrong], kind="stable")][:12]
    cells = [
        CaptionedImage(images[i], f"{labels[i]} →\n{predicted[i]}\n {confidence[i]:.0%}", WRONG_COLOR)
        for i in most_confident
    ]
    title = f"The most confident of {len(wrong)} mistakes: label → prediction" if cells else "No mistakes"
    draw_grid(path, title, cells, columns=4)


def write_suspects(path: Path, checked: LabelCheck, names: list[str]) -> None:
    rows = (
        (one.split, one.name, names[one.label], names[one.predicted], *map("{:.6f}".format, one.numbers))
        for one in checked.suspects[:MAX_SUSPECTS]
    )
    write_csv(path, ("split", "image", "label", "predicted", "label_probability", "confidence"), rows)


def draw_suspects(path: Path, checked: LabelCheck, splits: Path, names: list[str]) -> None:
    images = {split: read_images(splits, split) for split in {one.split for one in checked.suspects}}
    cells = [
        CaptionedImage(images[one.split][one.index], f"{names[one.label]} →\n{names[one.predicted]}?", WRONG_COLOR)
        for one in checked.suspects[:24]
    ]
    title = f"The most suspicious labels of {checked.checked} training and validation images: label → prediction"
    draw_grid(path, title if cells else f"No suspicious label in {checked.checked} images", cells, columns=6)


def draw_tsne(path: Path, hidden: Floats, labels: Ints, names: list[str]) -> None:
    """By t-SNE (van der Maaten and Hinton 2008, "Visualizing Data using t-SNE")."""
    from sklearn.manifold import TSNE  # takes a second to import

    perplexity = min(30.0, (len(hidden) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(hidden)
    draw_scatter(path, f"The last hidden layer on {len(hidden)} test images (t-SNE)", points, labels, names)


if __name__ == "__main__":
    run_stage(evaluate)
