"""Which of two models is better: their predictions of the same test images, by McNemar's exact test."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.dvc.dag import read_dag
from flows.dvc.params_file import read_params
from flows.errors import FlowError
from flows.predictions import WORKSPACE, Prediction, Predictions, has_predictions, read_predictions
from flows.statistics import NO_DIFFERENCE, McNemar


class Promote(BaseModel):
    """The section `promote` of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    level: float = Field(gt=0, lt=1)


def read_level(root: Path) -> float:
    """promote.level: a difference is significant if its p-value is below it."""
    try:
        return Promote.model_validate(read_params(root / "params.yaml").get("promote")).level
    except ValidationError as error:
        first = error.errors()[0]
        raise FlowError(
            f"params.yaml: {'.'.join(['promote', *map(str, first['loc'])])}: {first['msg'].lower()}"
        ) from error


@dataclass(frozen=True)
class ImageChange:
    """A test image that one of the two models has right, and the other wrong."""

    index: int  # in the test split
    old: Prediction
    new: Prediction

    @property
    def is_won(self) -> bool:
        return self.new.is_correct

    @property
    def wrong(self) -> Prediction:
        return self.old if self.is_won else self.new


@dataclass(frozen=True)
class ClassChange:
    name: str
    images: int
    old_correct: int
    new_correct: int
    test: McNemar

    @property
    def gain(self) -> int:
        return self.test.won - self.test.lost


@dataclass(frozen=True)
class Comparison:
    old: Predictions
    new: Predictions
    level: float

    @cached_property
    def test(self) -> McNemar:
        return McNemar.of((old.is_correct, new.is_correct) for old, new in self.pairs)

    @property
    def pairs(self) -> Iterator[tuple[Prediction, Prediction]]:
        return zip(self.old.rows, self.new.rows, strict=True)

    @property
    def verdict(self) -> str:
        return self.test.verdict(self.level)

    @property
    def sentence(self) -> str:
        """What the test says of the new model."""
        preposition = "from" if self.verdict == NO_DIFFERENCE else "than"
        return f"{self.verdict} {preposition} {self.old.title}: {self.reason}"

    @property
    def reason(self) -> str:
        """The counts and the p-value behind the verdict."""
        is_significant = self.test.p_value < self.level
        return (
            f"{self.test.won} test images won and {self.test.lost} lost, p = {self.test.p_value:.3g}, "
            f"{'below' if is_significant else 'not below'} promote.level {self.level:g}"
        )

    @property
    def note(self) -> str:
        """What a reader must know of the test images; mostly nothing."""
        old, new = self.old.test_sha256, self.new.test_sha256
        if old and new and old != new:
            return (
                f"the same test images by name and label, prepared differently or replaced (test_sha256 {old}, {new})"
            )
        return ""

    def changed_images(self) -> list[ImageChange]:
        """Those lost first; among them, and among those won, the most confident mistake first."""
        changes = [
            ImageChange(index, old, new)
            for index, (old, new) in enumerate(self.pairs)
            if old.is_correct != new.is_correct
        ]
        return sorted(changes, key=lambda change: (change.is_won, -(change.wrong.confidence or 0), change.index))

    def shown_images(self, limit: int) -> list[ImageChange]:
        """The first LIMIT of them: half lost and half won, unless there are too few of one."""
        changes = self.changed_images()
        lost, won = ([change for change in changes if change.is_won is is_won] for is_won in (False, True))
        shown_lost = lost[: max(limit // 2, limit - len(won))]
        return [*shown_lost, *won[: limit - len(shown_lost)]]

    def changed_classes(self) -> list[ClassChange]:
        """The classes that images were won or lost of; that with the largest gain or loss first."""
        pairs_by_class: dict[str, list[tuple[bool, bool]]] = {}
        for old, new in self.pairs:
            pairs_by_class.setdefault(old.label, []).append((old.is_correct, new.is_correct))
        changes = [
            ClassChange(name, len(pairs), sum(old for old, _ in pairs), sum(new for _, new in pairs), McNemar.of(pairs))
            for name, pairs in pairs_by_class.items()
        ]
        changed = [change for change in changes if change.test.won or change.test.lost]
        return sorted(changed, key=lambda change: -abs(change.gain))


def compare_revisions(root: Path, old: str, new: str) -> Comparison:
    """Compare two revisions, experiments or the WORKSPACE; an error if they were tested on other images."""
    predictions = read_predictions(root, old), read_predictions(root, new)
    if obstacle := find_obstacle(*predictions):
        raise FlowError(f"{old} and {new} cannot be compared: {obstacle}")
    return Comparison(*predictions, read_level(root))


def find_obstacle(old: Predictions, new: Predictions) -> str:
    """Why the two cannot be compared image by image; empty if they can."""
    if old.dataset and new.dataset and old.dataset != new.dataset:
        return f"tested on other images, of {old.dataset} and of {new.dataset}"
    if len(old.rows) != len(new.rows):
        return f"tested on other images, {len(old.rows):,} and {len(new.rows):,}"
    has_names = old.has_names and new.has_names
    for index, (before, after) in enumerate(zip(old.rows, new.rows, strict=True)):
        names = (before.image, after.image) if has_names else (str(index), str(index))
        if (names[0], before.label) != (names[1], after.label):
            return (
                f"tested on other images; the first that differs is {names[0]}, {before.label!r}, "
                f"and {names[1]}, {after.label!r}"
            )
    if not has_names and old.test_sha256 and new.test_sha256 and old.test_sha256 != new.test_sha256:
        return f"tested on other images (test_sha256 {old.test_sha256} and {new.test_sha256})"
    return ""


def compare_with_head(root: Path) -> str:
    """A sentence on the model in the folder beside the last commit's.

    Empty if one of them has no predictions, or if they are the same.
    """
    if not has_predictions(read_dag(root)):
        return ""
    try:
        old, new = read_predictions(root, "HEAD"), read_predictions(root, WORKSPACE)
    except FlowError:
        return ""
    if old.rows == new.rows:
        return ""
    if obstacle := find_obstacle(old, new):
        return f"not compared with {old.title}: {obstacle}"
    try:
        return Comparison(old, new, read_level(root)).sentence
    except FlowError as error:
        return f"not compared with {old.title}: {error}"
