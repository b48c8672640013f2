"""Runs on several machines: results travel as commits of a branch of origin, and data through a DVC remote."""

from pathlib import Path

import pytest
from repositories import commit_all, run_command, run_dvc
from toys import CompletedCommand, create_toy_repository, last_run, read_trace, run_flow_module, task_runs

pytestmark = [pytest.mark.slow, pytest.mark.ci]
ON_BRANCH = ("--where", "clone", "--commit-to", "results", "--push")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A bare repository with the toy after its first `dvc repro`, and its data in a DVC remote."""
    toy_repository = create_toy_repository(tmp_path / "first" / "a toy")
    run_dvc(toy_repository, "remote", "add", "-q", "--default", "storage", str(tmp_path / "storage"))
    run_dvc(toy_repository, "repro", "-q")
    commit_all(toy_repository)
    run_dvc(toy_repository, "push", "-q")
    run_command(tmp_path, "git", "clone", "-q", "--bare", str(toy_repository), "origin.git")
    return tmp_path / "origin.git"


def clone_machine(origin: Path, name: str) -> Path:
    """A clone as on another machine: it has no data and an empty DVC cache."""
    folder = origin.parent / name
    run_command(origin.parent, "git", "clone", "-q", str(origin), name)
    return folder


def run_states(prefect_api_url: str, folder: Path, *flags: str) -> tuple[CompletedCommand, dict[str, str]]:
    """The output of a run that pushes, and the state of each stage."""
    result = run_flow_module(folder, *ON_BRANCH, *flags, prefect_api_url=prefect_api_url)
    states = task_runs(prefect_api_url, last_run(prefect_api_url)["id"])
    return result, {name: state for name, (_, state, _) in states.items()}


def test_a_second_machine_takes_over_what_the_first_has_run(origin: Path, prefect_api_url: str) -> None:
    first, second = clone_machine(origin, "one"), clone_machine(origin, "two")
    result, states = run_states(prefect_api_url, first, "-S", "left.text=l")
    assert states == {"make": "UpToDate", "left": "Ran", "right": "UpToDate", "join": "Ran"}
    assert "Committed to the branch results of origin" in result.stdout
    assert run_command(first, "git", "branch", "--list", "results").stdout == "", (
        "the clone's own branches are left alone"
    )

    result, states = run_states(prefect_api_url, second, "-S", "left.text=l")
    assert set(states.values()) == {"UpToDate"}
    assert "which has 4 of 4 stages with these inputs" in result.stdout
    assert "Running stage" not in result.stdout
    result, states = run_states(prefect_api_url, second, "-S", "left.text=l", "-S", "right.text=r")
    assert states == {"make": "UpToDate", "left": "UpToDate", "right": "Ran", "join": "Ran"}
    _, states = run_states(prefect_api_url, first, "-S", "left.text=l")
    assert set(states.values()) == {"UpToDate"}, "an older commit of the branch has it"

    subjects = run_command(origin, "git", "log", "--format=%s", "results").stdout.splitlines()
    assert len(subjects) == 4, "two results, and the two commits that they started from"
    person = clone_machine(origin, "person")
    run_command(person, "git", "checkout", "-q", "results")
    run_dvc(person, "pull")
    assert (person / "join.txt").read_text() == "joinlmakermake"
    assert run_dvc(person, "status", "--json").stdout.strip() == "{}"


def test_push_without_an_origin_or_a_branch_is_one_line(toy_repository: Path, prefect_api_url: str) -> None:
    for flags, expected in (
        (ON_BRANCH, "git remote get-url origin: error: No such remote 'origin'"),
        (("--where", "clone", "--push"), "push needs commit_to: the branch of origin"),
    ):
        result = run_flow_module(toy_repository, *flags, prefect_api_url=prefect_api_url, status=1)
        assert result.stdout.strip().splitlines()[-1].startswith(expected)
    assert read_trace(toy_repository) == []
