"""The model that answers: replaced when new files are proven, and kept while they are not."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from lockstep.classifier import Classifier
from lockstep.errors import FileMissingError, HashMismatchError, LockstepError
from lockstep.proof import read_file
from lockstep.service.metrics import Metrics
from lockstep.service.settings import Settings

log = logging.getLogger("lockstep")


class ModelReloader:
    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.files, self.metrics = settings, settings.files, metrics
        self.signature = self.files.signature()
        self.refusal: str | None = None  # why the newest files were not taken up
        self.is_waiting = False
        self.classifier = self.load()
        self.metrics.model.info({"sha256": self.classifier.sha256})
        if self.files.report:
            read_report(self.files.report)

    def load(self) -> Classifier:
        """Each file is read once. If files are replaced at that time, they either agree or are refused."""
        return Classifier(
            self.files.model,
            threads=self.settings.threads,
            max_pixels=self.settings.max_pixels,
            proven=self.files.proof or False,
        )

    async def watch(self) -> None:
        """Check the files forever; reload them once they have been the same for two checks."""
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            signature = self.files.signature()
            if signature == self.signature:
                continue
            await asyncio.sleep(self.settings.reload_seconds)
            if signature == self.files.signature():
                self.signature = signature
                await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Missing files and files of different models mean that a run is writing, or has failed: wait."""
        try:
            classifier = self.load()
        except Exception as error:
            reason = str(error) if isinstance(error, LockstepError) else repr(error)
            is_waiting = isinstance(error, FileMissingError | HashMismatchError)
            if not (is_waiting and self.is_waiting):
                result = "waiting for a complete model" if is_waiting else "refused"
                log.warning("%s: %s; %s still answers", result, reason, self.classifier.sha256[:12])
            if not is_waiting:
                self.metrics.reloads.labels("refused").inc()
            self.set_state(reason, is_waiting)
            return
        is_new = classifier.sha256 != self.classifier.sha256
        if is_new:
            self.metrics.reloads.labels("taken_up").inc()
            self.metrics.model.info({"sha256": classifier.sha256})
        if is_new or self.refusal:
            log.warning("taken up: %s, sha256 %s", self.files.model, classifier.sha256[:12])
        self.classifier = classifier
        self.set_state(None, False)

    def set_state(self, refusal: str | None, is_waiting: bool) -> None:
        self.refusal, self.is_waiting = refusal, is_waiting
        self.metrics.model_waiting.set(is_waiting)

    def describe(self) -> dict[str, Any]:
        """The answer of /model."""
        classifier, metadata = self.classifier, self.classifier.metadata
        return {
            "sha256": classifier.sha256,
            "classes": list(metadata.classes),
            "input": {"channels": metadata.channels, "height": metadata.height, "width": metadata.width},
            "preparation": metadata.preparation,
            "dataset": metadata.dataset,
            "metadata": metadata.properties,
            "golden_difference": classifier.replay.difference if classifier.replay else None,
            "certificate": classifier.certificate.content if classifier.certificate else None,
            "refused": self.refusal,
            "metrics": self.report_of(classifier),
        }

    def report_of(self, classifier: Classifier) -> dict[str, Any] | None:
        """None if a later run has overwritten the report: it is then not the one that the certificate is based on."""
        try:
            report = read_report(self.files.report) if self.files.report else None
        except LockstepError:
            return None
        certified = vars(classifier.certificate.quality) if classifier.certificate else {}
        return report if report and all(report.get(key) == value for key, value in certified.items()) else None


def read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(read_file(path, "the stage evaluate writes it"))
    except ValueError as error:
        raise LockstepError(f"{path}: not a report: {error}") from None
    if not isinstance(report, dict):
        raise LockstepError(f"{path}: not a report: not a JSON object")
    return report
