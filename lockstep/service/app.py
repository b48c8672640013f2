"""The HTTP service: POST /predict, what is known of the model, what a scheduler and Prometheus ask, the page at /."""

import argparse
import asyncio
import base64
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as missing:  # library and command go without
    raise SystemExit(f"the service needs {missing.name}: pip install '.[service]'") from None

from lockstep.classifier import Classifier
from lockstep.errors import ImageError, LockstepError
from lockstep.predict import MODEL, positive
from lockstep.preparation import Pixels
from lockstep.proof import Proof
from lockstep.service import openapi
from lockstep.service import request_body as body
from lockstep.service.batching import Batcher, Busy
from lockstep.service.header_timeout import patient
from lockstep.service.metrics import Counts
from lockstep.service.reloader import ModelFiles, ModelReloader
from lockstep.service.request_body import Budget, Limits, RequestError, RequestImage

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
HEADERS = {
    "content-security-policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Settings:
    files: ModelFiles
    limits: Limits = field(default_factory=Limits)
    pixels: int = 40_000_000  # of a picture
    threads: int = 1  # of the network
    batch: int = 64  # images computed together
    wait: float = 0.002  # seconds that a batch waits for requests that are inside already
    queue: int = 256  # images inside
    answer: float = 30.0  # seconds until a request is given up
    look: float = 1.0  # seconds between looks at the model file


def build(settings: Settings) -> FastAPI:
    counts = Counts()
    current = ModelReloader(settings.files, settings.threads, settings.pixels, counts)
    batcher = Batcher(counts, settings.batch, settings.queue, settings.wait)
    budget = Budget(settings.limits.bodies)
    decoders = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), "pictures")
    tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks[:] = [asyncio.create_task(batcher.work()), asyncio.create_task(current.watch(settings.look))]
        yield
        for task in tasks:
            task.cancel()
        decoders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="Lockstep", version=current.classifier.sha256[:12], lifespan=lifespan, redoc_url=None)
    app.add_middleware(Counted, counts=counts)
    app.openapi = lambda: openapi.describe(app, current.classifier.facts, settings.limits)  # type: ignore[method-assign]

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        gone = {"connection": "close"} if error.status in (408, 413) else {}
        return JSONResponse({"error": str(error)}, error.status, gone)

    @app.exception_handler(ImageError)
    async def bad_picture(_: Request, error: ImageError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Busy) -> Response:
        return JSONResponse({"error": "too much to do; ask again in a second"}, 503, {"retry-after": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        wrong = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.post("/predict", **openapi.PREDICT)
    async def predict(request: Request, seen: bool = False) -> Response:
        """Label images: a picture's bytes, a form of pictures, or pixels as JSON."""
        classifier = current.classifier
        with budget.room() as share:
            content = await body.read(request, settings.limits, share)
            sent = await body.images(request, content, classifier.facts, settings.limits)
            with batcher.admitted(len(sent)):
                try:
                    async with asyncio.timeout(settings.answer):
                        with batcher.preparing():
                            pixels = await prepared(classifier, sent)
                            waiting = batcher.submit(classifier, pixels)
                        answer = await waiting
                except TimeoutError:
                    raise Busy from None
        rows = []
        for one, image, probabilities in zip(sent, pixels, answer.probabilities, strict=True):
            row: dict[str, Any] = {"name": one.name, **vars(classifier.named(probabilities))}
            if seen:
                row["seen"] = base64.b64encode(image.tobytes()).decode()
            rows.append(row)
        return JSONResponse({"model": classifier.sha256, "predictions": rows})

    async def prepared(classifier: Classifier, sent: list[RequestImage]) -> Pixels:
        loop = asyncio.get_running_loop()
        made = []
        for index, one in enumerate(sent):
            if isinstance(one.content, np.ndarray):
                made.append(one.content)
                continue
            try:
                made.append(await loop.run_in_executor(decoders, classifier.prepare, one.content))
            except ImageError as error:
                name = f" ({one.name})" if one.name else ""
                raise ImageError(f"picture {index}{name} {error}") from None
        return np.stack(made)

    @app.get("/model", **openapi.MODEL)
    async def model() -> Response:
        """What the model says of itself, its hash, and the metrics of its report."""
        return JSONResponse(await asyncio.to_thread(current.about))

    @app.get("/healthz", **openapi.HEALTH)
    async def health() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", **openapi.READY)
    async def ready() -> Response:
        """It can label images now."""
        if not tasks or any(task.done() for task in tasks):
            return JSONResponse({"error": "not ready"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", **openapi.METRICS)
    async def metrics() -> Response:
        """For Prometheus."""
        text = counts.text(batcher.inside, current.classifier.sha256)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers=HEADERS)

    return app


class Counted:
    """Each request's path, status and time; paths that are not ours are counted as one."""

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self.app, self.counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in openapi.PATHS else "other"
            self.counts.request(path, status, time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    beside = Proof.next_to(given.model)
    proof = Proof(given.golden or beside.golden, given.certificate or beside.certificate)
    limits = Limits(given.max_bytes, 16 * given.max_bytes, given.max_images, given.seconds)
    settings = Settings(
        ModelFiles(given.model, None if given.unproven else proof, given.report),
        limits,
        pixels=given.max_pixels,
        threads=given.threads,
        batch=given.batch,
        wait=given.wait_ms / 1000,
        queue=max(given.queue, given.max_images),
    )
    try:
        app = build(settings)
        listening = listen(given.host, given.port)
    except LockstepError as problem:
        print(problem, file=sys.stderr)
        return 2
    host, port = listening.getsockname()[:2]
    print(f"{given.model} at http://{f'[{host}]' if ':' in host else host}:{port}/ (ends with Ctrl-C)", flush=True)
    config = uvicorn.Config(
        app,
        http=patient(given.seconds),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=given.connections,
        timeout_graceful_shutdown=10,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lockstep.service.app",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    settings: dict[str, Any] = {each.name: each.default for each in (*fields(Settings), *fields(Limits))}
    add: Callable[..., Any] = parser.add_argument
    add("--model", type=Path, default=MODEL, help="the ONNX file; a new one in its place is taken up")
    add("--golden", type=Path, help="its golden sample; golden.json beside it unless given")
    add(
        "--certificate",
        type=Path,
        help="certificate of the model and the golden sample; certificate.json beside the model unless given",
    )
    add("--unproven", action="store_true", help="take any model up, without golden sample and certificate")
    add("--report", type=Path, help="evaluate's report, shown at /model")
    add("--host", default="127.0.0.1", help="where to listen; 0.0.0.0 is every network this machine is in")
    add("--port", type=port, default=8000, help="0 takes a free one")
    add("--threads", type=positive, default=settings["threads"], help="of the network")
    add("--batch", type=positive, default=settings["batch"], help="images computed together; 1 switches batching off")
    add("--wait-ms", type=float, default=1000 * settings["wait"], help="a batch waits for requests that are inside")
    add("--queue", type=positive, default=settings["queue"], help="images inside; more are answered with 503")
    add("--connections", type=positive, default=512, help="at once; more are answered with 503")
    add("--max-bytes", type=positive, default=settings["body"], help="of a request")
    add("--max-pixels", type=positive, default=settings["pixels"], help="of a picture")
    add("--max-images", type=positive, default=settings["images"], help="of a request")
    add("--seconds", type=float, default=settings["seconds"], help="for a request to arrive")
    return parser


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{number} is no port")
    return number


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # asyncio has only sockets that say TCP not wait
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((host, port))
        one.listen(1024)
    except OSError as error:
        one.close()
        said = error.strerror or error
        raise LockstepError(f"cannot listen at {host}:{port}: {said}; --port and --host choose another place") from None
    return one


if __name__ == "__main__":
    sys.exit(main())
