"""A run that is interrupted, killed or disturbed leaves no process and no lock, and the next run completes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from repositories import commit, dvc, environment, run
from toys import (
    flow,
    free_port,
    is_locked,
    last_run,
    new_toy,
    prefect_server,
    read_trace,
    task_runs,
    until,
    wait_until_no_processes,
)

CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
CLEANUP_TIMEOUT = 10.0  # seconds until all processes must be gone
pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two stages, of which the second takes a minute."""
    toy = new_toy(tmp_path / "a toy", CHAIN)
    set_duration(toy, 60)
    commit(toy)
    return toy


@pytest.fixture(scope="module")
def expected_lock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dvc.lock of a twin in which nothing went wrong, by DVC alone."""
    twin = new_toy(tmp_path_factory.mktemp("twin") / "toy", CHAIN)
    dvc(twin, "repro", "-q")
    return (twin / "dvc.lock").read_text()


def set_duration(toy: Path, seconds: float) -> None:
    params = json.loads((toy / "params.yaml").read_text())
    params["long"]["seconds"] = seconds
    (toy / "params.yaml").write_text(json.dumps(params, indent=1))


@contextmanager
def pipeline_process(
    toy: Path, api: str | None, *arguments: str, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m flows.pipeline ARGUMENTS`, as a terminal starts it: in a process group of its own."""
    env = {**environment(), "no_proxy": "127.0.0.1", **({"PREFECT_API_URL": api} if api else {}), **variables}
    with (toy.parent / "output").open("wb") as output_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline", *arguments],
            cwd=toy,
            env=env,
            stdout=output_file,
            stderr=output_file,
            process_group=0,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        wait_until_no_processes(toy, 20)


def read_output(toy: Path) -> str:
    return (toy.parent / "output").read_text()


def assert_cleaned_up(toy: Path, start_time: float) -> None:
    wait_until_no_processes(toy, CLEANUP_TIMEOUT - (time.monotonic() - start_time))
    assert not is_locked(toy / ".dvc" / "tmp" / "lock")
    assert "long" in dvc(toy, "status", "--json").stdout


def assert_next_run_succeeds(toy: Path, api: str, expected_lock: str) -> None:
    set_duration(toy, 0.0)
    assert "quick             UpToDate" in flow(toy, api=api).stdout
    assert (toy / "dvc.lock").read_text() == expected_lock
    assert dvc(toy, "status", "--json").stdout.strip() == "{}"


INTERRUPTED = ("CRASHED", "Execution was")  # the start of the message, for cancelled and aborted


@pytest.mark.parametrize(
    ("number", "status", "state"),
    [
        (signal.SIGINT, 130, INTERRUPTED),
        (signal.SIGTERM, 143, INTERRUPTED),
        (signal.SIGKILL, -9, ("RUNNING", "")),  # no process is left to report it
    ],
)
def test_a_signal_ends_all_processes_and_the_next_run_succeeds(
    chain: Path, api: str, expected_lock: str, number: signal.Signals, status: int, state: tuple[str, str]
) -> None:
    with pipeline_process(chain, api) as process:
        until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        start_time = time.monotonic()
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert_cleaned_up(chain, start_time)
        assert process.wait(CLEANUP_TIMEOUT) == status
    assert "Traceback" not in read_output(chain)
    flow_run = last_run(api)
    assert flow_run["state_type"] == state[0]
    assert (flow_run["state"]["message"] or "").startswith(state[1])
    assert task_runs(api, flow_run["id"])["quick"] == ("COMPLETED", "Ran", "never ran")
    assert_next_run_succeeds(chain, api, expected_lock)


def test_a_signal_while_a_stage_prints_ends_the_run_cleanly(chain: Path, api: str) -> None:
    stage = chain / "stages" / "long.py"
    endless_output = "for _ in range(10**9): print('says more')"
    stage.write_text(stage.read_text().replace("time.sleep(toy.seconds)", endless_output))
    with pipeline_process(chain, api) as process:
        until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        time.sleep(1)
        start_time = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert_cleaned_up(chain, start_time)
        assert process.wait(CLEANUP_TIMEOUT) in (143, -signal.SIGTERM)  # a shell calls both 143
    assert "Traceback" not in read_output(chain)
    assert last_run(api)["state_type"] == "CRASHED"


