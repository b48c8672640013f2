"""Serve a model over HTTP, with a page to draw on, an OpenAPI document and metrics for Prometheus."""

import argparse
import contextlib
import logging
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.arguments import MODEL_HELP, add_proof_arguments, positive, proof_files_or_none
from lockstep.classifier import default_model
from lockstep.clone import start_program
from lockstep.errors import LockstepError
from lockstep.service.settings import ModelFiles, Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette
FOLLOWED = Path("served", "model.onnx")
EXAMPLE = "example: lockstep serve --model data/model/model.onnx --port 9000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, help=f"{MODEL_HELP}; reloaded when it is replaced")
    add(
        "--follow",
        metavar="STAGE",
        help="in a clone: put the model that has this stage of the registry, such as prod, at --model (default: "
        f"{FOLLOWED}), and each later one",
    )
    add_proof_arguments(parser)
    add("--no-verify", action="store_true", help="serve any model, also without a golden sample and a certificate")
    add("--report", type=Path, help="the report of the stage evaluate, shown at /model")
    add("--host", default="127.0.0.1", help="to listen at; 0.0.0.0 is every network; default: %(default)s")
    add("--port", type=port, default=8000, help="0 chooses a free one; default: %(default)s")
    for flag, default, text in (
        ("--threads", Settings.threads, "CPU threads of the network"),
        ("--max-concurrent-images", Settings.max_concurrent_images, "of all requests at once; more get status 503"),
        ("--max-connections", 512, "at once; more get status 503"),
        ("--max-bytes", Settings.max_bytes, "of a request"),
        ("--max-pixels", Settings.max_pixels, "of an image file"),
        ("--max-images", Settings.max_images, "of a request"),
    ):
        add(flag, type=positive, default=default, metavar="N", help=f"{text}; default: %(default)s")
    add(
        "--request-timeout",
        type=positive_seconds,
        default=Settings.request_timeout,
        metavar="SECONDS",
        help="for a request to arrive; default: %(default)s",
    )


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{number} is not a port")
    return number


def positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds


def run(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from lockstep.service.app import create_app
        from lockstep.service.header_timeout import make_protocol
    except ModuleNotFoundError as error:
        print(f"lockstep serve needs {error.name}: in a checkout, pip install '.[service]'", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("lockstep").setLevel(logging.INFO)
    if args.follow:
        args.model = args.model or FOLLOWED
    model = args.model or default_model()
    try:
        files = ModelFiles(model, proof_files_or_none(args), args.report)
        if args.follow and model.name != FOLLOWED.name:
            raise LockstepError(f"--follow writes {FOLLOWED.name}: name a --model that is called so")
    except LockstepError as error:
        print(error, file=sys.stderr)
        return 2
    settings = Settings(
        files,
        threads=args.threads,
        max_concurrent_images=max(args.max_concurrent_images, args.max_images),
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
        max_images=args.max_images,
        request_timeout=args.request_timeout,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after it has shut down
    try:
        flags = ("--stage", args.follow, "--folder", str(model.parent))
        follower = start_program("flows.follow", *flags) if args.follow else None  # ends with this process
        app = load_app(create_app, settings, follower)
        listener = listen(args.host, args.port)
    except LockstepError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while it waits for the first model
        return 0
    host, bound_port = listener.getsockname()[:2]
    print(f"{model} at http://{f'[{host}]' if ':' in host else host}:{bound_port}/ (Ctrl-C stops it)", flush=True)
    config = uvicorn.Config(
        app,
        http=make_protocol(args.request_timeout),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=args.max_connections,
        timeout_graceful_shutdown=10,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def load_app(
    create_app: "Callable[[Settings], Starlette]", settings: Settings, follower: subprocess.Popen[bytes] | None
) -> "Starlette":
    """The application, with its model loaded. A follower brings the model: until it has, wait."""
    reported = ""
    while True:
        try:
            return create_app(settings)
        except LockstepError as error:
            if not follower or follower.poll() is not None:
                raise
            if settings.files.model.exists() and str(error) != reported:
                print(f"waiting: {error}", file=sys.stderr, flush=True)
                reported = str(error)
        time.sleep(0.5)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or error
        raise LockstepError(f"cannot listen at {host}:{port}: {reason}; choose another --port or --host") from None
    # asyncio sets TCP_NODELAY only on sockets that name their protocol.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listener.detach())
