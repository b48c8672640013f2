"""The golden sample of a model: inputs with their expected outputs, replayed before the model is used."""

import json
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lockstep.certificate import REPLACE_FILES
from lockstep.errors import LockstepError

if TYPE_CHECKING:
    from lockstep.classifier import Classifier


class GoldenReplay(NamedTuple):
    images: int
    max_abs_error: float  # of all logits and probabilities
    tolerance: float


def replay_golden_sample(data: bytes, classifier: "Classifier") -> GoldenReplay:
    """Run the inputs of golden.json's bytes; LockstepError if an output or a label is not the expected one."""
    name = f"the golden sample of {classifier.path}"
    try:
        content = json.loads(data)
        cases, tolerance = content["cases"], float(content["tolerance"])
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"a tolerance of {tolerance}")
        shape = tuple(content["image_shape"])
        pixels = np.array([case["image"] for case in cases], np.uint8).reshape(len(cases), *shape)
        expected = [np.array([case[key] for case in cases], np.float32) for key in ("logits", "probabilities")]
        expected_labels = [case["predicted"] for case in cases]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise LockstepError(f"{name}: is not a golden sample ({error!s:.200}); {REPLACE_FILES}") from None
    classes, model_shape = classifier.classes, classifier.metadata.shape
    if not cases:
        raise LockstepError(f"{name}: has no images; {REPLACE_FILES}")
    if shape != model_shape:
        raise LockstepError(
            f"{name}: is of another model: images of {shape!s:.80}, the model takes {model_shape}; {REPLACE_FILES}"
        )
    if any(array.shape != (len(cases), len(classes)) for array in expected):
        scores = sorted({array.shape[-1] for array in expected})
        raise LockstepError(
            f"{name}: is of another model: it has {' and '.join(map(str, scores))} outputs for an image, the model has "
            f"{len(classes)} classes; {REPLACE_FILES}"
        )
    try:
        outputs = classifier.run(pixels)
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise LockstepError(f"{classifier.path}: cannot be run: {' '.join(str(error).split())[:200]}") from None
    max_abs_error = float(np.max([np.abs(got - want).max() for got, want in zip(outputs, expected, strict=True)]))
    if not max_abs_error <= tolerance:  # NaN fails too
        raise LockstepError(
            f"{classifier.path}: differs from its golden sample by {max_abs_error:.2g}, more than {tolerance:g}; "
            f"do not use it here, or {REPLACE_FILES}"
        )
    if expected_labels != [classes[index] for index in outputs.logits.argmax(axis=1)]:
        raise LockstepError(f"{classifier.path}: predicts other classes than its golden sample; {REPLACE_FILES}")
    return GoldenReplay(len(cases), max_abs_error, tolerance)
