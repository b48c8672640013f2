"""A run that is interrupted, killed or disturbed leaves no process and no lock, and the next one makes it whole."""

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
from toys import flow, free_port, last_run, new_toy, prefect_server, task_runs, trace, until, until_none_is_left

from flows.dvc.command import is_locked

CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
ENDED = 10.0  # seconds in which nothing may be left
pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two stages, of which the second takes a minute."""
    toy = new_toy(tmp_path / "a toy", CHAIN)
    last_for(toy, 60)
    commit(toy)
    return toy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dvc.lock of a twin in which nothing went wrong, by DVC alone."""
    twin = new_toy(tmp_path_factory.mktemp("twin") / "toy", CHAIN)
    dvc(twin, "repro", "-q")
    return (twin / "dvc.lock").read_text()


def last_for(toy: Path, seconds: float) -> None:
    params = json.loads((toy / "params.yaml").read_text())
    params["long"]["seconds"] = seconds
    (toy / "params.yaml").write_text(json.dumps(params, indent=1))


@contextmanager
def running(toy: Path, api: str | None, *words: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m flows.pipeline WORDS`, as a terminal starts it: in a process group of its own."""
    env = {**environment(), "no_proxy": "127.0.0.1", **({"PREFECT_API_URL": api} if api else {}), **more}
    with (toy.parent / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline", *words],
            cwd=toy,
            env=env,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        until_none_is_left(toy, 20)


def output(toy: Path) -> str:
    return (toy.parent / "output").read_text()


def assert_nothing_is_left(toy: Path, since: float) -> None:
    until_none_is_left(toy, ENDED - (time.monotonic() - since))
    assert not is_locked(toy / ".dvc" / "tmp" / "lock")
    assert "long" in dvc(toy, "status", "--json").stdout


def assert_the_next_run_succeeds(toy: Path, api: str, undisturbed: str) -> None:
    last_for(toy, 0.0)
    assert "quick             UpToDate" in flow(toy, api=api).stdout
    assert (toy / "dvc.lock").read_text() == undisturbed
    assert dvc(toy, "status", "--json").stdout.strip() == "{}"


INTERRUPTED = ("CRASHED", "Execution was")  # cancelled or aborted, and by what


@pytest.mark.parametrize(
    ("number", "status", "state"),
    [
        (signal.SIGINT, 130, INTERRUPTED),
        (signal.SIGTERM, 143, INTERRUPTED),
        (signal.SIGKILL, -9, ("RUNNING", "")),  # nobody is left who could tell
    ],
)
def test_a_run_that_a_signal_ends_leaves_nothing_and_the_next_one_succeeds(
    chain: Path, api: str, undisturbed: str, number: signal.Signals, status: int, state: tuple[str, str]
) -> None:
    with running(chain, api) as process:
        until(lambda: trace(chain)[-1:] == ["long"], 60)
        since = time.monotonic()
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert_nothing_is_left(chain, since)
        assert process.wait(ENDED) == status
    assert "Traceback" not in output(chain)
    one = last_run(api)
    assert one["state_type"] == state[0]
    assert (one["state"]["message"] or "").startswith(state[1])
    assert task_runs(api, one["id"])["quick"] == ("COMPLETED", "Ran", "never ran")
    assert_the_next_run_succeeds(chain, api, undisturbed)


def test_a_signal_in_the_middle_of_a_line_ends_the_run_no_worse(chain: Path, api: str) -> None:
    stage = chain / "stages" / "long.py"
    talk = "for _ in range(10**9): print('says more')"
    stage.write_text(stage.read_text().replace("time.sleep(toy.seconds)", talk))
    with running(chain, api) as process:
        until(lambda: trace(chain)[-1:] == ["long"], 60)
        time.sleep(1)
        since = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert_nothing_is_left(chain, since)
        assert process.wait(ENDED) in (143, -signal.SIGTERM)  # a shell calls both 143
    assert "Traceback" not in output(chain)
    assert last_run(api)["state_type"] == "CRASHED"


def test_two_runs_at_once_both_end_well_and_no_stage_runs_twice(toy: Path, api: str) -> None:
    with running(toy, api) as process:
        done = flow(toy, api=api)
        assert process.wait(60) == 0
    began_and_ended = trace(toy)
    assert sorted(began_and_ended) == sorted(2 * ["make", "left", "right", "join"])
    for name in ("make", "left", "right", "join"):
        assert "Ran after" in "".join(
            line for line in (done.stdout + output(toy)).splitlines() if line.startswith(name)
        )
    assert dvc(toy, "status", "--json").stdout.strip() == "{}"


def test_a_run_waits_for_a_persons_long_repro_and_says_so(chain: Path, api: str) -> None:
    last_for(chain, 25.0)
    with subprocess.Popen(["dvc", "repro", "-q"], cwd=chain, env=environment()) as person:
        until(lambda: trace(chain)[-1:] == ["long"], 60)
        done = flow(chain, api=api)
        assert person.wait(0) == 0
    assert trace(chain) == ["quick", "quick", "long", "long"]
    assert "Waiting for another DVC command:" in done.stdout
    assert "dvc repro -q" in done.stdout
    assert "ERROR" not in done.stdout
    assert dvc(chain, "status", "--json").stdout.strip() == "{}"


def test_a_run_whose_server_is_killed_and_comes_back_ends_as_if_nothing_had_been(
    tmp_path: Path, chain: Path, undisturbed: str
) -> None:
    last_for(chain, 1.0)  # it ends while there is no server
    (home := tmp_path / "prefect").mkdir()
    port = free_port()
    with prefect_server(home, port) as api, running(chain, api) as process:
        until(lambda: trace(chain)[-1:] == ["long"], 60)
        for one in psutil.process_iter(["cmdline"]):
            if f"--port {port}" in " ".join(one.info["cmdline"] or []):
                one.kill()
        time.sleep(5)
        with prefect_server(home, port):
            assert process.wait(120) == 0
            one = last_run(api)
            assert (one["state_type"], one["name"]) == ("COMPLETED", "ran quick, long (never ran)")
            assert task_runs(api, one["id"])["long"] == ("COMPLETED", "Ran", "never ran")
            assert "Traceback" not in output(chain)
            assert_the_next_run_succeeds(chain, api, undisturbed)


def test_a_project_without_git_runs_in_its_folder_and_a_clone_of_it_is_refused_in_one_line(
    chain: Path, api: str, undisturbed: str
) -> None:
    last_for(chain, 0.0)
    shutil.rmtree(chain / ".git")
    shutil.rmtree(chain / ".dvc")
    dvc(chain, "init", "--no-scm", "-q")
    flow(chain, api=api)
    assert (chain / "dvc.lock").read_text() == undisturbed
    done = flow(chain, "--where", "clone", api=api, status=1)
    assert [line for line in done.stdout.splitlines() if line] == [
        "git rev-parse HEAD: fatal: not a git repository (or any of the parent directories): .git:"
        " a run in a clone needs a git repository with a commit"
    ]
    assert last_run(api)["state_type"] == "FAILED"
    assert trace(chain) == ["quick", "quick", "long", "long"]


def test_a_run_on_a_detached_head_touches_neither_it_nor_what_one_has_changed(
    chain: Path, api: str, undisturbed: str
) -> None:
    last_for(chain, 0.0)
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
    assert (chain / "dvc.lock").read_text() == undisturbed


def test_a_home_that_cannot_be_written_is_no_obstacle_to_a_temporary_server(chain: Path, undisturbed: str) -> None:
    last_for(chain, 0.0)
    with running(chain, None, HOME="/proc/nowhere", PREFECT_API_URL="") as process:
        assert process.wait(120) == 0, output(chain)
    assert (chain / "dvc.lock").read_text() == undisturbed
