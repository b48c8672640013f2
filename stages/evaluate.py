"""Trained weights and the test split in; held-out quality out: numbers, tables, pictures. Then the gate."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from stages.core.command import echo, run_stage
from stages.core.device import prepare_device
from stages.core.errors import StageError
from stages.core.figures import RIGHT, WRONG, CaptionedImage, draw_grid, draw_scatter
from stages.core.files import write_csv, write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.models import Classifier
from stages.network.weights import check_weights_fit, read_weights, short_hash
from stages.proof import quality


class Evaluate(Section):
    min_accuracy: float = Field(ge=0, le=1)
    tsne_images: int = Field(ge=10, le=10_000)


def evaluate(
    *,
    params: Path,
    splits: Path,
    weights: Path,
    report: Path,
    predictions: Path,
    classes: Path,
    reliability: Path,
    first_nine: Path,
    mistakes: Path,
    tsne: Path,
) -> None:
    """Measure WEIGHTS on the test split of SPLITS; fails, after all is written, below `evaluate.min_accuracy`."""
    section, machine = read_section(params, "evaluate", Evaluate), read_section(params, "machine", Machine)
    about = read_splits_info(splits)
    network, header = read_weights(weights)
    check_weights_fit(weights, header, about)
    images, labels = read_images(splits, "test"), read_labels(splits, "test")
    probabilities, hidden = predict(network.to(prepare_device(machine)), images, section.tsne_images)
    predicted = probabilities.argmax(axis=1)
    bins = quality.reliability_bins(probabilities, labels)
    scores = quality.class_scores(predicted, labels, len(about.classes))
    names = about.classes
    low, high = quality.wilson_interval(int((predicted == labels).sum()), len(labels))
    numbers = {
        "accuracy": float((predicted == labels).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": quality.log_loss(probabilities, labels),
        "macro_f1": float(scores[:, 2].mean()),
        "calibration_error": quality.calibration_error(bins),
    }
    others = {"images": len(labels), "min_accuracy": section.min_accuracy, "weights": short_hash(weights)}
    write_json(report, {name: round(number, 6) for name, number in numbers.items()} | others)
    write_csv(
        predictions, ("actual", "predicted"), ((names[a], names[p]) for a, p in zip(labels, predicted, strict=True))
    )
    write_csv(
        classes,
        ("class", "accuracy", "precision", "recall", "f1"),
        (
            (name, *rounded(recall, precision, recall, f1))
            for name, (precision, recall, f1) in zip(names, scores, strict=True)
        ),
    )
    write_csv(
        reliability,
        ("confidence", "accuracy", "perfect", "images"),
        ((*rounded(each.confidence, each.accuracy, each.confidence), each.count) for each in bins),
    )
    draw_first_nine(first_nine, images, labels, predicted, names)
    draw_mistakes(mistakes, images, labels, probabilities, names)
    draw_tsne(tsne, hidden, labels[: len(hidden)], names)
    echo(f"accuracy {numbers['accuracy']:.4f} ({low:.4f} to {high:.4f}) on {len(labels)} {about.dataset} test images")
    if numbers["accuracy"] < section.min_accuracy:
        raise StageError(
            f"accuracy {numbers['accuracy']:.4f} is below evaluate.min_accuracy {section.min_accuracy}; "
            f"the report is in {report}"
        )


@torch.no_grad()
def predict(network: Classifier, images: NDArray[np.uint8], shown: int) -> tuple[quality.Floats, quality.Floats]:
    """The probabilities of all images, and the last hidden layer of the first `shown`."""
    logits: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []
    for batch in torch.from_numpy(images).split(1000):
        features = network.hidden(batch.to(network.mean.device))
        logits.append(network.logits(features).cpu().double())
        hidden.append(features[: max(0, shown - sum(len(part) for part in hidden))].cpu().double())
    return torch.cat(logits).softmax(1).numpy(), torch.cat(hidden).numpy()


def draw_first_nine(path: Path, images: Any, labels: quality.Ints, predicted: quality.Ints, names: list[str]) -> None:
    cells = [
        CaptionedImage(image, f"{names[label]} → {names[guess]}", RIGHT if label == guess else WRONG)
        for image, label, guess in zip(images[:9], labels, predicted, strict=False)
    ]
    draw_grid(path, "The first nine test images: label → prediction", cells, columns=3)


def draw_mistakes(
    path: Path, images: Any, labels: quality.Ints, probabilities: quality.Floats, names: list[str]
) -> None:
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:12]
    cells = [
        CaptionedImage(images[i], f"{names[labels[i]]} → {names[predicted[i]]}  {confidence[i]:.0%}", WRONG)
        for i in shown
    ]
    title = f"The most confident of {len(wrong)} mistakes: label → prediction"
    draw_grid(path, title if cells else "No mistakes", cells, columns=4)


def draw_tsne(path: Path, hidden: quality.Floats, labels: quality.Ints, names: list[str]) -> None:
    from sklearn.manifold import TSNE  # a second of import: not while tests only look at the rest

    perplexity = min(30.0, (len(hidden) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(hidden)
    draw_scatter(path, f"The last hidden layer on {len(hidden)} test images (t-SNE)", points, labels, names)


def rounded(*numbers: float) -> list[float]:
    return [round(float(number), 6) for number in numbers]


if __name__ == "__main__":
    run_stage(evaluate)
