"""A small pipeline in its own git repository, run by this project's flows; params.yaml says what each stage does."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT
from repositories import CompletedCommand, command_environment, commit_all, run_command

from flows import supervisor
from flows.dvc.command import try_lock

#       make
#      /    \
#   left    right
#      \    /
#       join
DIAMOND = {"make": [], "left": ["make"], "right": ["make"], "join": ["left", "right"]}
STAGE = '''"""A stage that takes `seconds` and exits with `status`."""
import sys, time
from pathlib import Path
from stages.core.params import Section, read_section

class Toy(Section):
    text: str
    seconds: float
    status: int

def main():
    name, out, *deps = sys.argv[1:]
    toy = read_section(Path("params.yaml"), name, Toy)
    with Path("trace").open("a") as trace:
        trace.write(f"{name} {time.time()}\\n")
    print(f"{name} says {toy.text}")
    time.sleep(toy.seconds)
    if toy.status:
        print(f"{name} goes wrong", file=sys.stderr)
        sys.exit(toy.status)
    Path(out).write_text(toy.text + "".join(Path(dep).read_text() for dep in deps))
    with Path("trace").open("a") as trace:
        trace.write(f"{name} {time.time()}\\n")

if __name__ == "__main__":
    main()
'''


def create_toy_repository(
    folder: Path, graph: dict[str, list[str]] = DIAMOND, meta: dict[str, dict[str, Any]] | None = None
) -> Path:
    """A repository whose stages are those of the graph, each with `text`, `seconds` and `status` in params.yaml."""
    (folder / "stages").mkdir(parents=True)
    shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    core = (f"core/{name}.py" for name in ("__init__", "arithmetic", "errors", "params", "source"))
    for name in ("__init__.py", "__main__.py", *core):
        (folder / "stages" / name).parent.mkdir(exist_ok=True)
        if (ROOT / "stages" / name).exists():
            shutil.copyfile(ROOT / "stages" / name, folder / "stages" / name)
    for name in ("prefect.yaml", "pyproject.toml", "experiments.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(ROOT / name, folder / name)
    with (folder / ".gitignore").open("a") as file:
        file.write("/trace\n")
    for name in graph:
        (folder / "stages" / f"{name}.py").write_text(STAGE)
    params = {name: {"text": name, "seconds": 0.0, "status": 0} for name in graph}
    machine = {"arithmetic": "native", "device": "cpu", "threads": 1}
    (folder / "params.yaml").write_text(json.dumps({"machine": machine, **params}, indent=1))
    stages = {
        name: {
            "desc": f"The stage {name}",
            "cmd": " ".join(["python", "-m", f"stages.{name}", name, f"{name}.txt", *(f"{dep}.txt" for dep in deps)]),
            "deps": [f"stages/{name}.py", *(f"{dep}.txt" for dep in deps)],
            "params": [name],
            "outs": [f"{name}.txt"],
            **({"meta": {"prefect": meta[name]}} if meta and name in meta else {}),
        }
        for name, deps in graph.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}, indent=1))
    run_command(folder, "git", "init", "-q", "-b", "main")
    run_command(folder, "git", "config", "user.email", "test@example.org")
    run_command(folder, "git", "config", "user.name", "test")
    run_command(folder, "dvc", "init", "-q")
    commit_all(folder)
    return folder


def run_flow_module(
    project: Path, *arguments: str, prefect_api_url: str, status: int | None = 0, module: str = "flows.pipeline"
) -> CompletedCommand:
    """`python -m flows.pipeline ARGUMENTS` in the project, on the server."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=project,
        env={**command_environment(), "PREFECT_API_URL": prefect_api_url, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert status is None or result.returncode == status, result.stdout + result.stderr
    return result


def post_api(prefect_api_url: str, path: str, **body: Any) -> Any:
    """The server's response to a POST request. A busy server answers 503 at first."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{prefect_api_url}/{path}", data, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(10):
        try:
            with opener.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == 9:
                raise
            time.sleep(attempt)
    return None


def last_run(prefect_api_url: str) -> dict[str, Any]:
    return post_api(prefect_api_url, "flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=1)[0]


def task_runs(prefect_api_url: str, flow_run: str) -> dict[str, tuple[str, str, str]]:
    """The type, name and message of each task run's state, by task."""
    states: dict[str, tuple[str, str, str]] = {}
    for _ in range(40):  # task states travel as events: the last may come a moment later
        runs = post_api(prefect_api_url, "task_runs/filter", task_runs={}, flow_runs={"id": {"any_": [flow_run]}})
        states = {one["name"]: (one["state_type"], one["state_name"], one["state"]["message"]) for one in runs}
        if all(state_type in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") for state_type, _, _ in states.values()):
            return states
        time.sleep(0.25)
    return states


def stage_processes(project: Path) -> list[psutil.Process]:
    """All processes that run DVC or a stage in the project's folder or in a clone inside it."""
    states = []
    for process in psutil.process_iter():
        try:
            arguments = " ".join(process.cmdline())
            if ("stages." in arguments or "dvc" in arguments) and Path(process.cwd()).is_relative_to(project):
                states.append(process)
        except (psutil.Error, OSError):
            continue
    return states


def wait_until_no_processes(project: Path, seconds: float) -> None:
    """Wait until no stage and no DVC of the project runs."""
    try:
        wait_until(lambda: not stage_processes(project), seconds)
    except AssertionError:
        remaining = [(one.pid, one.ppid(), one.status(), one.cmdline()) for one in stage_processes(project)]
        raise AssertionError(f"left after {seconds:.0f} s: {remaining}") from None


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    if not path.exists():
        return False
    with path.open() as file:
        return not try_lock(file)


def read_trace(project: Path) -> list[str]:
    """The names of the stages, once when a stage starts and once when it ends."""
    file = project / "trace"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


@contextmanager
def prefect_server(home: Path, port: int) -> Iterator[str]:
    """A real server on loopback, with its own database; its API's address."""
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    supervised_command = [sys.executable, supervisor.__file__, *command]  # the server ends with the tests
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(supervised_command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_healthy(f"http://127.0.0.1:{port}/api/health"), 120)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        assert process.stdin
        process.stdin.close()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    """Wait until the condition is true; returns its value."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return result


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