def test_two_runs_at_once_both_succeed_and_no_stage_runs_twice(toy: Path, api: str) -> None:
    with pipeline_process(toy, api) as process:
        result = flow(toy, api=api)
        assert process.wait(60) == 0
    events = read_trace(toy)
    assert sorted(events) == sorted(2 * ["make", "left", "right", "join"])
    for name in ("make", "left", "right", "join"):
        assert "Ran after" in "".join(
            line for line in (result.stdout + read_output(toy)).splitlines() if line.startswith(name)
        )
    assert dvc(toy, "status", "--json").stdout.strip() == "{}"


def test_a_run_waits_for_dvc_repro_and_logs_that(chain: Path, api: str) -> None:
    set_duration(chain, 25.0)
    with subprocess.Popen(["dvc", "repro", "-q"], cwd=chain, env=environment()) as other_repro:
        until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        result = flow(chain, api=api)
        assert other_repro.wait(0) == 0
    assert read_trace(chain) == ["quick", "quick", "long", "long"]
    assert "Waiting for another DVC command:" in result.stdout
    assert "dvc repro -q" in result.stdout
    assert "ERROR" not in result.stdout
    assert dvc(chain, "status", "--json").stdout.strip() == "{}"


def test_a_run_succeeds_if_the_server_is_killed_and_started_again(
    tmp_path: Path, chain: Path, expected_lock: str
) -> None:
    set_duration(chain, 1.0)  # it ends while there is no server
    (home := tmp_path / "prefect").mkdir()
    port = free_port()
    with prefect_server(home, port) as api, pipeline_process(chain, api) as process:
        until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        for server in psutil.process_iter(["cmdline"]):
            if f"--port {port}" in " ".join(server.info["cmdline"] or []):
                server.kill()
        time.sleep(5)
        with prefect_server(home, port):
            assert process.wait(120) == 0
            flow_run = last_run(api)
            assert (flow_run["state_type"], flow_run["name"]) == ("COMPLETED", "ran quick, long (never ran)")
            assert task_runs(api, flow_run["id"])["long"] == ("COMPLETED", "Ran", "never ran")
            assert "Traceback" not in read_output(chain)
            assert_next_run_succeeds(chain, api, expected_lock)


def test_a_project_without_git_runs_in_its_folder_and_a_clone_of_it_is_one_error_line(
    chain: Path, api: str, expected_lock: str
) -> None:
    set_duration(chain, 0.0)
    shutil.rmtree(chain / ".git")
    shutil.rmtree(chain / ".dvc")
    dvc(chain, "init", "--no-scm", "-q")
    flow(chain, api=api)
    assert (chain / "dvc.lock").read_text() == expected_lock
    result = flow(chain, "--where", "clone", api=api, status=1)
    assert [line for line in result.stdout.splitlines() if line] == [
        "git rev-parse HEAD: fatal: not a git repository (or any of the parent directories): .git:"
        " a run in a clone needs a git repository with a commit"
    ]
    assert last_run(api)["state_type"] == "FAILED"
    assert read_trace(chain) == ["quick", "quick", "long", "long"]


def test_a_run_on_a_detached_head_keeps_the_head_and_uncommitted_changes(
    chain: Path, api: str, expected_lock: str
) -> None:
    set_duration(chain, 0.0)
    run(chain, "git", "checkout", "-q", "--detach")
    with (chain / "prefect.yaml").open("a") as file:
        file.write("# mine\n")
    (chain / "notes").write_text("mine")
    run(chain, "git", "add", "notes")
    head = run(chain, "git", "rev-parse", "HEAD").stdout
    flow(chain, api=api)
    assert run(chain, "git", "rev-parse", "HEAD").stdout == head
    status = run(chain, "git", "status", "--porcelain").stdout.splitlines()
    assert sorted(status) == [" M .gitignore", " M params.yaml", " M prefect.yaml", "?? dvc.lock", "A  notes"]
    assert (chain / "prefect.yaml").read_text().endswith("# mine\n")
    assert (chain / "dvc.lock").read_text() == expected_lock


def test_a_temporary_server_starts_without_a_writable_home(chain: Path, expected_lock: str) -> None:
    set_duration(chain, 0.0)
    with pipeline_process(chain, None, HOME="/proc/nowhere", PREFECT_API_URL="") as process:
        assert process.wait(120) == 0, read_output(chain)
    assert (chain / "dvc.lock").read_text() == expected_lock
