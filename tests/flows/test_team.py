"""Several machines: one trains and pushes, the others take over what it made; workers die; servers restart."""

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from repositories import DIGITS_PARAMS, create_project
from team import Team, make_team, start_postgres, start_prefect
from toys import post_api, task_runs, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.team]
MODEL = "data/model/model.onnx"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The team, with the project on the embedded digits. Nothing has run yet."""
    folder = tmp_path_factory.mktemp("team")
    params = {**DIGITS_PARAMS, "train.epochs": 2, "machine.arithmetic": "portable", "machine.threads": 1}
    project = create_project(folder / "project", params)
    with make_team(folder, project) as made:
        yield made


def states(team: Team, run: str) -> dict[str, str]:
    return {name: state for name, (_, state, _) in task_runs(team.api, run).items()}


def test_a_worker_trains_and_pushes_and_the_second_restores_everything(team: Team) -> None:
    team.start_worker("one")
    run = team.start_run("lockstep/team")
    entry = team.wait_run(run)
    assert entry["state_type"] == "COMPLETED", team.worker_log("one")[-4000:]
    assert set(states(team, run).values()) == {"Ran"}
    team.stop("worker-one")

    team.start_worker("two")
    run = team.start_run("lockstep/team")
    assert team.wait_run(run)["state_type"] == "COMPLETED", team.worker_log("two")[-4000:]
    assert set(states(team, run).values()) == {"UpToDate"}
    assert "Running stage" not in team.worker_log("two"), "the second worker started a command"

    run = team.start_run("lockstep/team", params={"train": {"seed": 5}})
    assert team.wait_run(run)["state_type"] == "COMPLETED", team.worker_log("two")[-4000:]
    assert states(team, run) == {
        **dict.fromkeys(("download", "preprocess"), "UpToDate"),
        **dict.fromkeys(("train", "evaluate", "export_onnx", "validate_parity"), "Ran"),
    }
    team.stop("worker-two")

    reader = team.clone("reader")
    team.run(reader, "git", "checkout", "-q", "results")
    team.run(reader, "dvc", "pull", "-q")
    assert team.run(reader, "dvc", "status", "--json").stdout.strip() == "{}"
    assert team.run(reader, "lockstep", "verify").returncode == 0


def test_two_workers_at_once_give_the_same_bytes_and_both_push_through_restarts_of_server_and_database(
    team: Team,
) -> None:
    for name in ("left", "right"):
        team.start_worker(name)
    seeds = [{"train": {"seed": 11}}, {"train": {"seed": 12}}, {"train": {"seed": 11}}, {"train": {"seed": 12}}]
    runs = [team.start_run("lockstep/team", params=params, force=True) for params in seeds]
    wait_until(lambda: any("Running stage 'train'" in team.worker_log(name) for name in ("left", "right")), 300)
    team.stop("prefect")
    team.stop("postgres", signal.SIGINT)
    start_postgres(team)
    start_prefect(team)
    for run in runs:
        entry = team.wait_run(run, 900)
        assert entry["state_type"] == "COMPLETED", entry["state"]["message"]
    for name in ("left", "right"):
        team.stop(f"worker-{name}")

    reader = team.clone("counter")
    commits = team.run(reader, "git", "log", "--format=%H %s", "origin/results").stdout.splitlines()
    locks: dict[str, set[str]] = {"seed: 11": set(), "seed: 12": set()}
    for commit in (line.split()[0] for line in commits):
        lock = team.run(reader, "git", "show", f"{commit}:dvc.lock", status=None).stdout
        for seed, found in locks.items():
            if f"        {seed}\n" in lock:
                found.add(lock)
    assert {seed: len(found) for seed, found in locks.items()} == {"seed: 11": 1, "seed: 12": 1}


def test_nightly_ends_with_a_promotion_that_can_be_rolled_back(team: Team) -> None:
    """The automation of deploy/prefect.yaml is switched on, as on Prefect's page."""
    name = {"any_": ["lockstep: promote after team-nightly"]}
    (automation,) = post_api(team.api, "automations/filter", automations={"name": name})
    team.patch(f"automations/{automation['id']}", enabled=True)
    team.start_worker("night")
    for number, seed in enumerate((31, 32), 1):
        assert team.wait_run(team.start_run("lockstep/team-nightly", params={"train": {"seed": seed}}))["state_name"]
        promotion = wait_until(lambda: find_runs(team, "team-promote")[number - 1 :], 60)[0]  # noqa: B023
        entry = team.wait_run(promotion["id"], 600)
        assert entry["state_name"] == "Promoted", entry["state"]["message"]
        tags = team.run(team.origin, "git", "tag", "--points-at", "results").stdout.split()
        assert tags == [f"classifier#prod#{number}", f"classifier@v0.0.{number}"]
    assert team.worker_log("night").count("audit: passed, All 23 outputs have the same bytes as dvc.lock") == 2
    again = team.start_run("lockstep/team-nightly", params={"train": {"seed": 32}})
    assert team.wait_run(again)["state_name"] == "UpToDate"

    entry = team.wait_run(team.start_run("lockstep-audit/team-audit"), 600)
    assert entry["state_name"] == "Reproduced", entry["state"]["message"]
    entry = team.wait_run(team.start_run("lockstep-roll-back/team-roll-back"), 300)
    assert entry["state"]["message"] == "classifier v0.0.1 is prod again"
    assert len(find_runs(team, "team-promote")) == 2  # none after the run with nothing to do
    team.stop("worker-night")
    team.patch(f"automations/{automation['id']}", enabled=False)


