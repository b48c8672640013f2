"""The golden sample: a few inputs of the ONNX file with the outputs expected of it, as JSON that any language reads."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import StageError
from stages.core.files import atomic_write
from stages.network.weights import WeightsHeader
from stages.proof.parity import Outputs, compare_outputs

OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True)
class GoldenSample:
    images: NDArray[np.uint8]
    answer: Outputs
    predicted: list[str]
    tolerance: float  # absolute, that a replay is held to

    def differences(self, answer: Outputs, classes: list[str], atol: float) -> list[str]:
        """What a consumer would find wrong with the file's answer."""
        wrong = compare_outputs(self.answer, answer).reasons(min(self.tolerance, atol), 0.0)
        if self.predicted != [classes[label] for label in answer.logits.argmax(axis=1)]:
            wrong.append("other classes than it says")
        return [f"golden sample: {reason}" for reason in wrong]


def write_golden(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    answer: Outputs,
    classes: list[str],
    tolerance: float,
) -> None:
    """Each image is flat, in the order of the input's layout; a line for each case."""
    cases = [
        {
            "class": classes[label],
            "predicted": classes[int(logits.argmax())],
            "image": image.ravel().tolist(),
            "logits": logits.tolist(),
            "probabilities": probabilities.tolist(),
        }
        for image, label, logits, probabilities in zip(images, labels, answer.logits, answer.probabilities, strict=True)
    ]
    lines = ",\n    ".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = f'"image_shape": {list(images.shape[1:])},\n  "tolerance": {json.dumps(tolerance)}'
    with atomic_write(path) as beside:
        beside.write_text(f'{{\n  {head},\n  "cases": [\n    {lines}\n  ]\n}}\n', encoding="utf-8")


def read_golden(path: Path, header: WeightsHeader) -> GoldenSample:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shape, cases = content["image_shape"], content["cases"]
        if shape != [header.channels, header.size, header.size]:
            raise ValueError(f"images of shape {shape}")
        logits, probabilities = (np.array([case[key] for case in cases], np.float32) for key in OUTPUTS)
        if not cases or not logits.shape == probabilities.shape == (len(cases), len(header.classes)):
            raise ValueError(f"outputs of shape {logits.shape}")
        return GoldenSample(
            images=np.array([case["image"] for case in cases], np.uint8).reshape(len(cases), *shape),
            answer=Outputs(logits, probabilities),
            predicted=[case["predicted"] for case in cases],
            tolerance=float(content["tolerance"]),
        )
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro export_onnx`") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise StageError(f"{path}: not a golden sample ({error}); run `dvc repro -f export_onnx`") from None
