"""The deployments of prefect.yaml on a real server, run by a real worker and by the process that serves them."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from repositories import command_environment, commit_all, run_dvc
from ruamel.yaml import YAML
from toys import (
    create_toy_repository,
    free_port,
    is_locked,
    post_api,
    prefect_server,
    read_trace,
    task_runs,
    wait_until,
    wait_until_no_processes,
)

pytestmark = [pytest.mark.slow, pytest.mark.ci]
DEPLOYMENTS = [entry["name"] for entry in YAML(typ="safe", pure=True).load(ROOT / "prefect.yaml")["deployments"]]
CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
NIGHTLY = '{cron: "0 3 * * *", timezone: UTC}'
FINAL_STATES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
CLEANUP_TIMEOUT = 10.0  # seconds until all processes must be gone
EVERY_15_SECONDS = "{interval: 15}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for this module alone, because other modules look at their server's last run."""
    with prefect_server(tmp_path_factory.mktemp("prefect"), free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def pool(server: str) -> str:
    """The server, with the work pool that prefect.yaml names."""
    prefect(Path.cwd(), server, "work-pool", "create", "lockstep", "--type", "process")
    return server


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two stages in a row."""
    return create_toy_repository(tmp_path / "a toy", CHAIN)


@pytest.fixture(scope="module")
def deployed_toy(pool: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose nightly and on-demand are deployed."""
    toy_repository = create_toy_repository(tmp_path_factory.mktemp("place") / "a toy", CHAIN)
    prefect(toy_repository, pool, "deploy", "-n", "nightly", "-n", "on-demand")
    return toy_repository


@pytest.fixture(scope="module")
def expected_lock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dvc.lock of a twin in which nothing went wrong, by DVC alone."""
    twin = create_toy_repository(tmp_path_factory.mktemp("twin") / "toy", CHAIN)
    run_dvc(twin, "repro", "-q")
    return (twin / "dvc.lock").read_text()


def prefect_environment(prefect_api_url: str) -> dict[str, str]:
    return {
        **command_environment(),
        "PREFECT_API_URL": prefect_api_url,
        "no_proxy": "127.0.0.1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }


def prefect(folder: Path, prefect_api_url: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    result = subprocess.run(
        command, cwd=folder, env=prefect_environment(prefect_api_url), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@contextmanager
def run_module(toy_repository: Path, prefect_api_url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m ARGUMENTS` in the background, with its output in a file next to the toy."""
    with (toy_repository.parent / "output").open("ab") as output_file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=toy_repository,
            env=prefect_environment(prefect_api_url),
            stdout=output_file,
            stderr=output_file,
            process_group=0,
        )
    processes = [psutil.Process(process.pid)]
    try:
        yield process
    finally:
        processes += processes[0].children(recursive=True) if process.poll() is None else []
        for entry in processes:
            if entry.is_running():
                entry.kill()
        process.wait()
        wait_until_no_processes(toy_repository, 20)


def run_worker(toy_repository: Path, prefect_api_url: str) -> Any:
    return run_module(
        toy_repository,
        prefect_api_url,
        "prefect",
        "worker",
        "start",
        "--pool",
        "lockstep",
        "--name",
        toy_repository.parent.name,
    )


def read_output(toy_repository: Path) -> str:
    return (toy_repository.parent / "output").read_text()


def deployments(prefect_api_url: str) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in post_api(prefect_api_url, "deployments/filter")}


def runs_of(prefect_api_url: str, deployment: str) -> list[dict[str, Any]]:
    """Its runs that have started, in order."""
    body = {"id": {"any_": [deployments(prefect_api_url)[deployment]["id"]]}}
    runs = post_api(prefect_api_url, "flow_runs/filter", deployments=body, sort="EXPECTED_START_TIME_ASC", limit=200)
    return [entry for entry in runs if entry["state_type"] not in ("SCHEDULED", "PENDING")]


def replace_in_file(toy_repository: Path, file: str, old: str, new: str) -> None:
    text = (toy_repository / file).read_text()
    assert old in text
    (toy_repository / file).write_text(text.replace(old, new))


def wait_finished(prefect_api_url: str, deployment: str, seconds: float = 90) -> dict[str, Any]:
    """The deployment's last run, when it has ended."""
    wait_until(
        lambda: (runs := runs_of(prefect_api_url, deployment)) and runs[-1]["state_type"] in FINAL_STATES, seconds
    )
    return runs_of(prefect_api_url, deployment)[-1]


def set_duration(toy_repository: Path, seconds: float) -> None:
    params = json.loads((toy_repository / "params.yaml").read_text())
    params["long"]["seconds"] = seconds
    (toy_repository / "params.yaml").write_text(json.dumps(params, indent=1))


def run_deployment(toy_repository: Path, prefect_api_url: str, deployment: str, *arguments: str) -> None:
    prefect(toy_repository, prefect_api_url, "deployment", "run", f"lockstep/{deployment}", *arguments)


