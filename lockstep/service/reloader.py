"""Holds the model that answers: replaces it when its files change and are verified, keeps it while they are not."""

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
WEIGHTS_DIGITS = 12  # of the SHA-256 of the weights, in the report of the stage evaluate


class ModelReloader:
    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.files, self.metrics = settings, settings.files, metrics
        self.file_stats = self.files.stat_files()
        self.reload_error: str | None = None  # why the newest files were not loaded
        self.is_waiting = False
        self.classifier = self.load()
        self.metrics.model.labels(self.classifier.sha256).set(1)
        if self.files.report:
            read_report(self.files.report)

    def load(self) -> Classifier:
        """Each file is read once. If files are replaced at that time, they either agree or are refused."""
        return Classifier(
            self.files.model,
            threads=self.settings.threads,
            max_pixels=self.settings.max_pixels,
            verify=self.files.proof_files or False,
        )

    async def watch(self) -> None:
        """Check the files forever; reload them once they have been the same for two checks."""
        while True:
            await asyncio.sleep(self.settings.reload_interval)
            file_stats = self.files.stat_files()
            if file_stats == self.file_stats:
                continue
            await asyncio.sleep(self.settings.reload_interval)
            if file_stats == self.files.stat_files():
                self.file_stats = file_stats
                await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Load the files. If some are missing or of different models, a run is writing them, or has failed: wait."""
        try:
            classifier = self.load()
        except Exception as error:
            reason = str(error) if isinstance(error, LockstepError) else repr(error)
            is_waiting = isinstance(error, FileMissingError | HashMismatchError)
            if not (is_waiting and self.is_waiting):
                result = "waiting for a complete model" if is_waiting else "refused"
                log.warning("%s: %s; %s is still served", result, reason, self.classifier.sha256[:12])
            if not is_waiting:
                self.metrics.reloads.labels("refused").inc()
            self.set_state(reason, is_waiting)
            return
        is_new = classifier.sha256 != self.classifier.sha256
        if is_new:
            self.metrics.reloads.labels("loaded").inc()
            self.metrics.model.labels(self.classifier.sha256).set(0)
            self.metrics.model.labels(classifier.sha256).set(1)
        if is_new or self.reload_error:
            log.info("loaded %s, sha256 %s", self.files.model, classifier.sha256[:12])
        self.classifier = classifier
        self.set_state(None, False)

    def set_state(self, reload_error: str | None, is_waiting: bool) -> None:
        self.reload_error, self.is_waiting = reload_error, is_waiting
        self.metrics.model_files_incomplete.set(is_waiting)

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
            "golden_max_abs_error": classifier.replay.max_abs_error if classifier.replay else None,
            "certificate": classifier.certificate.content if classifier.certificate else None,
            "reload_error": self.reload_error,
            "metrics": self.report_of(classifier),
        }

    def report_of(self, classifier: Classifier) -> dict[str, Any] | None:
        """None if the report is of other weights, or not the one that the certificate is based on."""
        try:
            report = read_report(self.files.report) if self.files.report else None
        except LockstepError:
            return None
        quality = vars(classifier.certificate.quality) if classifier.certificate else {}
        certified = {key: value for key, value in quality.items() if value is not None}  # None: an older certificate
        weights = classifier.metadata.properties.get("weights_sha256", "")[:WEIGHTS_DIGITS]
        expected = {"weights": weights, **certified}
        return report if report and all(report.get(key) == value for key, value in expected.items()) else None


def read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(read_file(path, "the stage evaluate writes it"))
    except ValueError as error:
        raise LockstepError(f"{path}: not a report: {error}") from None
    if not isinstance(report, dict):
        raise LockstepError(f"{path}: not a report: not a JSON object")
    return report
