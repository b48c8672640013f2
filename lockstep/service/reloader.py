"""The model that answers now: a new one is taken up with its certificate and golden sample, else the old one stays."""

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.classifier import Classifier
from lockstep.errors import FileMissingError, HashMismatchError, LockstepError
from lockstep.proof import Proof
from lockstep.service.metrics import Counts

log = logging.getLogger("lockstep")
Stamp = list[tuple[int, ...] | None]


@dataclass(frozen=True)
class ModelFiles:
    model: Path
    proof: Proof | None  # none: models are taken up unproven
    report: Path | None  # what evaluate wrote, to be shown

    def stamp(self) -> Stamp:
        proof = (self.proof.golden, self.proof.certificate) if self.proof else ()
        return [stamp(path) for path in (self.model, *proof)]


class ModelReloader:
    def __init__(self, files: ModelFiles, threads: int, pixels: int, counts: Counts) -> None:
        self.files, self.threads, self.pixels, self.counts = files, threads, pixels, counts
        self.seen = files.stamp()
        self.refused: str | None = None
        self.classifier = self.load()
        if files.report:
            metrics(files.report)

    def load(self) -> Classifier:
        """From files that may be replaced meanwhile: their bytes, each read once, agree or are refused."""
        return Classifier(self.files.model, threads=self.threads, pixels=self.pixels, proven=self.files.proof or False)

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
        """Missing files, or files of different models, mean that a run still writes, or failed: keep the old."""
        try:
            classifier = self.load()
        except Exception as error:
            said = str(error) if isinstance(error, LockstepError) else repr(error)
            waiting = isinstance(error, FileMissingError | HashMismatchError)
            if not (waiting and self.counts.waiting):
                log.warning("%s: %s; %s goes on to answer", "waits" if waiting else "refused", said, self.short)
            if not waiting:
                self.counts.reloads["refused"] += 1
            self.refused, self.counts.waiting = said, waiting
            return
        new = classifier.sha256 != self.classifier.sha256
        if new:
            self.counts.reloads["taken_up"] += 1
        if new or self.refused:
            log.warning("taken up: %s, sha256 %s", self.files.model, classifier.sha256[:12])
        self.classifier, self.refused, self.counts.waiting = classifier, None, False

    @property
    def short(self) -> str:
        return self.classifier.sha256[:12]

    def about(self) -> dict[str, Any]:
        classifier, facts = self.classifier, self.classifier.facts
        return {
            "sha256": classifier.sha256,
            "classes": list(facts.classes),
            "input": {"channels": facts.channels, "height": facts.height, "width": facts.width},
            "preparation": facts.preparation,
            "dataset": facts.dataset,
            "metadata": facts.metadata,
            "golden_difference": classifier.replay.difference if classifier.replay else None,
            "certificate": classifier.certificate.content if classifier.certificate else None,
            "refused": self.refused,
            "metrics": self.metrics(classifier),
        }

    def metrics(self, classifier: Classifier) -> dict[str, Any] | None:
        """Of the report, unless a later run has written it: then it is of another model than its certificate's."""
        try:
            found = metrics(self.files.report) if self.files.report else None
        except LockstepError:
            return None
        proven = vars(classifier.certificate.quality) if classifier.certificate else {}
        return found if found and all(found.get(key) == value for key, value in proven.items()) else None


def metrics(report: Path) -> dict[str, Any]:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except OSError as error:
        raise LockstepError(f"{report}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise LockstepError(f"{report}: not a report: {error}") from None
    if not isinstance(content, dict):
        raise LockstepError(f"{report}: not a report: no JSON object")
    return content


def stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
