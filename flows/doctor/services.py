"""Checks of Prefect's server, database and workers, of the model and the engine that consumers use, and of ports."""

import contextlib
import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from flows.doctor.findings import Finding, Project, SkipError, name_some, setup_fix
from flows.doctor.machine import machine_facts
from flows.doctor.probe import file_holders, hide_password, last_line, port_holder, run, run_program

PREFECT_TIMEOUT, API_TIMEOUT, VERIFY_TIMEOUT = 20.0, 4.0, 20.0  # seconds
HOST = "127.0.0.1"
LOOPBACK = (HOST, "localhost", "::1")
ARTIFACT = "classifier"  # of dvc.yaml
PROVIDERS = "validate_parity.providers"
SQLITE = "sqlite+aiosqlite:///"
PREFECT_PROGRAM = """
import json
from prefect import __version__, settings
def plain(value): return value.get_secret_value() if hasattr(value, "get_secret_value") else value
print(json.dumps({
    "version": __version__,
    "url": settings.PREFECT_API_URL.value() or "",
    "key": plain(settings.PREFECT_API_KEY.value()) or "",
    "database": str(plain(settings.PREFECT_API_DATABASE_CONNECTION_URL.value()) or ""),
}))
"""


def prefect_facts(project: Project) -> dict[str, Any]:
    """The settings of Prefect's active profile and of the environment."""

    def probe() -> dict[str, Any]:
        facts, result = run_program(PREFECT_PROGRAM, project.root, PREFECT_TIMEOUT)
        return facts or {"error": "not imported in time" if result.timed_out else last_line(result)}

    facts: dict[str, Any] = project.facts.get("prefect", probe)
    return facts


def configured_server(project: Project) -> dict[str, Any]:
    facts = prefect_facts(project)
    if "error" in facts:
        raise SkipError("Prefect cannot be imported: see prefect")
    return facts


def call_api(facts: dict[str, Any], path: str, body: Any = None) -> Any:
    """A request to the configured server. To this machine it never goes through a proxy."""
    is_local = urlsplit(facts["url"]).hostname in LOOPBACK
    headers = {"content-type": "application/json"} | (
        {"authorization": f"Bearer {facts['key']}"} if facts["key"] else {}
    )
    data = None if body is None else json.dumps(body).encode()
    opener = build_opener(*([ProxyHandler({})] if is_local else []))
    with opener.open(Request(f"{facts['url']}/{path}", data, headers), timeout=API_TIMEOUT) as response:  # noqa: S310
        return json.load(response)