def find_runs(team: Team, deployment: str) -> list[dict[str, Any]]:
    """The runs of the deployment, the oldest first."""
    name = {"name": {"any_": [deployment]}}
    return list(post_api(team.api, "flow_runs/filter", deployments=name, sort="EXPECTED_START_TIME_ASC"))


def test_stages_with_the_tag_gpu_run_in_the_gpu_pool_while_it_has_a_worker(team: Team) -> None:
    team.start_worker("cpu")
    team.start_worker("gpu", "team-gpu")
    wait_until(lambda: team.pool_is_ready("team-gpu"), 60)
    run = team.start_run("lockstep/team", params={"train": {"seed": 21}})
    entry = team.wait_run(run, 600)
    assert entry["state_type"] == "COMPLETED", entry["state"]["message"]
    team.stop("worker-cpu")
    team.stop("worker-gpu")
    assert "Running stage 'train':" in team.worker_log("gpu")
    assert "Running stage 'train':" not in team.worker_log("cpu")
    assert "Running stage 'evaluate':" in team.worker_log("cpu")
    expected = {
        **dict.fromkeys(("download", "preprocess"), "UpToDate"),
        **dict.fromkeys(("train", "evaluate", "export_onnx", "validate_parity"), "Ran"),
    }
    assert states(team, run).items() >= expected.items()  # beside the task run that stands for the run in the pool
    reader = team.clone("gpu-reader")
    team.run(reader, "git", "checkout", "-q", "results")
    team.run(reader, "dvc", "pull", "-q")
    assert "seed: 21" in (reader / "params.yaml").read_text()
    assert team.run(reader, "dvc", "status", "--json").stdout.strip() == "{}"


def test_a_late_heartbeat_does_not_change_a_completed_run(team: Team) -> None:
    """As in PrefectHQ/prefect#18653, where a heartbeat that arrives after the end makes a run Crashed."""
    (run, *_) = post_api(team.api, "flow_runs/filter", flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}}, limit=1)
    event = {
        "id": str(uuid4()),
        "event": "prefect.flow-run.heartbeat",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run['id']}", "prefect.resource.name": run["name"]},
        "related": [
            {
                "prefect.resource.id": "prefect.flow.x",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "lockstep",
            }
        ],
    }
    team.send_event(event)
    time.sleep(150)  # longer than the automation waits for the next heartbeat
    (after,) = post_api(team.api, "flow_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert after["state"]["id"] == run["state"]["id"]


def test_a_sweep_over_three_workers_survives_the_death_of_one(team: Team, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        team.start_worker(name)
    grid = {"train.seed": [0, 1, 2, 3], "train.label_smoothing": [0.0, 0.1]}
    run = team.start_run("lockstep-sweep/team-sweep", grid=grid)
    wait_until(lambda: any("Running stage 'train'" in team.worker_log(name) for name in "abc"), 300)
    victim = next(name for name in "abc" if "Running stage 'train'" in team.worker_log(name))
    team.stop(f"worker-{victim}", signal.SIGKILL)
    entry = team.wait_run(run, 1500)
    assert entry["state_type"] == "COMPLETED", entry["state"]["message"]
    for name in set("abc") - {victim}:
        team.stop(f"worker-{name}")

    reader = team.clone("sweeper")
    names = [f"seed-{seed}-label-smoothing-{smoothing}" for seed in range(4) for smoothing in (0.0, 0.1)]
    team.run(reader, "dvc", "exp", "pull", "-q", "origin", *names)
    assert set(names) <= set(team.run(reader, "dvc", "exp", "list", "--name-only").stdout.split())
    team.start_worker("alone")
    alone = team.start_run("lockstep-sweep/team-sweep", grid=grid, limit=1)
    locks = {name: team.run(reader, "git", "show", f"{ref(team, reader, name)}:dvc.lock").stdout for name in names}
    assert team.wait_run(alone, 1500)["state_type"] == "COMPLETED"
    again = team.clone("again")
    team.run(again, "dvc", "exp", "pull", "-q", "origin", *names)
    for name in names:
        assert team.run(again, "git", "show", f"{ref(team, again, name)}:dvc.lock").stdout == locks[name], name
    team.stop("worker-alone")


def ref(team: Team, folder: Path, name: str) -> str:
    """The git ref of a DVC experiment."""
    refs = team.run(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    return next(found for found in refs if found.endswith(f"/{name}"))
