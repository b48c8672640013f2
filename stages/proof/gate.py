"""The gate of a model's quality: the floor of each metric, and the line that says which one was missed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Floor:
    """What a metric must reach."""

    metric: str  # as the report names it
    value: float
    source: str  # the param that says so, with its value

    def failure(self, metrics: Mapping[str, float]) -> str:
        """Why the metric does not reach the floor; empty if it does."""
        actual = metrics[self.metric]
        name = self.metric.replace("_f1", " F1")
        return f"{name} {actual:.4f} is below {self.source}" if actual < self.value else ""


def absolute_floor(metric: str, value: float, param: str) -> Floor:
    return Floor(metric, value, f"evaluate.{param} {value}")


def lift_floor(metric: str, majority: float, min_lift: float) -> Floor:
    """A floor between the metric of always answering the most frequent class (lift 0) and 1 (lift 1)."""
    value = round(majority + min_lift * (1 - majority), 6)
    return Floor(metric, value, f"{value:.4f}, which evaluate.min_lift {min_lift} asks for")


def describe_failure(failures: list[str], confused: list[tuple[int, int, int]], names: list[str], report: Path) -> str:
    """One line: what was missed, and where to look."""
    pairs = ", ".join(f"{names[one]} and {names[other]} ({times})" for one, other, times in confused)
    return f"{', '.join(failures)}; most confused: {pairs}; the report is in {report}"