def check_prefect(project: Project) -> Iterator[Finding]:
    facts = prefect_facts(project)
    if "error" in facts:
        yield Finding("error", f"Prefect cannot be imported: {facts['error']}", setup_fix(project.root))
        return
    if not facts["url"]:
        yield Finding("ok", f"{facts['version']}; no server is set, so each run starts a temporary one")
        return
    unset = "unset PREFECT_API_URL" if os.environ.get("PREFECT_API_URL") else "prefect config unset PREFECT_API_URL"
    url = hide_password(facts["url"])
    try:
        call_api(facts, "health")
        server = server_version(facts)
    except HTTPError as error:
        error.close()
        key = f"set PREFECT_API_KEY, or {unset}"
        path = f"let PREFECT_API_URL end with /api, or {unset}"
        yield Finding("error", f"{url}: {error}", key if error.code in (401, 403) else path)
    except ValueError as error:
        yield Finding("error", f"PREFECT_API_URL: {url}: {error}", f"set it to http://HOST:PORT/api, or {unset}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        yield Finding("error", f"no Prefect server answers at {url}: {reason}", f"prefect server start, or {unset}")
    else:
        if server not in (facts["version"], ""):
            message = f"the server at {url} has version {server}, this environment {facts['version']}"
            yield Finding("warning", message, "install requirements.lock in the server's environment too")
        else:
            yield Finding("ok", f"{server} at {url}")


def server_version(facts: dict[str, Any]) -> str:
    """Empty if the server does not say it, as Prefect Cloud."""
    try:
        return str(call_api(facts, "admin/version"))
    except HTTPError as error:
        error.close()
        return ""


def check_workers(project: Project) -> Iterator[Finding]:
    facts = configured_server(project)
    if not facts["url"]:
        raise SkipError("no Prefect server is set")
    try:
        pools = call_api(facts, "work_pools/filter", {})
        workers = {pool["name"]: call_api(facts, f"work_pools/{pool['name']}/workers/filter", {}) for pool in pools}
    except (OSError, ValueError) as error:
        raise SkipError("the server does not answer: see prefect") from error
    away = {
        name: last_heartbeat(found)
        for name, found in workers.items()
        if not any(one["status"] == "ONLINE" for one in found)
    }
    for name, seen in away.items():
        yield Finding("warning", f"no worker polls the pool {name}: {seen}", f"prefect worker start --pool {name}")
    if not away:
        yield Finding("ok", f"polled: {', '.join(workers)}" if workers else "the server has no work pool")


def last_heartbeat(workers: list[dict[str, Any]]) -> str:
    times = [datetime.fromisoformat(one["last_heartbeat_time"]) for one in workers if one.get("last_heartbeat_time")]
    return (
        f"last seen {(datetime.now(UTC) - max(times)).total_seconds() / 60:.0f} minutes ago" if times else "never seen"
    )


def check_database(project: Project) -> Iterator[Finding]:
    """The database that a temporary server uses."""
    facts = configured_server(project)
    if facts["url"]:
        raise SkipError("it is the server's")
    if not facts["database"].startswith(SQLITE):
        raise SkipError("it is not SQLite")
    file = Path(facts["database"].removeprefix(SQLITE).partition("?")[0])
    if not file.exists():
        yield Finding("ok", "the first run makes it")
        return
    if not os.access(file, os.W_OK):
        yield Finding("warning", f"{file} cannot be written: a run keeps no history", f"chown $USER '{file}'")
        return
    try:
        lock_database(file)
    except sqlite3.OperationalError as error:
        holders = file_holders(file)
        fix = f"kill {' '.join(str(one.pid) for one in holders)}" if holders else "try again in a minute"
        yield Finding(
            "error", f"{file}: {error}, by {name_some(map(str, holders))}" if holders else f"{file}: {error}", fix
        )
    except sqlite3.DatabaseError as error:
        yield Finding("error", f"{file}: {error}", f"mv '{file}' '{file}.broken': the next run makes a new one")
    else:
        yield Finding("ok", f"{file}, {file.stat().st_size / 1e6:.0f} MB")


def lock_database(file: Path) -> None:
    """Raise an error if the database cannot be read, or is locked by a writer for more than a second."""
    with contextlib.closing(sqlite3.connect(file, timeout=1, isolation_level=None)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def check_temporary_server(_: Project) -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.bind((HOST, 0))
            listener.listen()
            with socket.create_connection(listener.getsockname(), timeout=2):
                pass
    except OSError as error:
        fix = "ip link set lo up, or set PREFECT_API_URL to a server"
        yield Finding("error", f"nothing can listen at {HOST}: {error}", fix)
    else:
        yield Finding("ok", f"can listen at {HOST}")


def check_port(project: Project) -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, project.port))
    except OSError as error:
        holder = port_holder(project.port)
        other = f'make serve FLAGS="--port {project.port + 1}"'
        fix = f"kill {holder.pid}, or {other}" if holder else other
        yield Finding("warning", f"{project.port}: {error.strerror}" + (f", by {holder}" if holder else ""), fix)
    else:
        yield Finding("ok", f"{project.port} is free for make serve")


def check_model(project: Project) -> Iterator[Finding]:
    path = project.dag().artifacts.get(ARTIFACT)
    if not path:
        raise SkipError("the pipeline has no model")
    if not (project.root / path).exists():
        yield Finding("ok", "not made yet; consumers use the published one")
        return
    result = run(["python", "-m", "lockstep", "verify", path], project.root, VERIFY_TIMEOUT)
    if result.timed_out:
        yield Finding("warning", f"not verified within {VERIFY_TIMEOUT:.0f} s", f"lockstep verify {path}")
    elif result.returncode:
        yield Finding(
            "error",
            f"not proven: {last_line(result)}",
            "dvc checkout --force validate_parity export_onnx, or dvc repro",
        )
    else:
        yield Finding("ok", f"{path} is proven")


def check_providers(project: Project) -> Iterator[Finding]:
    facts, wanted = machine_facts(project), project.params().get(PROVIDERS)
    if "providers" not in facts:
        reason = facts.get("onnxruntime error", "Python does not start")
        yield Finding("error", f"ONNX Runtime cannot be imported: {reason}", setup_fix(project.root))
        return
    if not isinstance(wanted, list):
        raise SkipError(f"there is no param {PROVIDERS}")
    found = [name for name in wanted if name in facts["providers"]]
    if not found:
        message = f"none of {PROVIDERS} is available; ONNX Runtime has {', '.join(facts['providers'])}"
        yield Finding("error", message, f"add CPUExecutionProvider to {PROVIDERS} in params.yaml")
    else:
        absent = [name for name in wanted if name not in found]
        yield Finding(
            "ok", f"{', '.join(found)}" + (f"; not here, so not tested: {', '.join(absent)}" if absent else "")
        )
