"""The ASGI application of the service: POST /predict, /model, health, metrics, and a page at /."""

import asyncio
import base64
import math
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lockstep.classifier import Classifier
from lockstep.errors import ImageError
from lockstep.preparation import Pixels
from lockstep.service.metrics import Metrics, RequestMetrics
from lockstep.service.openapi import DOCS_PAGE, describe_api
from lockstep.service.reloader import ModelReloader
from lockstep.service.request_body import Capacity, RequestError, RequestImage, parse_images, read_body
from lockstep.service.settings import Settings

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
MAX_BLOCKING_SECONDS = 0.002  # shorter computations are not worth a thread: the switch costs 0.7 ms


def create_app(settings: Settings) -> Starlette:
    service = Service(settings)
    endpoints = {
        "/model": service.get_model,
        "/healthz": service.get_health,
        "/readyz": service.get_readiness,
        "/metrics": service.get_metrics,
        "/": service.get_page,
        "/docs": service.get_docs,
        "/openapi.json": service.get_openapi,
    }
    return Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            *(Route(path, endpoint) for path, endpoint in endpoints.items()),
        ],
        middleware=[Middleware(RequestMetrics, metrics=service.metrics)],
        exception_handlers={HTTPException: answer_error},
        lifespan=service.lifespan,
    )


async def answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def read_flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false"):
        raise RequestError(422, f"query parameter {name} is {value!r:.40}, not true or false")
    return value == "true"


class Service:
    """The endpoints of one application and the state that they share."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.reloader = ModelReloader(settings, self.metrics)
        self.body_bytes = Capacity(16 * settings.max_bytes)
        self.images = Capacity(settings.max_concurrent_images)
        self.metrics.images_in_progress.set_function(lambda: self.images.used)
        self.executor = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), "lockstep")
        self.measured: Classifier | None = None  # the classifier that seconds_per_image was measured of
        self.seconds_per_image = math.inf
        self.watcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.watcher = asyncio.create_task(self.reloader.watch())
        yield
        self.watcher.cancel()
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def predict(self, request: Request) -> Response:
        """Classify the images of the request.

        With ?include_input=true, return the network's input too; with ?reject=true, the label null for an image that
        looks like none of the classes.
        """
        classifier, settings = self.reloader.classifier, self.settings
        include_input, reject = read_flag(request, "include_input"), read_flag(request, "reject")
        if reject and not classifier.reject_rule:
            raise RequestError(422, "query parameter reject: the model cannot reject images")
        with self.body_bytes.reservation() as reserve_bytes, self.images.reservation() as reserve_images:
            body = await read_body(request, settings, reserve_bytes)
            images = await parse_images(request, body, classifier.metadata, settings)
            reserve_images(len(images))
            try:
                async with asyncio.timeout(settings.answer_timeout):
                    pixels = await self.prepare(classifier, images)
                    probabilities = await self.compute(classifier, pixels)
            except TimeoutError:
                raise RequestError(503, "too busy; try again in a second") from None
        predictions = []
        classified = classifier.to_predictions(pixels, probabilities, reject=reject)
        for image, image_pixels, one in zip(images, pixels, classified, strict=True):
            prediction: dict[str, Any] = {"name": image.name, **vars(one)}
            if include_input:
                prediction["input"] = base64.b64encode(image_pixels.tobytes()).decode()
            predictions.append(prediction)
        return JSONResponse({"model": classifier.sha256, "predictions": predictions})

    async def prepare(self, classifier: Classifier, images: list[RequestImage]) -> Pixels:
        """Decode image files, one at a time, in a thread."""
        loop, prepared = asyncio.get_running_loop(), []
        for index, image in enumerate(images):
            if isinstance(image.content, np.ndarray):
                prepared.append(image.content)
                continue
            try:
                prepared.append(await loop.run_in_executor(self.executor, classifier.prepare, image.content))
            except ImageError as error:
                name = f" ({image.name})" if image.name else ""
                raise RequestError(422, f"image {index}{name}: {error}") from None
        return np.stack(prepared)

    async def compute(self, classifier: Classifier, pixels: Pixels) -> NDArray[np.float32]:
        """Probabilities of the classes; in a thread if it would block the event loop for long."""
        is_measured = self.measured is classifier
        if is_measured and len(pixels) * self.seconds_per_image <= MAX_BLOCKING_SECONDS:
            return self.run(classifier, pixels)
        return await asyncio.get_running_loop().run_in_executor(self.executor, self.run, classifier, pixels)

    def run(self, classifier: Classifier, pixels: Pixels) -> NDArray[np.float32]:
        started = time.perf_counter()
        probabilities = classifier.run(pixels).probabilities
        self.seconds_per_image = (time.perf_counter() - started) / len(pixels)
        self.measured = classifier
        return probabilities

    async def get_model(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.reloader.describe))

    async def get_health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def get_readiness(self, _: Request) -> Response:
        if self.watcher is None or self.watcher.done():
            return JSONResponse({"error": "not ready"}, 503)
        return JSONResponse({"status": "ready"})

    async def get_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def get_page(self, _: Request) -> Response:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def get_docs(self, _: Request) -> Response:
        return HTMLResponse(DOCS_PAGE)

    async def get_openapi(self, _: Request) -> Response:
        return JSONResponse(describe_api(self.reloader.classifier, self.settings))
