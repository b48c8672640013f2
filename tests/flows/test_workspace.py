"""A run in a clean clone neither sees nor disturbs a person's edits, shares the cache, and can commit and push."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from repositories import commit, dvc, run
from toys import flow, last_run, new_toy, task_runs, trace

from flows.dvc.params_file import get_param, set_param


@pytest.fixture
def ready(toy: Path) -> Path:
    """The toy after its first `dvc repro`, committed."""
    dvc(toy, "repro")
    commit(toy)
    (toy / "trace").unlink()
    return toy


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "trace"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_in_a_clone_leaves_the_working_tree_alone_and_commits_to_a_branch(ready: Path, api: str) -> None:
    set_param(ready / "params.yaml", "left.text", "a person is at it")
    before = files(ready)

    done = flow(ready, "--where", "clone", api=api)
    assert "Works in a clean clone of " in done.stdout
    assert last_run(api)["state"]["name"] == "UpToDate", "it sees HEAD, not the edit"

    flow(ready, "--where", "clone", "--commit-to", "results", "-S", "left.text=new", api=api)
    assert task_runs(api, last_run(api)["id"])["left"][1:] == ("Ran", "params left.text left -> new")
    assert files(ready) == before
    assert trace(ready) == [], "stages ran elsewhere"
    assert [path.name for path in (ready / ".dvc" / "tmp" / "clones").iterdir()] == ["lock"]

    flow(ready, "--where", "clone", "--commit-to", "results", "-S", "left.text=newer", api=api)
    subjects = run(ready, "git", "log", "--format=%s", "results").stdout.splitlines()
    assert subjects[0] == "ran left, join (params left.text left -> newer)"
    assert subjects[1] == "ran left, join (params left.text left -> new)"
    assert run(ready, "git", "merge-base", "--is-ancestor", "main", "results").returncode == 0

    run(ready, "git", "checkout", "-q", ".")
    run(ready, "git", "checkout", "-q", "results")
    dvc(ready, "checkout")
    assert (ready / "join.txt").read_text() == "joinnewermakerightmake", "its data is in the shared cache"
    assert dvc(ready, "status", "--json").stdout.strip() == "{}"


@pytest.mark.slow
@pytest.mark.ci
def test_with_a_remote_a_clone_pulls_first_and_pushes_afterwards(ready: Path, api: str, tmp_path: Path) -> None:
    dvc(ready, "remote", "add", "--default", "storage", "../the storage")  # as a relative path: it is the person's
    commit(ready)
    dvc(ready, "push")
    stored = {path.name for path in (tmp_path / "the storage").rglob("*") if path.is_file()}
    elsewhere = tmp_path / "elsewhere"
    run(tmp_path, "git", "clone", "-q", str(ready), str(elsewhere))

    done = flow(elsewhere, "--where", "clone", "-S", "right.text=r", api=api)
    assert "make            | Starts" not in done.stdout, "what was pulled is up to date"
    assert {name: state for name, (_, state, _) in task_runs(api, last_run(api)["id"]).items()} == {
        "make": "UpToDate",
        "left": "UpToDate",
        "right": "Ran",
        "join": "Ran",
    }
    assert {path.name for path in (tmp_path / "the storage").rglob("*") if path.is_file()} > stored


def test_a_branch_that_cannot_be_committed_to_is_one_line_before_any_stage(ready: Path, api: str) -> None:
    for words, said in (
        (["--where", "clone", "--commit-to", "main"], "commit_to: main is checked out in the project's folder"),
        (["--commit-to", "results"], "commit_to needs where=clone"),
    ):
        done = flow(ready, *words, "-S", "make.text=x", api=api, status=1)
        assert done.stdout.strip().startswith(said)
        assert len(done.stdout.strip().splitlines()) == 1
    assert trace(ready) == []
    assert get_param(ready / "params.yaml", "make.text") == "make"


@pytest.mark.slow
@pytest.mark.ci
def test_what_a_killed_run_left_of_its_clone_is_taken_anew(ready: Path, api: str) -> None:
    left = ready / ".dvc" / "tmp" / "clones" / "1"
    (left / "half").mkdir(parents=True)
    flow(ready, "--where", "clone", api=api)
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("where", ["clone", "tree"])
def test_every_clone_that_killed_runs_left_is_removed_and_none_that_a_run_works_in(
    ready: Path, api: str, where: str
) -> None:
    clones = ready / ".dvc" / "tmp" / "clones"
    for number in range(1, 13):
        (clones / str(number) / "half").mkdir(parents=True)
    lock = os.open(clones / "2", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    flow(ready, "--where", where, api=api)
    assert [path.name for path in clones.iterdir() if path.is_dir()] == ["2"]
    assert (clones / "2" / "half").is_dir()
    os.close(lock)
    flow(ready, "--where", where, api=api)
    assert not [path for path in clones.iterdir() if path.is_dir()]


def test_two_toys_are_equal(tmp_path: Path) -> None:
    """What the tests above and those of faults compare rests on it."""
    one, two = (new_toy(tmp_path / name) for name in ("one", "two"))
    for toy in (one, two):
        dvc(toy, "repro")
    assert (one / "dvc.lock").read_bytes() == (two / "dvc.lock").read_bytes()
    assert json.loads((one / "dvc.yaml").read_text())["stages"].keys() == {"make", "left", "right", "join"}
