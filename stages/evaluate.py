"""Measures the trained weights on the test split. Writes metrics, tables and pictures."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray
from pydantic import Field

from stages.core.command import echo, run_stage
from stages.core.device import prepare_device
from stages.core.errors import StageError
from stages.core.figures import CORRECT_COLOR, WRONG_COLOR, CaptionedImage, draw_grid, draw_scatter
from stages.core.files import write_csv, write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.models import Classifier
from stages.network.weights import check_weights_fit, read_weights, short_hash
from stages.proof import quality
from stages.proof.quality import Floats, Ints

Names = NDArray[np.str_]


class Evaluate(Section):
    min_accuracy: float = Field(ge=0, le=1)
    tsne_images: int = Field(ge=10, le=10_000)


def evaluate(
    *,
    params: Annotated[Path, Parameter(help="params.yaml")],
    splits: Annotated[Path, Parameter(help="folder of splits")],
    weights: Annotated[Path, Parameter(help="trained weights")],
    report: Annotated[Path, Parameter(help="JSON to write accuracy, loss and the other metrics to")],
    predictions: Annotated[Path, Parameter(help="CSV to write each label and prediction to")],
    classes: Annotated[Path, Parameter(help="CSV to write the scores of each class to")],
    reliability: Annotated[Path, Parameter(help="CSV to write accuracy by confidence to")],
    first_nine: Annotated[Path, Parameter(help="PNG to draw the first nine test images to")],
    mistakes: Annotated[Path, Parameter(help="PNG to draw the most confident mistakes to")],
    tsne: Annotated[Path, Parameter(help="PNG to draw the t-SNE of the last hidden layer to")],
) -> None:
    """Measure the trained weights on the test split; write all outputs, then fail below evaluate.min_accuracy."""
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
    context = {"images": len(labels), "min_accuracy": section.min_accuracy, "weights": short_hash(weights)}
    write_json(report, {name: round(value, 6) for name, value in metrics.items()} | context)
    label_names, predicted_names = np.array(names)[labels], np.array(names)[predicted]
    write_csv(predictions, ("actual", "predicted"), zip(label_names, predicted_names, strict=True))
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
    draw_mistakes(mistakes, images, label_names, predicted_names, probabilities.max(axis=1))
    draw_tsne(tsne, hidden, labels[: len(hidden)], names)
    echo(f"accuracy {accuracy:.4f} ({low:.4f} to {high:.4f}) on {len(labels)} {info.dataset} test images")
    if accuracy < section.min_accuracy:
        raise StageError(
            f"accuracy {accuracy:.4f} is below evaluate.min_accuracy {section.min_accuracy}; the report is in {report}"
        )


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
        CaptionedImage(image, f"{label} → {prediction}", CORRECT_COLOR if label == prediction else WRONG_COLOR)
        for image, label, prediction in zip(images[:9], labels, predicted, strict=False)
    ]
    draw_grid(path, "The first nine test images: label → prediction", cells, columns=3)


def draw_mistakes(path: Path, images: NDArray[np.uint8], labels: Names, predicted: Names, confidence: Floats) -> None:
    wrong = np.flatnonzero(predicted != labels)
    most_confident = wrong[np.argsort(-confidence[wrong], kind="stable")][:12]
    cells = [
        CaptionedImage(images[i], f"{labels[i]} → {predicted[i]}  {confidence[i]:.0%}", WRONG_COLOR)
        for i in most_confident
    ]
    title = f"The most confident of {len(wrong)} mistakes: label → prediction" if cells else "No mistakes"
    draw_grid(path, title, cells, columns=4)


def draw_tsne(path: Path, hidden: Floats, labels: Ints, names: list[str]) -> None:
    """By t-SNE (van der Maaten and Hinton 2008, "Visualizing Data using t-SNE")."""
    from sklearn.manifold import TSNE  # takes a second to import

    perplexity = min(30.0, (len(hidden) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(hidden)
    draw_scatter(path, f"The last hidden layer on {len(hidden)} test images (t-SNE)", points, labels, names)


if __name__ == "__main__":
    run_stage(evaluate)
