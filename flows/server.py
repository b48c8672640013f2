"""The Prefect server that runs report to: the one that is set, or a temporary one."""

import socket
import sys
import time
from collections.abc import Callable
from subprocess import DEVNULL, PIPE, Popen
from urllib.error import URLError
from urllib.request import urlopen

from prefect.settings import PREFECT_API_URL

from flows import supervisor
from flows.environment import environment
from flows.problem import Problem

STARTED = 90.0  # seconds in which a server must answer


def serve() -> Callable[[], str] | None:
    """A temporary server if none is set."""
    return None if PREFECT_API_URL.value() else start(free_port(), page=False)


def start(port: int, *, page: bool) -> Callable[[], str]:
    """Start a server; what is given back waits until it answers, and gives its address.

    It lives as long as this process, however that ends, so that Prefect's last words at exit still reach it.
    """
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": str(page).lower()}
    program = [
        "uvicorn",
        "--factory",
        "prefect.server.api.server:create_app",
        "--lifespan",
        "on",
        "--log-level",
        "error",
    ]
    command = [sys.executable, "-m", *program, "--host", "127.0.0.1", "--port", str(port)]
    process = Popen(
        [sys.executable, "-I", "-S", supervisor.__file__, *command],
        env={**environment(), **quiet, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
        stdin=PIPE,
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    return lambda: answered(process, f"http://127.0.0.1:{port}/api")


def answered(process: Popen[bytes], url: str) -> str:
    deadline = time.monotonic() + STARTED
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"{url}/health", timeout=5):  # noqa: S310, loopback
                return url
        except (URLError, OSError):
            time.sleep(0.1)
    raise Problem(
        "the temporary Prefect server does not start: `prefect server start` says why, or set PREFECT_API_URL"
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
