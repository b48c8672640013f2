"""The golden sample beside a model: inputs with the outputs expected of them, replayed before the model is used."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve.problem import Problem

if TYPE_CHECKING:
    from serve.classifier import Classifier


def replay(path: Path, classifier: "Classifier") -> float:
    """The largest difference; a problem if it is more than the sample allows, or a label is another."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cases, tolerance = content["cases"], float(content["tolerance"])
        shape = tuple(content["image_shape"])
        images = np.array([case["image"] for case in cases], np.uint8).reshape(len(cases), *shape)
        wanted = [np.array([case[key] for case in cases], np.float32) for key in ("logits", "probabilities")]
        predicted = [case["predicted"] for case in cases]
    except FileNotFoundError:
        raise Problem(f"{path}: missing; export_onnx writes it beside the model") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Problem(f"{path}: not a golden sample ({error})") from None
    facts = classifier.facts
    if not cases or shape != facts.shape or any(one.shape != (len(cases), len(facts.classes)) for one in wanted):
        raise Problem(f"{path}: is of another model: images of {shape}, where {classifier.name} takes {facts.shape}")
    try:
        found = classifier.run(images)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise Problem(f"{classifier.name}: cannot be run: {' '.join(str(error).split())[:200]}") from None
    worst = float(np.max([np.abs(mine - theirs).max() for mine, theirs in zip(found, wanted, strict=True)]))
    if not worst <= tolerance:
        raise Problem(f"{classifier.name}: differs from its golden sample by {worst:.2g}, more than {tolerance:g}")
    if predicted != [facts.classes[index] for index in found.logits.argmax(axis=1)]:
        raise Problem(f"{classifier.name}: gives other classes than its golden sample says")
    return worst
