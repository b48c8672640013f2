"""The golden sample: a few images with the expected outputs of the ONNX file, as JSON for any language."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import StageError
from stages.core.files import atomic_write
from stages.network.weights import WeightsHeader
from stages.proof.onnx_file import LOGITS, PROBABILITIES
from stages.proof.parity import Outputs, compare_outputs


@dataclass(frozen=True)
class GoldenSample:
    images: NDArray[np.uint8]
    outputs: Outputs
    predicted: list[str]  # class names
    tolerance: float  # largest absolute error of a replay

    def mismatches(self, outputs: Outputs, classes: list[str], atol: float) -> list[str]:
        """Why these outputs do not match the sample; empty if they do."""
        reasons = compare_outputs(self.outputs, outputs).mismatches(min(self.tolerance, atol), 0.0)
        if self.predicted != outputs.predicted(classes):
            reasons.append("its predicted classes are others")
        return [f"golden sample: {reason}" for reason in reasons]


def write_golden(path: Path, sample: GoldenSample, labels: list[str]) -> None:
    """Write one line for each case. The pixels of an image are a flat list in CHW order."""
    cases = [
        {
            "class": label,
            "predicted": predicted,
            "image": image.ravel().tolist(),
            LOGITS: logits.tolist(),
            PROBABILITIES: probabilities.tolist(),
        }
        for label, predicted, image, logits, probabilities in zip(
            labels, sample.predicted, sample.images, sample.outputs.logits, sample.outputs.probabilities, strict=True
        )
    ]
    fields = f'"image_shape": {list(sample.images.shape[1:])},\n  "tolerance": {json.dumps(sample.tolerance)}'
    lines = ",\n    ".join(json.dumps(case, ensure_ascii=False) for case in cases)
    with atomic_write(path) as tmp:
        tmp.write_text(f'{{\n  {fields},\n  "cases": [\n    {lines}\n  ]\n}}\n', encoding="utf-8")


def read_golden(path: Path, header: WeightsHeader) -> GoldenSample:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shape, cases = content["image_shape"], content["cases"]
        if shape != [header.channels, header.size, header.size]:
            raise ValueError(f"images of shape {shape}")
        logits, probabilities = (np.array([case[key] for case in cases], np.float32) for key in (LOGITS, PROBABILITIES))
        if not cases or not logits.shape == probabilities.shape == (len(cases), len(header.classes)):
            raise ValueError(f"outputs of shape {logits.shape}")
        return GoldenSample(
            images=np.array([case["image"] for case in cases], np.uint8).reshape(len(cases), *shape),
            outputs=Outputs(logits, probabilities),
            predicted=[case["predicted"] for case in cases],
            tolerance=float(content["tolerance"]),
        )
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro export_onnx`") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise StageError(f"{path}: not a golden sample ({error}); run `dvc repro -f export_onnx`") from None
