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
from repositories import command_environment, commit_all, run_command, run_dvc
from toys import (
    create_toy_repository,
    free_port,
    is_locked,
    last_run,
    prefect_server,
    read_trace,
    run_flow_module,
    task_runs,
    wait_until,
    wait_until_no_processes,
)

CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
CLEANUP_TIMEOUT = 10.0  # seconds until all processes must be gone
pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two stages, of which the second takes a minute."""
    toy_repository = create_toy_repository(tmp_path / "a toy", CHAIN)
    set_duration(toy_repository, 60)
    commit_all(toy_repository)
    return toy_repository


@pytest.fixture(scope="module")
def expected_lock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dvc.lock of a twin in which nothing went wrong, by DVC alone."""
    twin = create_toy_repository(tmp_path_factory.mktemp("twin") / "toy", CHAIN)
    run_dvc(twin, "repro", "-q")
    return (twin / "dvc.lock").read_text()


def set_duration(toy_repository: Path, seconds: float) -> None:
    params = json.loads((toy_repository / "params.yaml").read_text())
    params["long"]["seconds"] = seconds
    (toy_repository / "params.yaml").write_text(json.dumps(params, indent=1))


@contextmanager
def pipeline_process(
    toy_repository: Path, prefect_api_url: str | None, *arguments: str, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m flows.pipeline ARGUMENTS`, as a terminal starts it: in a process group of its own."""
    env = {
        **command_environment(),
        "no_proxy": "127.0.0.1",
        **({"PREFECT_API_URL": prefect_api_url} if prefect_api_url else {}),
        **variables,
    }
    with (toy_repository.parent / "output").open("wb") as output_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline", *arguments],
            cwd=toy_repository,
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
        wait_until_no_processes(toy_repository, 20)


def read_output(toy_repository: Path) -> str:
    return (toy_repository.parent / "output").read_text()


def assert_cleaned_up(toy_repository: Path, start_time: float) -> None:
    wait_until_no_processes(toy_repository, CLEANUP_TIMEOUT - (time.monotonic() - start_time))
    assert not is_locked(toy_repository / ".dvc" / "tmp" / "lock")
    assert "long" in run_dvc(toy_repository, "status", "--json").stdout


def assert_next_run_succeeds(toy_repository: Path, prefect_api_url: str, expected_lock: str) -> None:
    set_duration(toy_repository, 0.0)
    assert "quick             UpToDate" in run_flow_module(toy_repository, prefect_api_url=prefect_api_url).stdout
    assert (toy_repository / "dvc.lock").read_text() == expected_lock
    assert run_dvc(toy_repository, "status", "--json").stdout.strip() == "{}"


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
    chain: Path, prefect_api_url: str, expected_lock: str, number: signal.Signals, status: int, state: tuple[str, str]
) -> None:
    with pipeline_process(chain, prefect_api_url) as process:
        wait_until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        start_time = time.monotonic()
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert_cleaned_up(chain, start_time)
        assert process.wait(CLEANUP_TIMEOUT) == status
    assert "Traceback" not in read_output(chain)
    flow_run = last_run(prefect_api_url)
    assert flow_run["state_type"] == state[0]
    assert (flow_run["state"]["message"] or "").startswith(state[1])
    assert task_runs(prefect_api_url, flow_run["id"])["quick"] == ("COMPLETED", "Ran", "never ran")
    assert_next_run_succeeds(chain, prefect_api_url, expected_lock)


def test_a_signal_while_a_stage_prints_ends_the_run_cleanly(chain: Path, prefect_api_url: str) -> None:
    stage = chain / "stages" / "long.py"
    endless_output = "for _ in range(10**9): print('says more')"
    stage.write_text(stage.read_text().replace("time.sleep(toy.seconds)", endless_output))
    with pipeline_process(chain, prefect_api_url) as process:
        wait_until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        time.sleep(1)
        start_time = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert_cleaned_up(chain, start_time)
        assert process.wait(CLEANUP_TIMEOUT) in (143, -signal.SIGTERM)  # a shell calls both 143
    assert "Traceback" not in read_output(chain)
    assert last_run(prefect_api_url)["state_type"] == "CRASHED"


def test_an_output_that_the_disk_has_changed_in_dvcs_cache_is_made_again(
    toy_repository: Path, prefect_api_url: str
) -> None:
    run_dvc(toy_repository, "repro", "-q")
    commit_all(toy_repository)
    out = run_dvc(toy_repository, "ls", ".", "--dvc-only", "-R").stdout.split()[0]
    content = (toy_repository / out).read_bytes()
    (cached,) = [
        path for path in (toy_repository / ".dvc/cache/files/md5").rglob("*/*") if path.read_bytes() == content
    ]
    cached.chmod(0o644)
    cached.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    cached.chmod(0o444)  # DVC trusts what is read-only
    (toy_repository / out).unlink()
    result = run_flow_module(toy_repository, prefect_api_url=prefect_api_url)
    assert f"other bytes than dvc.lock says of {out}: removed, runs again" in result.stdout + result.stderr
    assert (toy_repository / out).read_bytes() == content == cached.read_bytes()
    assert run_command(toy_repository, "git", "status", "--short").stdout == ""


@pytest.mark.parametrize("content", ["", '{"read": {"a'])
def test_a_list_of_used_paths_that_a_killed_dvc_has_cut_is_removed(
    content: str, toy_repository: Path, prefect_api_url: str
) -> None:
    (toy_repository / ".dvc" / "tmp").mkdir(exist_ok=True)
    (toy_repository / ".dvc" / "tmp" / "rwlock").write_text(content)
    assert "JSON structure is corrupted" in run_dvc(toy_repository, "repro", status=None).stderr
    result = run_flow_module(toy_repository, prefect_api_url=prefect_api_url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (toy_repository / "join.txt").exists()


def test_two_runs_at_once_both_succeed_and_no_stage_runs_twice(toy_repository: Path, prefect_api_url: str) -> None:
    with pipeline_process(toy_repository, prefect_api_url) as process:
        result = run_flow_module(toy_repository, prefect_api_url=prefect_api_url)
        assert process.wait(60) == 0
    events = read_trace(toy_repository)
    assert sorted(events) == sorted(2 * ["make", "left", "right", "join"])
    for name in ("make", "left", "right", "join"):
        assert "Ran after" in "".join(
            line for line in (result.stdout + read_output(toy_repository)).splitlines() if line.startswith(name)
        )
    assert run_dvc(toy_repository, "status", "--json").stdout.strip() == "{}"


def test_a_run_waits_for_dvc_repro_and_logs_that(chain: Path, prefect_api_url: str) -> None:
    set_duration(chain, 25.0)
    with subprocess.Popen(["dvc", "repro", "-q"], cwd=chain, env=command_environment()) as other_repro:
        wait_until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        result = run_flow_module(chain, prefect_api_url=prefect_api_url)
        assert other_repro.wait(0) == 0
    assert read_trace(chain) == ["quick", "quick", "long", "long"]
    assert "Waiting for another DVC command:" in result.stdout
    assert "dvc repro -q" in result.stdout
    assert "ERROR" not in result.stdout
    assert run_dvc(chain, "status", "--json").stdout.strip() == "{}"


def test_a_run_succeeds_if_the_server_is_killed_and_started_again(
    tmp_path: Path, chain: Path, expected_lock: str
) -> None:
    set_duration(chain, 1.0)  # it ends while there is no server
    (home := tmp_path / "prefect").mkdir()
    port = free_port()
    with prefect_server(home, port) as prefect_api_url, pipeline_process(chain, prefect_api_url) as process:
        wait_until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        for server in psutil.process_iter(["cmdline"]):
            if f"--port {port}" in " ".join(server.info["cmdline"] or []):
                server.kill()
        time.sleep(5)
        with prefect_server(home, port):
            assert process.wait(120) == 0
            flow_run = last_run(prefect_api_url)
            assert (flow_run["state_type"], flow_run["name"]) == ("COMPLETED", "ran quick, long (never ran)")
            assert task_runs(prefect_api_url, flow_run["id"])["long"] == ("COMPLETED", "Ran", "never ran")
            assert "Traceback" not in read_output(chain)
            assert_next_run_succeeds(chain, prefect_api_url, expected_lock)


def test_a_temporary_server_that_dies_is_started_again(chain: Path) -> None:
    set_duration(chain, 1.0)
    with pipeline_process(chain, None, PREFECT_API_URL="") as process:
        wait_until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        for server in psutil.Process(process.pid).children(recursive=True):
            if "prefect.server.api.server:create_app" in server.cmdline():
                server.kill()
        assert process.wait(120) == 0, read_output(chain)
    assert "The Prefect server of this run has ended; it is started again" in read_output(chain)
    assert "Traceback" not in read_output(chain)
    assert run_dvc(chain, "status", "--json").stdout.strip() == "{}"


def test_a_server_that_stays_away_is_one_line_at_the_end(tmp_path: Path, chain: Path) -> None:
    set_duration(chain, 1.0)
    (home := tmp_path / "prefect").mkdir()
    port = free_port()
    retries = {"PREFECT_CLIENT_MAX_RETRIES": "1"}  # Prefect's default is minutes of them
    with prefect_server(home, port) as prefect_api_url, pipeline_process(chain, prefect_api_url, **retries) as process:
        wait_until(lambda: read_trace(chain)[-1:] == ["long"], 60)
        for server in psutil.process_iter(["cmdline"]):
            if f"--port {port}" in " ".join(server.info["cmdline"] or []):
                server.kill()
        assert process.wait(120) == 1, read_output(chain)
    assert "pipeline: the Prefect server has stopped answering (" in read_output(chain)
    assert "Traceback" not in read_output(chain)
    assert run_dvc(chain, "status", "--json").stdout.strip() == "{}"


def test_a_project_without_git_runs_in_its_folder_and_a_clone_of_it_is_one_error_line(
    chain: Path, prefect_api_url: str, expected_lock: str
) -> None:
    set_duration(chain, 0.0)
    shutil.rmtree(chain / ".git")
    shutil.rmtree(chain / ".dvc")
    run_dvc(chain, "init", "--no-scm", "-q")
    run_flow_module(chain, prefect_api_url=prefect_api_url)
    assert (chain / "dvc.lock").read_text() == expected_lock
    result = run_flow_module(chain, "--where", "clone", prefect_api_url=prefect_api_url, status=1)
    assert [line for line in result.stdout.splitlines() if line] == [
        "git rev-parse HEAD: fatal: not a git repository (or any of the parent directories): .git:"
        " a run in a clone needs a git repository with a commit"
    ]
    assert last_run(prefect_api_url)["state_type"] == "FAILED"
    assert read_trace(chain) == ["quick", "quick", "long", "long"]


def test_a_run_on_a_detached_head_keeps_the_head_and_uncommitted_changes(
    chain: Path, prefect_api_url: str, expected_lock: str
) -> None:
    set_duration(chain, 0.0)
    run_command(chain, "git", "checkout", "-q", "--detach")
    with (chain / "prefect.yaml").open("a") as file:
        file.write("# mine\n")
    (chain / "notes").write_text("mine")
    run_command(chain, "git", "add", "notes")
    head = run_command(chain, "git", "rev-parse", "HEAD").stdout
    run_flow_module(chain, prefect_api_url=prefect_api_url)
    assert run_command(chain, "git", "rev-parse", "HEAD").stdout == head
    status = run_command(chain, "git", "status", "--porcelain").stdout.splitlines()
    assert sorted(status) == [" M .gitignore", " M params.yaml", " M prefect.yaml", "?? dvc.lock", "A  notes"]
    assert (chain / "prefect.yaml").read_text().endswith("# mine\n")
    assert (chain / "dvc.lock").read_text() == expected_lock


def test_a_temporary_server_starts_without_a_writable_home(chain: Path, expected_lock: str) -> None:
    set_duration(chain, 0.0)
    with pipeline_process(chain, None, HOME="/proc/nowhere", PREFECT_API_URL="") as process:
        assert process.wait(120) == 0, read_output(chain)
    assert (chain / "dvc.lock").read_text() == expected_lock
