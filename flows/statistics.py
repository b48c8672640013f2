"""Statistics of predictions: Wilson's interval of an accuracy, and McNemar's exact test of two models.

By hand, since importing scipy.stats would add a second to each run of the flow; tests hold them against scipy's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

Z_95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution
NO_DIFFERENCE = "not significantly different"


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson, 1927)."""
    accuracy, shrink = correct / count, 1 + Z_95**2 / count
    middle = (accuracy + Z_95**2 / (2 * count)) / shrink
    half = Z_95 / shrink * math.sqrt(accuracy * (1 - accuracy) / count + Z_95**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test (McNemar, 1947) of two models on the same images.

    If both were equally good, each image that only one of them has right would be won or lost with probability 1/2.
    """

    won: int  # images that only the new model has right
    lost: int  # images that only the old one has right

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> "McNemar":
        """PAIRS say of each image whether the old and whether the new model has it right."""
        counts = [0, 0]
        for old, new in pairs:
            if old != new:
                counts[old] += 1
        return cls(*counts)

    @cached_property
    def p_worse(self) -> float:
        """The probability that at least so many are lost, if both are equally good."""
        return upper_tail(self.lost, self.won + self.lost)

    @cached_property
    def p_better(self) -> float:
        """The probability that at least so many are won, if both are equally good."""
        return upper_tail(self.won, self.won + self.lost)

    @property
    def p_value(self) -> float:
        """Of the test in both directions: the probability of a difference at least so large."""
        return min(1.0, 2 * min(self.p_worse, self.p_better))

    def verdict(self, level: float) -> str:
        """What the test in both directions says of the new model."""
        if self.p_value >= level:
            return NO_DIFFERENCE
        return "better" if self.won > self.lost else "worse"


def upper_tail(count: int, trials: int) -> float:
    """The probability of at least COUNT heads in TRIALS throws of a coin."""
    term = total = math.comb(trials, count)
    for heads in range(count, trials):
        term = term * (trials - heads) // (heads + 1)  # the next binomial coefficient
        total += term
    return total / (1 << trials)
