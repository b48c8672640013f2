"""The golden sample of a model: inputs with the outputs expected of them, replayed before the model is used."""

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lockstep.errors import LockstepError

if TYPE_CHECKING:
    from lockstep.classifier import Classifier


class Replay(NamedTuple):
    images: int
    difference: float  # the largest, of logits and probabilities
    tolerance: float


def replay(data: bytes, classifier: "Classifier") -> Replay:
    """Of golden.json's bytes; a problem if more than the sample allows is different, or a label is another."""
    name = f"the golden sample of {classifier.name}"
    try:
        content = json.loads(data)
        cases, tolerance = content["cases"], float(content["tolerance"])
        shape = tuple(content["image_shape"])
        images = np.array([case["image"] for case in cases], np.uint8).reshape(len(cases), *shape)
        wanted = [np.array([case[key] for case in cases], np.float32) for key in ("logits", "probabilities")]
        predicted = [case["predicted"] for case in cases]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise LockstepError(f"{name}: is not a golden sample ({error}); run `dvc repro -f export_onnx`") from None
    facts = classifier.facts
    if not cases or shape != facts.shape or any(one.shape != (len(cases), len(facts.classes)) for one in wanted):
        raise LockstepError(
            f"{name}: is of another model: images of {shape}, where it takes {facts.shape}; run `dvc repro`"
        )
    try:
        found = classifier.run(images)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise LockstepError(f"{classifier.name}: cannot be run: {' '.join(str(error).split())[:200]}") from None
    worst = float(np.max([np.abs(mine - theirs).max() for mine, theirs in zip(found, wanted, strict=True)]))
    if not worst <= tolerance:
        raise LockstepError(
            f"{classifier.name}: differs from its golden sample by {worst:.2g}, more than {tolerance:g}; do not use it "
            "here, or run `dvc repro` to make another"
        )
    if predicted != [facts.classes[index] for index in found.logits.argmax(axis=1)]:
        raise LockstepError(f"{classifier.name}: gives other classes than its golden sample says; run `dvc repro`")
    return Replay(len(cases), worst, tolerance)
