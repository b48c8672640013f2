"""A DVC remote that loses or delays requests: a real S3 server behind a proxy on loopback that does so on purpose.

DVC asks again, and everything arrives. If the remote stops answering, the run fails, and the next one on that machine
restores what the first has computed and pushes it. Another machine then pulls the same bytes.
"""

import http.client
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from counts import fraction, record
from repositories import CompletedCommand, command_environment, commit_all, run_command
from team import BUCKET, Team, start_s3
from toys import create_toy_repository, free_port

pytestmark = [pytest.mark.slow, pytest.mark.faults]
FAULTS = ("loses the request", "loses the answer", "cuts the answer", "answers 503", "hangs", "is slow")
READ_TIMEOUT = 3  # seconds, of DVC's remote
PERIOD = 8  # two of so many requests are lost: one, and what DVC sends next, often the same again
FILES = 6  # of the folder that is pushed beside the toy's outputs
FOLDER_STAGE = {
    "desc": "A folder of small files",
    "cmd": "python -m stages.many",
    "deps": ["stages/many.py", "make.txt"],
    "outs": ["many"],
}
FOLDER_PROGRAM = f"""from pathlib import Path

if __name__ == "__main__":
    print("many says something")
    Path("many").mkdir()
    for number in range({FILES}):
        Path("many", str(number)).write_text(Path("make.txt").read_text() + str(number))
"""


class LossyProxy(ThreadingHTTPServer):
    """Forwards requests to an S3 server, and does the fault to two of eight; from the request `away` on, to all."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, s3_port: int, fault: str, offset: int, away: float) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.s3_port, self.fault, self.offset, self.away = s3_port, fault, offset, away
        self.requests = self.lost = 0
        self.lock = threading.Lock()

    def loses_next(self) -> bool:
        with self.lock:
            is_lost = (self.requests + self.offset) % PERIOD < 2 or self.requests >= self.away
            self.requests += 1
            self.lost += is_lost
        return is_lost


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LossyProxy

    def forward(self) -> None:
        proxy, fault = self.server, self.server.fault
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        is_lost = proxy.loses_next()
        if is_lost and fault == "is slow":
            time.sleep(1)
        if is_lost and fault in ("loses the request", "hangs"):
            if fault == "hangs":
                time.sleep(2 * READ_TIMEOUT)
            self.close_connection = True
            return
        if is_lost and fault == "answers 503":
            self.send_response(503)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.s3_port, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if is_lost and (fault == "loses the answer" or (fault == "cuts the answer" and not content)):
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = answer.headers["content-length"] if self.command == "HEAD" else str(len(content))
        self.send_header("content-length", length or "0")
        self.end_headers()
        if is_lost and fault == "cuts the answer":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def handle(self) -> None:
        with suppress(OSError):  # the client has gone
            super().handle()

    def do_GET(self) -> None:
        self.forward()

    def do_HEAD(self) -> None:
        self.forward()

    def do_PUT(self) -> None:
        self.forward()

    def do_POST(self) -> None:
        self.forward()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def lossy_proxy(s3_port: int, fault: str, offset: int, away: float = math.inf) -> Iterator[LossyProxy]:
    proxy = LossyProxy(s3_port, fault, offset, away)
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


@pytest.fixture(scope="module")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    environment = {**os.environ, "http_proxy": "", "https_proxy": "", "no_proxy": "127.0.0.1"}
    team = Team(tmp_path_factory.mktemp("s3"), environment, {"s3": free_port()})
    try:
        start_s3(team)
        yield team.ports["s3"]
    finally:
        team.stop("s3", signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A clone of a bare repository, with the toy that has not run, and a remote that `run_with` names."""
    toy = create_toy_repository(tmp_path / "toy")
    (toy / "stages" / "many.py").write_text(FOLDER_PROGRAM)
    pipeline = json.loads((toy / "dvc.yaml").read_text())
    pipeline["stages"]["many"] = FOLDER_STAGE
    (toy / "dvc.yaml").write_text(json.dumps(pipeline, indent=1))
    for command in (
        ("add", "--default", "storage", f"s3://{BUCKET}/{tmp_path.name}"),
        ("modify", "storage", "read_timeout", str(READ_TIMEOUT)),
    ):
        run_command(toy, "dvc", "remote", *command)
    commit_all(toy)
    run_command(tmp_path, "git", "clone", "-q", "--bare", str(toy), "origin.git")
    return clone(tmp_path, "machine")


