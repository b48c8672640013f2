"""`python -m flows.pipeline` answers without a server only if a run would run and change nothing, and would succeed."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from repositories import CompletedCommand, run_command
from toys import read_trace

ANSWER = "Nothing had to run, so no Prefect server was started."
STAGES = ("make", "left", "right", "join")


@pytest.fixture
def finished_toy(template_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return Path(shutil.copytree(template_toy, tmp_path / "a toy", symlinks=True))


def run_pipeline(project: Path, *arguments: str) -> CompletedCommand:
    return run_command(project, sys.executable, "-m", "flows.pipeline", *arguments, status=None)


def test_it_prints_what_a_run_prints_and_runs_nothing(finished_toy: Path) -> None:
    trace = read_trace(finished_toy)
    result = run_pipeline(finished_toy)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        *(f"{name:<5}  up to date" for name in STAGES),
        "",
        *(f"{name:<16}  UpToDate: Nothing that it depends on has changed" for name in STAGES),
        "",
        "There is no result yet: not all stages have run",
        "",
        ANSWER,
    ]
    assert not list((finished_toy.parent / "prefect").rglob("*.db*"))
    assert read_trace(finished_toy) == trace
    assert run_command(finished_toy, "git", "status", "--porcelain").stdout == ""


def test_only_the_chosen_stages_count(finished_toy: Path) -> None:
    (finished_toy / "join.txt").unlink()
    result = run_pipeline(finished_toy, "--only", "left", "right")
    assert ANSWER in result.stdout
    assert "join" not in result.stdout


def test_a_truncated_dvc_lock_is_repaired_first(finished_toy: Path) -> None:
    complete = (finished_toy / "dvc.lock").read_text()
    (finished_toy / "dvc.lock").write_text(complete[:-40])
    result = run_pipeline(finished_toy)
    assert result.stdout.startswith("dvc.lock ends in the middle of ")
    assert ANSWER in result.stdout
    assert (finished_toy / "dvc.lock").read_text() == complete


def change_param(project: Path, name: str, value: object) -> None:
    params = json.loads((project / "params.yaml").read_text())
    section, _, key = name.partition(".")
    params.setdefault(section, {})[key] = value
    (project / "params.yaml").write_text(json.dumps(params, indent=1))


def mark_conflict(project: Path) -> None:
    text = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(text.replace("  left:\n", "<<<<<<< HEAD\n  left:\n=======\n>>>>>>> other\n", 1))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("disturb", "status", "expected"),
    [
        (lambda toy: (toy / "make.txt").unlink(), 0, "make              Restored"),
        (lambda toy: (toy / "left.txt").write_text("by hand"), 0, "left              Restored"),
        (lambda toy: shutil.rmtree(toy / ".dvc" / "cache"), 0, "make              Ran"),
        (lambda toy: change_param(toy, "right.text", "new"), 0, "params right.text right -> new"),
        (lambda toy: change_param(toy, "right.text", 5), 1, "params.yaml: right.text: "),
        (lambda toy: change_param(toy, "rihgt.text", "new"), 1, "params.yaml: unknown section 'rihgt'"),
        (lambda toy: (toy / "dvc.lock").unlink(), 0, "join              Restored"),
        (mark_conflict, 1, "dvc.lock: not valid YAML (a merge conflict?)"),
    ],
    ids=[
        "deleted output",
        "changed output",
        "no cache",
        "param",
        "wrong param",
        "unknown section",
        "no dvc.lock",
        "conflict",
    ],
)
def test_what_a_run_would_find_is_found(
    disturb: Callable[[Path], object], status: int, expected: str, finished_toy: Path
) -> None:
    disturb(finished_toy)
    result = run_pipeline(finished_toy)
    assert result.returncode == status, result.stdout + result.stderr
    assert ANSWER not in result.stdout
    assert expected in result.stdout


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("arguments", [("--force",), ("-S", "left.text=left")], ids=str)
def test_a_run_that_is_asked_for_runs(arguments: tuple[str, ...], finished_toy: Path) -> None:
    result = run_pipeline(finished_toy, *arguments)
    assert result.returncode == 0, result.stdout
    assert ANSWER not in result.stdout
