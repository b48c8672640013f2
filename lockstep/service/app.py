"""The ASGI application of the service: POST /predict, /model, health, metrics, the protocol V2, and a page at /."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.types import Receive, Scope, Send

from lockstep.service.asgi import CLOSE, Request, RequestError, Response, json_response
from lockstep.service.hosts import HostCheck
from lockstep.service.metrics import Metrics
from lockstep.service.open_inference import MODEL_PATH, SERVER, OpenInference
from lockstep.service.openapi import DOCS_PAGE, describe_api
from lockstep.service.request_body import ImageFile, parse_images
from lockstep.service.runner import ModelRunner
from lockstep.service.settings import Settings

PAGE = (Path(__file__).parent / "page.html").read_bytes()
HTML = b"text/html; charset=utf-8"
PAGE_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        b"img-src 'self' data: blob:; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Route(NamedTuple):
    path: str  # as the metrics name it
    endpoint: Callable[[Request], Awaitable[Response]]
    methods: tuple[str, ...] = ("GET", "HEAD")


class Service:
    """The application. Each request passes one dictionary of routes, and no other layer."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics, self.host_check = settings, Metrics(), HostCheck(settings)
        self.runner = ModelRunner(settings, self.metrics)
        self.reloader = self.runner.reloader
        self.watcher: asyncio.Task[None] | None = None
        open_inference = OpenInference(self.runner)
        routes = (
            Route("/predict", self.predict, ("POST",)),
            Route("/model", self.get_model),
            Route("/healthz", self.get_health),
            Route("/readyz", self.get_readiness),
            Route("/metrics", self.get_metrics),
            Route("/", self.get_page),
            Route("/docs", self.get_docs),
            Route("/openapi.json", self.get_openapi),
            Route("/v2", self.get_server),
            Route("/v2/health/live", self.get_live),
            Route("/v2/health/ready", self.get_ready),
        )
        self.routes = {route.path: route for route in routes}
        self.model_routes = {
            None: Route("/v2/models/{name}", open_inference.get_model),
            "/ready": Route("/v2/models/{name}/ready", open_inference.get_model_readiness),
            "/infer": Route("/v2/models/{name}/infer", open_inference.infer, ("POST",)),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.run_lifespan(receive, send)
            return
        started, status = time.perf_counter(), 500
        route = self.find_route(scope["path"])
        try:
            response = await self.answer(route, Request(scope, receive))
            status = response.status
            await response.send(send)
        finally:
            self.metrics.count_request(route.path if route else "other", status, time.perf_counter() - started)

    def find_route(self, path: str) -> Route | None:
        route = self.routes.get(path)
        if not route and (match := MODEL_PATH.fullmatch(path)):
            return self.model_routes[match["action"]]
        return route

    async def answer(self, route: Route | None, request: Request) -> Response:
        try:
            self.host_check.check(request)
            if not route:
                raise RequestError(404, "Not Found")
            if request.scope["method"] not in route.methods:
                raise RequestError(405, "Method Not Allowed", ((b"allow", ", ".join(route.methods).encode()),))
            return await route.endpoint(request)
        except RequestError as error:
            return error.to_response()
        except asyncio.CancelledError:  # the service has been stopped, and does not wait for this request any longer
            return RequestError(503, "the service stops", CLOSE).to_response()

    async def run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        self.watcher = asyncio.create_task(self.reloader.watch())
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        self.watcher.cancel()
        self.runner.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def predict(self, request: Request) -> Response:
        """Classify the images of the request.

        With ?include_input=true, return the network's input too; with ?reject=true, the label null for an image that
        looks like none of the classes.
        """
        runner, classifier, settings = self.runner, self.reloader.classifier, self.settings
        include_input, reject = request.read_flags("include_input", "reject")
        if reject and not classifier.reject_rule:
            raise RequestError(422, "query parameter reject: the model cannot reject images")
        with runner.bytes.reservation() as reserve_bytes, runner.images.reservation() as reserve_images:
            body = await request.read_body(settings.max_bytes, settings.request_timeout, reserve_bytes)
            images = await parse_images(request, body, classifier.metadata, settings)
            reserve_images(len(images))
            pixels, outputs = await runner.predict(classifier, images)
        names = [image.name if isinstance(image, ImageFile) else None for image in images]
        classified = classifier.to_predictions(pixels, outputs.probabilities, reject=reject)
        predictions: list[dict[str, Any]] = [
            {"name": name, **vars(prediction)} for name, prediction in zip(names, classified, strict=True)
        ]
        if include_input:
            for prediction, image_pixels in zip(predictions, pixels, strict=True):
                prediction["input"] = base64.b64encode(image_pixels.tobytes()).decode()
        return json_response({"model": classifier.sha256, "predictions": predictions})

    async def get_model(self, _: Request) -> Response:
        return json_response(await asyncio.to_thread(self.reloader.describe))

    async def get_health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def get_readiness(self, _: Request) -> Response:
        self.check_ready()
        return json_response({"status": "ready"})

    def check_ready(self) -> None:
        if self.watcher is None or self.watcher.done():
            raise RequestError(503, "not ready")

    async def get_metrics(self, _: Request) -> Response:
        return Response(self.metrics.to_text(), content_type=CONTENT_TYPE_PLAIN_0_0_4.encode())

    async def get_page(self, _: Request) -> Response:
        return Response(PAGE, content_type=HTML, headers=PAGE_HEADERS)

    async def get_docs(self, _: Request) -> Response:
        return Response(DOCS_PAGE.encode(), content_type=HTML)

    async def get_openapi(self, _: Request) -> Response:
        return json_response(describe_api(self.reloader.classifier, self.settings))

    async def get_server(self, _: Request) -> Response:
        return json_response(SERVER)

    async def get_live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def get_ready(self, _: Request) -> Response:
        self.check_ready()
        return json_response({"live": True, "ready": True})
