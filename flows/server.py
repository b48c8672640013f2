"""Starts a Prefect server that ends with this process."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from subprocess import DEVNULL, PIPE, Popen
from tempfile import mkdtemp
from urllib.request import ProxyHandler, build_opener

from flows import supervisor
from flows.environment import environment
from flows.errors import FlowError

HOST = "127.0.0.1"
STARTUP_TIMEOUT = 90.0  # seconds
MAX_RESTARTS = 3


def is_server_set() -> bool:
    """Whether PREFECT_API_URL is set: in the environment, a profile, or the project's settings."""
    from prefect.settings import PREFECT_API_URL  # Prefect takes a second to import

    return bool(PREFECT_API_URL.value())


def start_temporary_server() -> Callable[[], str] | None:
    """Start a server without its web interface, if none is set."""
    if is_server_set():
        return None
    with socket.socket() as listener:
        listener.bind((HOST, 0))  # a free port
        port = listener.getsockname()[1]
    return start_server(port, ui=False)


def start_server(port: int, *, ui: bool) -> Callable[[], str]:
    """Start a server; returns a function that waits until it answers and returns its address.

    The server ends when this process has ended, even if it is killed. So it still receives what Prefect sends at exit.
    """
    for name in ("no_proxy", "NO_PROXY"):  # requests to this machine must not go to a proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    settings = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": str(ui).lower()}
    app = ("uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--log-level", "error")
    command = [sys.executable, "-m", *app, "--host", HOST, "--port", str(port)]
    url = f"http://{HOST}:{port}/api"
    variables = {**environment(), **settings, **writable_home(), "PREFECT_API_URL": url}  # a restart keeps the database

    def start() -> Popen[bytes]:
        return Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, *command],
            env=variables,
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )

    process = start()

    def wait_for_server() -> str:
        wait_ready(process, url)
        threading.Thread(target=keep_running, args=(process, start), daemon=True).start()
        return url

    return wait_for_server


def keep_running(process: Popen[bytes], start: Callable[[], Popen[bytes]]) -> None:
    """Start the server again when it has ended. Its database is a file, and Prefect's clients ask again for minutes."""
    for _ in range(MAX_RESTARTS):
        process.wait()
        print("The Prefect server of this run has ended; it is started again", file=sys.stderr, flush=True)
        process = start()
    process.wait()  # what holds this object holds the pipe on which the server's life depends


def writable_home() -> dict[str, str]:
    """A temporary PREFECT_HOME if Prefect's own folder, where the database is, cannot be written."""
    from prefect.settings import PREFECT_HOME

    home = PREFECT_HOME.value().expanduser()
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "prefect.db").open("ab").close()
    except OSError:
        return {"PREFECT_HOME": mkdtemp(prefix="prefect-")}
    return {}


def wait_ready(process: Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if is_healthy(url):
            return
        time.sleep(0.1)
    raise FlowError("the Prefect server does not start: `prefect server start` says why, or set PREFECT_API_URL")


def is_healthy(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False