def wait_until_long_runs(toy_repository: Path) -> None:
    before = len(read_trace(toy_repository))
    try:
        wait_until(lambda: len(read_trace(toy_repository)) > before and read_trace(toy_repository)[-1] == "long", 180)
    except AssertionError as error:
        raise AssertionError(f"{error}: {read_trace(toy_repository)}\n{read_output(toy_repository)[-4000:]}") from None


def assert_cleaned_up(toy_repository: Path, start_time: float, engines: list[psutil.Process]) -> None:
    wait_until_no_processes(toy_repository, CLEANUP_TIMEOUT - (time.monotonic() - start_time))
    assert not is_locked(toy_repository / ".dvc" / "tmp" / "lock")
    assert "long" in run_dvc(toy_repository, "status", "--json").stdout
    wait_until(lambda: not any(entry.is_running() for entry in engines), CLEANUP_TIMEOUT)


def max_parallel(runs: list[dict[str, Any]]) -> int:
    events = [(entry["start_time"], 1) for entry in runs] + [(entry["end_time"], -1) for entry in runs]
    return max(itertools.accumulate(step for _, step in sorted(events)))


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_all_deployments_are_made_with_their_schedules_and_limits_and_automations(chain: Path, pool: str) -> None:
    prefect(chain, pool, "deploy", "--all")
    deployment_data = deployments(pool)
    assert {*deployment_data} == {*DEPLOYMENTS} >= {"nightly", "on-demand", "sweep", "weekly-audit"}
    schedules = {name: [item["schedule"] for item in entry["schedules"]] for name, entry in deployment_data.items()}
    assert [(entry["cron"], entry["timezone"]) for entry in schedules["nightly"]] == [("0 3 * * *", "UTC")]
    assert [(entry["cron"], entry["timezone"]) for entry in schedules["weekly-audit"]] == [("0 4 * * 0", "UTC")]
    assert schedules["on-demand"] == schedules["sweep"] == []
    for name in ("nightly", "sweep", "weekly-audit"):
        assert deployment_data[name]["global_concurrency_limit"]["limit"] == 1
        assert deployment_data[name]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployment_data["on-demand"]["global_concurrency_limit"]["limit"] == 2
    assert deployment_data["on-demand"]["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    automations = {entry["name"]: entry["id"] for entry in post_api(pool, "automations/filter")}
    assert {*automations} == {
        "lockstep: end runs that show no sign of life",
        "lockstep: promote after nightly",
        "lockstep: run again what died in a team's pool",
    }
    prefect(chain, pool, "deploy", "-n", "nightly")
    assert {entry["name"]: entry["id"] for entry in post_api(pool, "automations/filter")} == automations
    assert {*deployments(pool)} == {*DEPLOYMENTS}


def test_a_schedule_runs_stale_stages_and_cancels_overlapping_runs(chain: Path, pool: str) -> None:
    set_duration(chain, 15)
    replace_in_file(chain, "prefect.yaml", NIGHTLY, EVERY_15_SECONDS)
    prefect(chain, pool, "deploy", "-n", "nightly")
    try:
        with run_worker(chain, pool):
            wait_until(lambda: any(entry["state_name"] == "UpToDate" for entry in runs_of(pool, "nightly")), 120)
            runs = runs_of(pool, "nightly")
    finally:
        replace_in_file(chain, "prefect.yaml", EVERY_15_SECONDS, NIGHTLY)
        prefect(chain, pool, "deploy", "-n", "nightly")
    assert all(entry["auto_scheduled"] for entry in runs)
    assert (runs[0]["state_name"], runs[0]["name"]) == ("Completed", "ran quick, long (never ran)")
    stages = {"quick": ("COMPLETED", "Ran", "never ran"), "long": ("COMPLETED", "Ran", "never ran")}
    assert task_runs(pool, runs[0]["id"]) == stages
    assert runs[1]["state_type"] == "CANCELLED"
    assert runs[1]["state"]["message"] == "Deployment concurrency limit reached."
    late = next(entry for entry in runs if entry["state_name"] == "UpToDate")
    assert {name for _, name, _ in task_runs(pool, late["id"]).values()} == {"UpToDate"}
    assert read_trace(chain) == ["quick", "quick", "long", "long"]


def test_on_demand_runs_with_params_in_a_clean_clone(deployed_toy: Path, pool: str) -> None:
    set_duration(deployed_toy, 60)
    before = (deployed_toy / "params.yaml").read_bytes()
    with run_worker(deployed_toy, pool):
        run_deployment(deployed_toy, pool, "on-demand", "-p", 'params={"quick": {"text": "other"}}')
        flow_run = wait_finished(pool, "on-demand")
    assert (flow_run["state_type"], flow_run["name"]) == ("COMPLETED", "ran quick, long (never ran)")
    assert flow_run["parameters"] == {"where": "clone", "params": {"quick": {"text": "other"}}}
    assert "quick says other" in read_output(deployed_toy)
    assert (deployed_toy / "params.yaml").read_bytes() == before
    assert not (deployed_toy / "dvc.lock").exists()
    assert [path.name for path in (deployed_toy / ".dvc/tmp/clones").iterdir()] == ["lock"]


def test_a_cancelled_run_leaves_no_process_and_the_next_run_succeeds(
    deployed_toy: Path, pool: str, expected_lock: str
) -> None:
    set_duration(deployed_toy, 60)
    with run_worker(deployed_toy, pool) as process:
        run_deployment(deployed_toy, pool, "on-demand", "-p", 'where="tree"')
        wait_until_long_runs(deployed_toy)
        engines = children(process)
        prefect(deployed_toy, pool, "flow-run", "cancel", runs_of(pool, "on-demand")[-1]["id"])
        assert_cleaned_up(deployed_toy, time.monotonic(), engines)
        flow_run = wait_finished(pool, "on-demand", CLEANUP_TIMEOUT)
        assert flow_run["state_name"] == "Cancelled"
        assert task_runs(pool, flow_run["id"])["long"][0] == "CRASHED"
        set_duration(deployed_toy, 0.0)
        run_deployment(deployed_toy, pool, "on-demand", "-p", 'where="tree"')
        wait_until(lambda: runs_of(pool, "on-demand")[-1]["id"] != flow_run["id"], 60)
        assert wait_finished(pool, "on-demand")["state_type"] == "COMPLETED"
    assert (deployed_toy / "dvc.lock").read_text() == expected_lock


def test_the_run_of_a_stopped_worker_ends_and_is_marked_as_crashed(deployed_toy: Path, pool: str) -> None:
    set_duration(deployed_toy, 60)
    replace_in_file(deployed_toy, "flows/automation.py", "seconds=120", "seconds=45")  # more than a heartbeat
    subprocess.run(
        [sys.executable, "-m", "flows.automation"], cwd=deployed_toy, env=prefect_environment(pool), check=True
    )
    with run_worker(deployed_toy, pool) as process:
        run_deployment(deployed_toy, pool, "on-demand", "-p", 'where="tree"')
        wait_until_long_runs(deployed_toy)
        engines = children(process)
        process.terminate()
        assert_cleaned_up(deployed_toy, time.monotonic(), engines)
        process.wait(CLEANUP_TIMEOUT)
    flow_run = wait_finished(pool, "on-demand", 95)  # by the automation: the worker said nothing
    assert (flow_run["state_type"], flow_run["state"]["message"]) == (
        "CRASHED",
        "No sign of life: its worker or machine died",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_deployments_serves_all_and_leaves_no_process_after_a_signal(
    chain: Path, server: str, number: signal.Signals
) -> None:
    with run_module(chain, server, "flows.serve_deployments") as process:
        wait_until(lambda: f"Serving {', '.join(DEPLOYMENTS)} on http" in read_output(chain), 60)
        deployment_data = deployments(server)
        assert {*deployment_data} == {*DEPLOYMENTS}
        assert deployment_data["nightly"]["global_concurrency_limit"]["limit"] == 1
        assert deployment_data["nightly"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert [entry["schedule"]["cron"] for entry in deployment_data["nightly"]["schedules"]] == ["0 3 * * *"]
        run_deployment(chain, server, "on-demand", "-p", 'where="tree"')
        wait_until(lambda: "Finished in state Completed" in read_output(chain), 60)
        set_duration(chain, 60)
        run_deployment(chain, server, "on-demand", "-p", 'where="tree"')
        wait_until_long_runs(chain)
        engines = children(process)
        process.send_signal(number)
        assert_cleaned_up(chain, time.monotonic(), engines)
        assert process.wait(CLEANUP_TIMEOUT) == 0
    assert runs_of(server, "on-demand")[-1]["state_type"] == "CANCELLED"


def test_of_five_runs_at_once_two_run_and_the_others_wait(chain: Path, server: str) -> None:
    set_duration(chain, 5)
    commit_all(chain)
    with run_module(chain, server, "flows.serve_deployments"):
        wait_until(lambda: "Serving" in read_output(chain), 60)
        deployment_data, before = deployments(server)["on-demand"], len(runs_of(server, "on-demand"))
        assert deployment_data["global_concurrency_limit"]["limit"] == 2
        assert deployment_data["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
            for number in range(5):
                params = {"quick": {"text": f"run {number}"}}  # no two runs have the same params
                client.create_flow_run_from_deployment(
                    deployment_data["id"], parameters={"where": "clone", "params": params}
                )
        runs = wait_until(
            lambda: (
                len(runs := runs_of(server, "on-demand")[before:]) == 5
                and all(entry["state_type"] in FINAL_STATES for entry in runs)
                and runs
            ),
            240,
        )
    assert [entry["state_type"] for entry in runs] == ["COMPLETED"] * 5
    assert max_parallel(runs) == 2
