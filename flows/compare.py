"""`python -m flows.compare A B`: which of two revisions or experiments is better, and on which test images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.changed_pictures import draw_changes
from flows.comparison import ClassChange, Comparison, ImageChange, compare_revisions
from flows.errors import FlowError
from flows.predictions import WORKSPACE, Prediction, Predictions
from flows.terminal import run_cli

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "logs" / "compare.png"  # git ignores the folder
Table = list[list[str]]  # the header first


def compare_cli(
    a: str = "HEAD",
    b: str = WORKSPACE,
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json")] = False,
    rows: Annotated[int, Parameter(validator=Number(gte=0))] = 20,
    picture: Path = PICTURE,
) -> None:
    """Say which of two models is better, from the predictions of the same test images that were committed with them.

    Better and worse are meant by McNemar's exact test, at promote.level of params.yaml. For example, compare the files
    in this folder with the last commit, then two experiments:

    python -m flows.compare

    python -m flows.compare quick standard

    Parameters
    ----------
    a
        A commit, branch, tag or DVC experiment.
    b
        The one that is compared with it; `workspace` is the files in this folder.
    json_
        Print everything as JSON.
    rows
        Rows of each table, at most.
    picture
        The PNG to draw the pictures that changed sides to, if the splits are here.
    """
    comparison = compare_revisions(ROOT, a, b)
    try:
        drawn = draw_changes(picture, ROOT, comparison)
        path = picture.relative_to(ROOT) if picture.is_relative_to(ROOT) else picture
        hint = f"Pictures: {path}, {drawn}" if drawn else ""
    except FlowError as error:
        drawn, hint = "", f"No pictures: {error}"
    if json_:
        print(json.dumps(to_json(comparison) | {"picture": str(picture) if drawn else None}, ensure_ascii=False))
    else:
        print("\n\n".join(filter(None, [*describe(comparison, rows), hint])))


def describe(comparison: Comparison, limit: int) -> list[str]:
    """The result as paragraphs for a terminal."""
    old, new, count = comparison.old, comparison.new, comparison.test.won + comparison.test.lost
    dataset = f" of {new.dataset}" if new.dataset else ""
    title = f"Accuracy on {len(new.rows):,} test images{dataset}"
    paragraphs = [
        f"{title}\n{format_table([accuracy_row(old), accuracy_row(new)])}",
        f"{new.revision} is {comparison.sentence} (McNemar's exact test)",
        f"Note: {comparison.note}" if comparison.note else "",
    ]
    if count:
        header = ["image", "label", old.revision, new.revision, ""]
        table = format_table([header, *map(image_row, comparison.shown_images(limit))], count - limit)
        paragraphs.append(f"{count} test images changed sides\n{table}")
        classes = comparison.changed_classes()
        header = ["class", "images", old.revision, new.revision, "won", "lost"]
        table = format_table([header, *map(class_row, classes[:limit])], len(classes) - limit)
        paragraphs.append(f"Accuracy by class, the largest gains and losses first\n{table}")
    return paragraphs


def accuracy_row(predictions: Predictions) -> list[str]:
    low, high = predictions.interval
    return [predictions.title, f"{predictions.accuracy:.2%}", f"95 % interval {low:.2%} to {high:.2%}"]


def image_row(change: ImageChange) -> list[str]:
    answers = [format_prediction(change.old), format_prediction(change.new)]
    return [change.new.image, change.new.label, *answers, "won" if change.is_won else "lost"]


def format_prediction(prediction: Prediction) -> str:
    return prediction.predicted + ("" if prediction.confidence is None else f" ({prediction.confidence:.0%})")


def class_row(change: ClassChange) -> list[str]:
    accuracies = [f"{correct / change.images:.1%}" for correct in (change.old_correct, change.new_correct)]
    return [change.name, str(change.images), *accuracies, str(change.test.won), str(change.test.lost)]


def format_table(rows: Table, left_out: int = 0) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rest = [f"and {left_out} more, by --rows or --json"] if left_out > 0 else []
    return "\n".join(f"  {line}" for line in [*lines, *rest])


def to_json(comparison: Comparison) -> dict[str, Any]:
    def side(predictions: Predictions) -> dict[str, Any]:
        low, high = predictions.interval
        names = {"revision": predictions.revision, "commit": predictions.commit or None}
        correct = {"correct": predictions.correct, "accuracy": predictions.accuracy}
        return {**names, **correct, "accuracy_low": low, "accuracy_high": high}

    test = comparison.test
    return {
        "a": side(comparison.old),
        "b": side(comparison.new),
        "images": len(comparison.new.rows),
        "dataset": comparison.new.dataset or None,
        "verdict": comparison.verdict,  # of b
        "level": comparison.level,
        "won": test.won,
        "lost": test.lost,
        "p_value": test.p_value,
        "p_better": test.p_better,
        "p_worse": test.p_worse,
        "note": comparison.note or None,
        "changed_images": [
            {
                "index": change.index,
                "image": change.new.image,
                "actual": change.new.label,
                "change": "won" if change.is_won else "lost",
                **{side: answer_json(answer) for side, answer in (("a", change.old), ("b", change.new))},
            }
            for change in comparison.changed_images()
        ],
        "changed_classes": [asdict(change) for change in comparison.changed_classes()],
    }


def answer_json(prediction: Prediction) -> dict[str, Any]:
    return {"predicted": prediction.predicted, "confidence": prediction.confidence}


if __name__ == "__main__":
    run_cli(compare_cli, "python -m flows.compare")
