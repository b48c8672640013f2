"""The model that answers now: a new file is taken up after its golden sample was replayed, else the old one stays."""

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.classifier import Classifier
from serve.counts import Counts
from serve.golden import replay
from serve.problem import Problem

log = logging.getLogger("lockstep")
Stamp = list[tuple[int, int, int] | None]


@dataclass(frozen=True)
class Files:
    model: Path
    golden: Path | None  # none: models are taken up unproven
    report: Path | None  # what evaluate wrote, to be shown

    def stamp(self) -> Stamp:
        return [stamp(path) for path in (self.model, self.golden) if path]


class Current:
    def __init__(self, files: Files, threads: int, pixels: int, counts: Counts) -> None:
        self.files, self.threads, self.pixels, self.counts = files, threads, pixels, counts
        self.seen = files.stamp()
        self.refused: str | None = None
        self.classifier, self.difference = self.load()
        if files.report:
            metrics(files.report)

    def load(self) -> tuple[Classifier, float | None]:
        classifier = Classifier(self.files.model, threads=self.threads, pixels=self.pixels)
        return classifier, replay(self.files.golden, classifier) if self.files.golden else None

    async def watch(self, seconds: float) -> None:
        """For ever: look at the files, and take up what is new once it has stood still for one look."""
        while True:
            await asyncio.sleep(seconds)
            before = self.files.stamp()
            if before == self.seen:
                continue
            await asyncio.sleep(seconds)
            if before == self.files.stamp():
                self.seen = before
                await asyncio.to_thread(self.take_up)

    def take_up(self) -> None:
        try:
            classifier, difference = self.load()
        except Exception as error:
            said = str(error) if isinstance(error, Problem) else repr(error)
            log.warning("refused: %s; %s goes on to answer", said, self.classifier.sha256[:12])
            self.refused = said
            self.counts.reloads["refused"] += 1
            return
        self.refused = None
        if classifier.sha256 != self.classifier.sha256:
            log.warning("taken up: %s, sha256 %s", self.files.model, classifier.sha256[:12])
            self.counts.reloads["taken_up"] += 1
        self.classifier, self.difference = classifier, difference

    def about(self) -> dict[str, Any]:
        classifier, facts = self.classifier, self.classifier.facts
        return {
            "sha256": classifier.sha256,
            "classes": list(facts.classes),
            "input": {"channels": facts.channels, "height": facts.height, "width": facts.width},
            "preparation": facts.preparation,
            "dataset": facts.dataset,
            "metadata": facts.metadata,
            "golden_difference": self.difference,
            "refused": self.refused,
            "metrics": self.metrics(),
        }

    def metrics(self) -> dict[str, Any] | None:
        try:
            return metrics(self.files.report) if self.files.report else None
        except Problem:
            return None


def metrics(report: Path) -> dict[str, Any]:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"{report}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Problem(f"{report}: not a report: {error}") from None
    if not isinstance(content, dict):
        raise Problem(f"{report}: not a report: no JSON object")
    return content


def stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
