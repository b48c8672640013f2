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
from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from repositories import commit, dvc, environment
from toys import ask, free_port, new_toy, prefect_server, task_runs, trace, until, until_none_is_left

from flows.dvc.command import is_locked

pytestmark = [pytest.mark.slow, pytest.mark.ci]
CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
NIGHTLY = '{cron: "0 3 * * *", timezone: UTC}'
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
ENDED = 10.0  # seconds in which nothing may be left
ALWAYS = "{interval: 15}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own: other modules' last run is not one of a schedule."""
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
    return new_toy(tmp_path / "a toy", CHAIN)


@pytest.fixture(scope="module")
def place(pool: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose nightly and on-demand are deployed."""
    toy = new_toy(tmp_path_factory.mktemp("place") / "a toy", CHAIN)
    prefect(toy, pool, "deploy", "-n", "nightly", "-n", "on-demand")
    return toy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dvc.lock of a twin in which nothing went wrong, by DVC alone."""
    twin = new_toy(tmp_path_factory.mktemp("twin") / "toy", CHAIN)
    dvc(twin, "repro", "-q")
    return (twin / "dvc.lock").read_text()


def settings(api: str) -> dict[str, str]:
    return {**environment(), "PREFECT_API_URL": api, "no_proxy": "127.0.0.1", "PREFECT_WORKER_QUERY_SECONDS": "1"}


def prefect(folder: Path, api: str, *words: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, cwd=folder, env=settings(api), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def program(toy: Path, api: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m WORDS` in the background, its output in a file beside the toy."""
    with (toy.parent / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=toy, env=settings(api), stdout=output, stderr=output, process_group=0
        )
    everyone = [psutil.Process(process.pid)]
    try:
        yield process
    finally:
        everyone += everyone[0].children(recursive=True) if process.poll() is None else []
        for one in everyone:
            if one.is_running():
                one.kill()
        process.wait()
        until_none_is_left(toy, 20)


def worker(toy: Path, api: str) -> Any:
    return program(toy, api, "prefect", "worker", "start", "--pool", "lockstep", "--name", toy.parent.name)


def output(toy: Path) -> str:
    return (toy.parent / "output").read_text()


def deployments(api: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in ask(api, "deployments/filter")}


def runs_of(api: str, deployment: str) -> list[dict[str, Any]]:
    """Its runs that are not of the future, the first one first."""
    body = {"id": {"any_": [deployments(api)[deployment]["id"]]}}
    found = ask(api, "flow_runs/filter", deployments=body, sort="EXPECTED_START_TIME_ASC", limit=200)
    return [one for one in found if one["state_type"] not in ("SCHEDULED", "PENDING")]


def change(toy: Path, file: str, old: str, new: str) -> None:
    text = (toy / file).read_text()
    assert old in text
    (toy / file).write_text(text.replace(old, new))


def finished(api: str, deployment: str, seconds: float = 90) -> dict[str, Any]:
    """The deployment's last run, when it has ended."""
    until(lambda: (found := runs_of(api, deployment)) and found[-1]["state_type"] in ENDS, seconds)
    return runs_of(api, deployment)[-1]


def last_for(toy: Path, seconds: float) -> None:
    params = json.loads((toy / "params.yaml").read_text())
    params["long"]["seconds"] = seconds
    (toy / "params.yaml").write_text(json.dumps(params, indent=1))


def start(toy: Path, api: str, deployment: str, *words: str) -> None:
    prefect(toy, api, "deployment", "run", f"lockstep/{deployment}", *words)


def until_long_runs(toy: Path) -> None:
    before = len(trace(toy))
    try:
        until(lambda: len(trace(toy)) > before and trace(toy)[-1] == "long", 180)
    except AssertionError as error:
        raise AssertionError(f"{error}: {trace(toy)}\n{output(toy)[-4000:]}") from None


def assert_nothing_is_left(toy: Path, since: float, engines: list[psutil.Process]) -> None:
    until_none_is_left(toy, ENDED - (time.monotonic() - since))
    assert not is_locked(toy / ".dvc" / "tmp" / "lock")
    assert "long" in dvc(toy, "status", "--json").stdout
    until(lambda: not any(one.is_running() for one in engines), ENDED)


def most_at_once(runs: list[dict[str, Any]]) -> int:
    moments = [(one["start_time"], 1) for one in runs] + [(one["end_time"], -1) for one in runs]
    return max(itertools.accumulate(step for _, step in sorted(moments)))


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_all_deployments_are_made_with_their_schedules_and_limits_and_one_automation(chain: Path, pool: str) -> None:
    prefect(chain, pool, "deploy", "--all")
    made = deployments(pool)
    assert sorted(made) == ["nightly", "on-demand", "sweep", "weekly-audit"]
    schedules = {name: [item["schedule"] for item in one["schedules"]] for name, one in made.items()}
    assert [(one["cron"], one["timezone"]) for one in schedules["nightly"]] == [("0 3 * * *", "UTC")]
    assert [(one["cron"], one["timezone"]) for one in schedules["weekly-audit"]] == [("0 4 * * 0", "UTC")]
    assert schedules["on-demand"] == schedules["sweep"] == []
    for name in ("nightly", "sweep", "weekly-audit"):
        assert made[name]["global_concurrency_limit"]["limit"] == 1
        assert made[name]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert made["on-demand"]["global_concurrency_limit"]["limit"] == 2
    assert made["on-demand"]["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    automation = ask(pool, "automations/filter")
    assert [one["name"] for one in automation] == ["lockstep: end runs that show no sign of life"]
    prefect(chain, pool, "deploy", "-n", "nightly")
    assert [one["id"] for one in ask(pool, "automations/filter")] == [automation[0]["id"]]
    assert len(deployments(pool)) == 4


def test_a_schedule_runs_what_is_stale_skips_what_overlaps_and_finds_the_rest_up_to_date(
    chain: Path, pool: str
) -> None:
    last_for(chain, 15)
    change(chain, "prefect.yaml", NIGHTLY, ALWAYS)
    prefect(chain, pool, "deploy", "-n", "nightly")
    try:
        with worker(chain, pool):
            until(lambda: any(one["state_name"] == "UpToDate" for one in runs_of(pool, "nightly")), 120)
            found = runs_of(pool, "nightly")
    finally:
        change(chain, "prefect.yaml", ALWAYS, NIGHTLY)
        prefect(chain, pool, "deploy", "-n", "nightly")
    assert all(one["auto_scheduled"] for one in found)
    assert (found[0]["state_name"], found[0]["name"]) == ("Completed", "ran quick, long (never ran)")
    stages = {"quick": ("COMPLETED", "Ran", "never ran"), "long": ("COMPLETED", "Ran", "never ran")}
    assert task_runs(pool, found[0]["id"]) == stages
    assert found[1]["state_type"] == "CANCELLED"
    assert found[1]["state"]["message"] == "Deployment concurrency limit reached."
    late = next(one for one in found if one["state_name"] == "UpToDate")
    assert {name for _, name, _ in task_runs(pool, late["id"]).values()} == {"UpToDate"}
    assert trace(chain) == ["quick", "quick", "long", "long"]


def test_on_demand_runs_with_params_in_a_clean_clone_and_leaves_the_working_tree(place: Path, pool: str) -> None:
    last_for(place, 60)
    before = (place / "params.yaml").read_bytes()
    with worker(place, pool):
        start(place, pool, "on-demand", "-p", 'params={"quick": {"text": "other"}}')
        one = finished(pool, "on-demand")
    assert (one["state_type"], one["name"]) == ("COMPLETED", "ran quick, long (never ran)")
    assert one["parameters"] == {"where": "clone", "params": {"quick": {"text": "other"}}}
    assert "quick says other" in output(place)
    assert (place / "params.yaml").read_bytes() == before
    assert not (place / "dvc.lock").exists()
    assert [path.name for path in (place / ".dvc/tmp/clones").iterdir()] == ["lock"]


def test_a_cancelled_run_leaves_nothing_and_the_next_one_succeeds(place: Path, pool: str, undisturbed: str) -> None:
    last_for(place, 60)
    with worker(place, pool) as process:
        start(place, pool, "on-demand", "-p", 'where="tree"')
        until_long_runs(place)
        engines = children(process)
        prefect(place, pool, "flow-run", "cancel", runs_of(pool, "on-demand")[-1]["id"])
        assert_nothing_is_left(place, time.monotonic(), engines)
        one = finished(pool, "on-demand", ENDED)
        assert one["state_name"] == "Cancelled"
        assert task_runs(pool, one["id"])["long"][0] == "CRASHED"
        last_for(place, 0.0)
        start(place, pool, "on-demand", "-p", 'where="tree"')
        until(lambda: runs_of(pool, "on-demand")[-1]["id"] != one["id"], 60)
        assert finished(pool, "on-demand")["state_type"] == "COMPLETED"
    assert (place / "dvc.lock").read_text() == undisturbed


def test_a_worker_that_is_ended_takes_its_run_with_it_which_is_then_called_crashed(place: Path, pool: str) -> None:
    last_for(place, 60)
    change(place, "flows/automation.py", "seconds=120", "seconds=45")  # more than a heartbeat
    subprocess.run([sys.executable, "-m", "flows.automation"], cwd=place, env=settings(pool), check=True)
    with worker(place, pool) as process:
        start(place, pool, "on-demand", "-p", 'where="tree"')
        until_long_runs(place)
        engines = children(process)
        process.terminate()
        assert_nothing_is_left(place, time.monotonic(), engines)
        process.wait(ENDED)
    one = finished(pool, "on-demand", 95)  # by the automation: the worker said nothing
    assert (one["state_type"], one["state"]["message"]) == ("CRASHED", "No sign of life: its worker or machine died")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_serves_the_deployments_and_leaves_nothing_when_it_is_ended(
    chain: Path, server: str, number: signal.Signals
) -> None:
    with program(chain, server, "flows.serve_deployments") as process:
        until(lambda: "Serving nightly, weekly-audit, on-demand, sweep on http" in output(chain), 60)
        made = deployments(server)
        assert sorted(made) == ["nightly", "on-demand", "sweep", "weekly-audit"]
        assert made["nightly"]["global_concurrency_limit"]["limit"] == 1
        assert made["nightly"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert [one["schedule"]["cron"] for one in made["nightly"]["schedules"]] == ["0 3 * * *"]
        start(chain, server, "on-demand", "-p", 'where="tree"')
        until(lambda: "Finished in state Completed" in output(chain), 60)
        last_for(chain, 60)
        start(chain, server, "on-demand", "-p", 'where="tree"')
        until_long_runs(chain)
        engines = children(process)
        process.send_signal(number)
        assert_nothing_is_left(chain, time.monotonic(), engines)
        assert process.wait(ENDED) == 0
    assert runs_of(server, "on-demand")[-1]["state_type"] == "CANCELLED"


def test_of_many_runs_asked_for_at_once_the_limit_run_and_the_others_wait_their_turn(chain: Path, server: str) -> None:
    last_for(chain, 5)
    commit(chain)
    with program(chain, server, "flows.serve_deployments"):
        until(lambda: "Serving" in output(chain), 60)
        made, before = deployments(server)["on-demand"], len(runs_of(server, "on-demand"))
        assert made["global_concurrency_limit"]["limit"] == 2
        assert made["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
            for number in range(5):
                params = {"quick": {"text": f"run {number}"}}  # each runs anew
                client.create_flow_run_from_deployment(made["id"], parameters={"where": "clone", "params": params})
        runs = until(
            lambda: (
                len(found := runs_of(server, "on-demand")[before:]) == 5
                and all(one["state_type"] in ENDS for one in found)
                and found
            ),
            240,
        )
    assert [one["state_type"] for one in runs] == ["COMPLETED"] * 5
    assert most_at_once(runs) == 2
