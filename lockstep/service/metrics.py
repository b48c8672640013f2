"""What the service counts, for Prometheus."""

import time

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PATHS = ("/", "/predict", "/model", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")


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
            "lockstep_images_in_progress", "Images of requests that are being answered.", registry=registry
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
            registry=registry,
        )
        self.model = Info("lockstep_model", "The model that answers.", registry=registry)


class RequestMetrics:
    """ASGI middleware that counts each request; unknown paths are counted together as `other`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_record_status)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, status).inc()
            self.metrics.request_duration_seconds.labels(path).observe(time.perf_counter() - started)
