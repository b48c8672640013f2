"""A run in a clean clone ignores uncommitted changes, shares the cache, and can commit and push."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from repositories import commit_all, run_command, run_dvc
from toys import create_toy_repository, last_run, read_trace, run_flow_module, task_runs

from flows.dvc.params_file import get_param, set_param


@pytest.fixture
def finished_toy(toy_repository: Path) -> Path:
    """The toy after its first `dvc repro`, committed."""
    run_dvc(toy_repository, "repro")
    commit_all(toy_repository)
    (toy_repository / "trace").unlink()
    return toy_repository


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "trace"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_in_a_clone_changes_no_file_of_the_project_and_commits_to_a_branch(
    finished_toy: Path, prefect_api_url: str
) -> None:
    set_param(finished_toy / "params.yaml", "left.text", "an uncommitted change")
    former = read_files(finished_toy)

    result = run_flow_module(finished_toy, "--where", "clone", prefect_api_url=prefect_api_url)
    assert "Works in a clean clone of " in result.stdout
    assert last_run(prefect_api_url)["state"]["name"] == "UpToDate", "it sees HEAD, not the edit"

    run_flow_module(
        finished_toy,
        "--where",
        "clone",
        "--commit-to",
        "results",
        "-S",
        "left.text=new",
        prefect_api_url=prefect_api_url,
    )
    assert task_runs(prefect_api_url, last_run(prefect_api_url)["id"])["left"][1:] == (
        "Ran",
        "params left.text left -> new",
    )
    assert read_files(finished_toy) == former
    assert read_trace(finished_toy) == [], "stages ran elsewhere"
    assert [path.name for path in (finished_toy / ".dvc" / "tmp" / "clones").iterdir()] == ["lock"]

    run_flow_module(
        finished_toy,
        "--where",
        "clone",
        "--commit-to",
        "results",
        "-S",
        "left.text=newer",
        prefect_api_url=prefect_api_url,
    )
    subjects = run_command(finished_toy, "git", "log", "--format=%s", "results").stdout.splitlines()
    assert subjects[0] == "ran left, join (params left.text left -> newer)"
    assert subjects[1] == "ran left, join (params left.text left -> new)"
    assert run_command(finished_toy, "git", "merge-base", "--is-ancestor", "main", "results").returncode == 0

    run_command(finished_toy, "git", "checkout", "-q", ".")
    run_command(finished_toy, "git", "checkout", "-q", "results")
    run_dvc(finished_toy, "checkout")
    assert (finished_toy / "join.txt").read_text() == "joinnewermakerightmake", "its data is in the shared cache"
    assert run_dvc(finished_toy, "status", "--json").stdout.strip() == "{}"


@pytest.mark.slow
@pytest.mark.ci
def test_with_a_remote_a_clone_pulls_first_and_pushes_afterwards(
    finished_toy: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    run_dvc(finished_toy, "remote", "add", "--default", "storage", "../the storage")  # a relative path
    commit_all(finished_toy)
    run_dvc(finished_toy, "push")
    stored = {path.name for path in (tmp_path / "the storage").rglob("*") if path.is_file()}
    other_clone = tmp_path / "elsewhere"
    run_command(tmp_path, "git", "clone", "-q", str(finished_toy), str(other_clone))

    result = run_flow_module(other_clone, "--where", "clone", "-S", "right.text=r", prefect_api_url=prefect_api_url)
    assert "make            | Starts" not in result.stdout, "what was pulled is up to date"
    assert {
        name: state for name, (_, state, _) in task_runs(prefect_api_url, last_run(prefect_api_url)["id"]).items()
    } == {
        "make": "UpToDate",
        "left": "UpToDate",
        "right": "Ran",
        "join": "Ran",
    }
    assert {path.name for path in (tmp_path / "the storage").rglob("*") if path.is_file()} > stored


def test_a_branch_that_cannot_be_committed_to_is_one_line_before_any_stage(
    finished_toy: Path, prefect_api_url: str
) -> None:
    for arguments, expected in (
        (["--where", "clone", "--commit-to", "main"], "commit_to: main is checked out in the project's folder"),
        (["--commit-to", "results"], "commit_to needs where=clone"),
    ):
        result = run_flow_module(
            finished_toy, *arguments, "-S", "make.text=x", prefect_api_url=prefect_api_url, status=1
        )
        assert result.stdout.strip().startswith(expected)
        assert len(result.stdout.strip().splitlines()) == 1
    assert read_trace(finished_toy) == []
    assert get_param(finished_toy / "params.yaml", "make.text") == "make"


@pytest.mark.slow
@pytest.mark.ci
def test_an_abandoned_clone_is_removed(finished_toy: Path, prefect_api_url: str) -> None:
    abandoned = finished_toy / ".dvc" / "tmp" / "clones" / "1"
    (abandoned / "half").mkdir(parents=True)
    run_flow_module(finished_toy, "--where", "clone", prefect_api_url=prefect_api_url)
    assert not abandoned.exists()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("where", ["clone", "tree"])
def test_all_abandoned_clones_are_removed_but_not_one_that_is_in_use(
    finished_toy: Path, prefect_api_url: str, where: str
) -> None:
    clones = finished_toy / ".dvc" / "tmp" / "clones"
    for number in range(1, 13):
        (clones / str(number) / "half").mkdir(parents=True)
    lock = os.open(clones / "2", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    run_flow_module(finished_toy, "--where", where, prefect_api_url=prefect_api_url)
    assert [path.name for path in clones.iterdir() if path.is_dir()] == ["2"]
    assert (clones / "2" / "half").is_dir()
    os.close(lock)
    run_flow_module(finished_toy, "--where", where, prefect_api_url=prefect_api_url)
    assert not [path for path in clones.iterdir() if path.is_dir()]


def test_two_toys_are_equal(tmp_path: Path) -> None:
    """Other tests compare two toys, so equal toys must give equal files."""
    one, two = (create_toy_repository(tmp_path / name) for name in ("one", "two"))
    for toy_repository in (one, two):
        run_dvc(toy_repository, "repro")
    assert (one / "dvc.lock").read_bytes() == (two / "dvc.lock").read_bytes()
    assert json.loads((one / "dvc.yaml").read_text())["stages"].keys() == {"make", "left", "right", "join"}
