"""Serve a model over HTTP, with a page to draw on, an OpenAPI document and metrics for Prometheus."""

import argparse
import ipaddress
import logging
import math
import os
import signal
import socket
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
    from lockstep.service.app import Service
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
    add("--host", type=host, default="127.0.0.1", help="to listen at; 0.0.0.0 is every network; default: %(default)s")
    add("--port", type=port, default=8000, help="0 chooses a free one; default: %(default)s")
    add(
        "--allow-host",
        type=host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this service, beside localhost: requests for other names are refused, unless it listens to a "
        "network and no name is given; its pages may send requests; may be given several times",
    )
    for flag, default, text in (
        ("--workers", 1, "processes that share the port; the limits below are of each"),
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
    add("--listener", type=int, help=argparse.SUPPRESS)  # of a worker: the file descriptor of the socket


def host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; 127.0.0.1 is this machine, 0.0.0.0 every network")
    return text.strip()


def host_name(text: str) -> str:
    name = host(text)
    if "/" in name or name == "null":
        raise argparse.ArgumentTypeError(f"{name:.80} is not the name of a host, such as digits.example")
    if name.count(":") == 1 or (name.startswith("[") and not name.endswith("]")):
        raise argparse.ArgumentTypeError(f"{name:.80} has a port: give the name alone, which is allowed with any port")
    return name


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text} is not a port: 0 to 65535")
    return int(text)


def positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def run(args: argparse.Namespace) -> int:
    if args.listener is None:  # one of the user's would make this process share its metrics
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    try:
        from lockstep.service.app import Service
        from lockstep.service.server import listen, serve
        from lockstep.service.workers import run_workers, watch_parent
    except ModuleNotFoundError as error:
        print(f"lockstep serve needs {error.name}: in a checkout, pip install '.[service]'", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("lockstep").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of each form that is damaged
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after it has shut down
    is_worker = args.listener is not None
    if is_worker:
        watch_parent()
    if args.follow:
        args.model = args.model or FOLLOWED
    model = args.model or default_model()
    try:
        settings = make_settings(args, model)
        flags = ("--stage", args.follow, "--folder", str(model.parent))
        # The follower ends with this process.
        follower = start_program("flows.follow", *flags) if args.follow and not is_worker else None
        app = load_app(Service, settings, lambda: is_worker or bool(follower and follower.poll() is None))
        if is_worker:
            serve(app, socket.socket(fileno=args.listener), args.max_connections)
            return 0
        listener = listen(args.host, args.port)
    except LockstepError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while it waits for the first model
        return 0
    address, bound_port = listener.getsockname()[:2]
    print(f"{model} at http://{in_url(address)}:{bound_port}/ (Ctrl-C stops it)", flush=True)
    if not is_loopback(args.host):
        print(f"{address} is open to the network, without authentication: put a proxy in front of it", file=sys.stderr)
    if args.workers > 1:
        del app  # each worker loads its own
        try:
            return run_workers(args.workers, args.words, listener)
        except LockstepError as error:
            print(error, file=sys.stderr)
            return 2
    serve(app, listener, args.max_connections)
    return 0


def make_settings(args: argparse.Namespace, model: Path) -> Settings:
    if args.workers > 1 and os.name == "nt":
        raise LockstepError("--workers needs Linux or macOS, where processes can share a socket")
    files = ModelFiles(model, proof_files_or_none(args), args.report)
    if args.follow and model.name != FOLLOWED.name:
        raise LockstepError(f"--follow writes {FOLLOWED.name}: name a --model that is called so")
    return Settings(
        files,
        threads=args.threads,
        max_concurrent_images=max(args.max_concurrent_images, args.max_images),
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
        max_images=args.max_images,
        request_timeout=args.request_timeout,
        allowed_hosts=tuple(map(in_url, args.allow_host)),
        hosts=(in_url(args.host), *map(in_url, args.allow_host)) if args.allow_host or is_loopback(args.host) else None,
    )


def load_app(service: "type[Service]", settings: Settings, will_model_come: Callable[[], bool]) -> "Service":
    """The application, with its model loaded. While another process brings the model, wait for it."""
    reported = ""
    while True:
        try:
            return service(settings)
        except LockstepError as error:
            if not will_model_come():
                raise
            if settings.files.model.exists() and str(error) != reported:
                print(f"waiting: {error}", file=sys.stderr, flush=True)
                reported = str(error)
        time.sleep(0.5)


def is_loopback(host: str) -> bool:
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except (OSError, UnicodeError) as error:
        raise LockstepError(f"--host {host}: is no address of this machine: {error}") from None
    return ipaddress.ip_address(str(address).split("%")[0]).is_loopback


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
