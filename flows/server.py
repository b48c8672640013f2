"""The Prefect server that runs report to: the one that is set, or a temporary one."""

import os
import socket
import sys
import time
from collections.abc import Callable
from subprocess import DEVNULL, PIPE, Popen
from tempfile import mkdtemp
from urllib.request import ProxyHandler, build_opener

from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from flows import supervisor
from flows.environment import environment
from flows.errors import FlowError

HOST = "127.0.0.1"
STARTED = 90.0  # seconds in which a server must answer


def temporary_server() -> Callable[[], str] | None:
    """A temporary server if none is set."""
    return None if PREFECT_API_URL.value() else start_server(free_port(), page=False)


def start_server(port: int, *, page: bool) -> Callable[[], str]:
    """Start a server; what is given back waits until it answers, and gives its address.

    It lives as long as this process, however that ends, so that Prefect's last words at exit still reach it.
    """
    for name in ("no_proxy", "NO_PROXY"):  # a proxy is not to be asked for what is on this machine
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": str(page).lower()}
    app = ("uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--log-level", "error")
    command = [sys.executable, "-m", *app, "--host", HOST, "--port", str(port)]
    url = f"http://{HOST}:{port}/api"
    process = Popen(
        [sys.executable, "-I", "-S", supervisor.__file__, *command],
        env={**environment(), **quiet, **home(), "PREFECT_API_URL": url},
        stdin=PIPE,
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    return lambda: wait_ready(process, url)


def home() -> dict[str, str]:
    """Where the server keeps its database: Prefect's own folder, or a temporary one where that cannot be written."""
    folder = PREFECT_HOME.value().expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prefect.db").open("ab").close()
    except OSError:
        return {"PREFECT_HOME": mkdtemp(prefix="prefect-")}
    return {}


def wait_ready(process: Popen[bytes], url: str) -> str:
    deadline = time.monotonic() + STARTED
    while process.poll() is None and time.monotonic() < deadline:
        if answers(url):
            return url
        time.sleep(0.1)
    raise FlowError(
        "the temporary Prefect server does not start: `prefect server start` says why, or set PREFECT_API_URL"
    )


def answers(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port
