"""Says which images are of none of the classes: the rule that the model's metadata have, and what it looks at."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import LockstepError

BELOW, ROUGHNESS = "reject_below", "reject_roughness"  # keys of the metadata


@dataclass(frozen=True)
class RejectRule:
    """An image is rejected if its highest probability is below the least, or its roughness outside the range.

    Probabilities alone do not do: networks are sure of noise and of blank images (Nguyen et al. 2015, "Deep Neural
    Networks are Easily Fooled"), and these have another roughness than any image of the data set.
    """

    min_probability: float
    min_roughness: float
    max_roughness: float

    def rejects(self, pixels: NDArray[np.uint8], probabilities: NDArray[Any]) -> NDArray[np.bool_]:
        """For each of the network's inputs, uint8[n, channels, height, width], with its outputs."""
        roughness = measure_roughness(pixels)
        unlike = (roughness < self.min_roughness) | (roughness > self.max_roughness)
        rejected: NDArray[np.bool_] = unlike | (probabilities.max(axis=1) < self.min_probability)
        return rejected

    def to_metadata(self) -> dict[str, str]:
        return {
            BELOW: json.dumps(self.min_probability),
            ROUGHNESS: json.dumps([self.min_roughness, self.max_roughness]),
        }


def measure_roughness(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean absolute difference of neighbouring pixels, 0..1: 0 for a blank image, about 1/3 for uniform noise."""
    total, pairs = np.zeros(len(pixels), np.int64), 0  # integers: the same on every machine
    for axis in (2, 3):
        upper, lower = pixels.take(range(1, pixels.shape[axis]), axis), pixels.take(range(pixels.shape[axis] - 1), axis)
        total += (np.maximum(upper, lower) - np.minimum(upper, lower)).sum(axis=(1, 2, 3), dtype=np.int64)
        pairs += math.prod(upper.shape[1:])
    return total / (255 * pairs)


def read_reject_rule(properties: Mapping[str, str], name: str) -> RejectRule | None:
    """The rule in the metadata of a model; None if it has none."""
    if BELOW not in properties:
        return None
    try:
        low, high = map(float, json.loads(properties.get(ROUGHNESS, "[0, 1]")))
        rule = RejectRule(float(properties[BELOW]), low, high)
        if not all(map(math.isfinite, (rule.min_probability, low, high))):
            raise ValueError("a number that is not finite")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LockstepError(f"{name}: its metadata {BELOW} or {ROUGHNESS} are not valid: {error!s:.200}") from None
    return rule