def clone(folder: Path, name: str) -> Path:
    run_command(folder, "git", "clone", "-q", "origin.git", name)
    for key in ("email", "name"):
        run_command(folder / name, "git", "config", f"user.{key}", "test@example.org")
    return folder / name


def run_with(port: int, folder: Path, *command: str, api: str = "") -> CompletedCommand:
    """The command with the S3 server at this port."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**command_environment(), **keys, "no_proxy": "127.0.0.1", "PREFECT_API_URL": api}
    environment["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


def run_flow(port: int, folder: Path, api: str, text: str) -> CompletedCommand:
    flags = ("--where", "clone", "--commit-to", "results", "--push", "-S", f"make.text={text}")
    return run_with(port, folder, sys.executable, "-m", "flows.pipeline", *flags, api=api)


def check_pulled(folder: Path, text: str) -> None:
    """That the clone has every output of the run with this text."""
    assert text in (folder / "make.txt").read_text()
    assert {path.name for path in (folder / "many").iterdir()} == set(map(str, range(FILES)))
    assert run_command(folder, "dvc", "status", "--json").stdout.strip() == "{}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_remote_that_loses_a_quarter_of_the_requests_gets_and_gives_everything(
    fault: str, machine: Path, s3_port: int, prefect_api_url: str
) -> None:
    rounds = max(1, round(2 * fraction()))
    lost = 0
    for offset in range(rounds):
        with lossy_proxy(s3_port, fault, offset) as proxy:
            pushed = run_flow(proxy.server_port, machine, prefect_api_url, f"text{offset}")
        assert pushed.returncode == 0, pushed.stdout + pushed.stderr
        assert proxy.lost > 2
        other = clone(machine.parent, f"other{offset}")
        run_command(other, "git", "checkout", "-q", "results")
        with lossy_proxy(s3_port, fault, offset) as pulling:
            pulled = run_with(pulling.server_port, other, "dvc", "pull")
        assert pulled.returncode == 0, pulled.stdout + pulled.stderr
        assert pulling.lost > 2
        check_pulled(other, f"text{offset}")
        lost += proxy.lost + pulling.lost
    record("remote", target=f"{fault}, {lost} times", outcomes={"pushed": rounds, "pulled": rounds})


def test_a_remote_that_stops_answering_during_a_push_gets_everything_from_the_next_run(
    machine: Path, s3_port: int, prefect_api_url: str
) -> None:
    with lossy_proxy(s3_port, "is slow", offset=0) as proxy:  # how many requests a push takes
        healthy = run_flow(proxy.server_port, machine, prefect_api_url, "text")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "many says something" in healthy.stdout
    for part in (0.2, 0.7):
        text = f"text{part}"
        with lossy_proxy(s3_port, "loses the request", offset=2, away=part * proxy.requests) as broken:
            pushed = run_flow(broken.server_port, machine, prefect_api_url, text)
        assert pushed.returncode
        assert "Traceback" not in pushed.stdout + pushed.stderr
        (line,) = (line for line in pushed.stdout.splitlines() if line.startswith("dvc push "))
        assert re.fullmatch(r"dvc push .*: ERROR: .*; the outputs are in DVC's cache on \S+: run there again, .*", line)
        again = run_flow(s3_port, machine, prefect_api_url, text)
        assert again.returncode == 0, again.stdout + again.stderr
        assert " says " not in again.stdout, "a stage was computed again"
        other = clone(machine.parent, f"other{part}")
        run_command(other, "git", "checkout", "-q", "results")
        assert run_with(s3_port, other, "dvc", "pull").returncode == 0
        check_pulled(other, text)
        record("remote", target="stops answering", outcomes={"pushed by the next run": 1})
