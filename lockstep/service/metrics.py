"""What the service counts, for Prometheus: in this process, or in files that all workers of a service share."""

import os
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "lockstep_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.request_duration_seconds = Histogram(
            "lockstep_request_duration_seconds",
            "Time from a request's headers to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.images_in_progress = Gauge(
            "lockstep_images_in_progress",
            "Images of requests that are being answered.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.reloads = Counter(
            "lockstep_model_reloads",
            "New model files, by whether they were loaded or refused.",
            ["result"],
            registry=registry,
        )
        for result in ("loaded", "refused"):
            self.reloads.labels(result)
        self.model_files_incomplete = Gauge(
            "lockstep_model_files_incomplete",
            "1 while files are missing or of different models, as during a run; for long: a run has failed.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.model = Gauge(
            "lockstep_model_info",
            "1 for the model that answers, 0 for those before it.",
            ["sha256"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.counted: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # the children, looked up once

    def count_request(self, path: str, status: int, seconds: float) -> None:
        key = path, status
        if key not in self.counted:
            self.counted[key] = self.requests.labels(path, status), self.request_duration_seconds.labels(path)
        requests, duration = self.counted[key]
        requests.inc()
        duration.observe(seconds)

    def to_text(self) -> bytes:
        """Of all workers together, if there are several."""
        registry = self.registry
        if FOLDER_VARIABLE in os.environ:
            Path(os.environ[FOLDER_VARIABLE]).mkdir(exist_ok=True)  # something may have cleaned the temporary files
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
