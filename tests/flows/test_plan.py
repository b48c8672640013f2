"""`--plan` says what would run and why, and runs nothing: no stage and no server."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from repositories import commit, dvc, environment
from toys import new_toy, trace


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy after its first `dvc repro`. Copy it; do not change it."""
    folder = new_toy(tmp_path_factory.mktemp("ran") / "toy")
    dvc(folder, "repro")
    commit(folder)
    return folder


@pytest.fixture
def done(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "a toy", symlinks=True))


def starting(project: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m flows.pipeline --plan WORDS` in the project, with no server set."""
    env = {name: value for name, value in environment().items() if not name.startswith("PREFECT_")}
    env["PREFECT_HOME"] = str(project.parent / "prefect")
    command = [sys.executable, "-m", "flows.pipeline", "--plan", *words]
    return subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plan(project: Path, *words: str) -> dict[str, str]:
    """What it prints, by stage; it changes no file that git or DVC would know."""
    before = snapshot(project)
    with starting(project, *words) as process:
        out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert snapshot(project) == before
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    return dict(lines)


def snapshot(project: Path) -> dict[str, bytes]:
    return {
        file.relative_to(project).as_posix(): file.read_bytes()
        for file in project.rglob("*")
        if file.is_file() and not {".git", ".dvc", "__pycache__"} & set(file.relative_to(project).parts)
    }


def test_before_the_first_run_every_stage_never_ran_and_no_server_is_started(toy: Path) -> None:
    servers = []
    with starting(toy) as process:
        me = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                servers += [child for child in me.children(recursive=True) if "uvicorn" in child.cmdline()]
            except psutil.Error:
                continue
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, "never ran"] for name in ("make", "left", "right", "join")
    ]
    assert servers == []
    assert not list((toy.parent / "prefect").rglob("*.db*"))
    assert trace(toy) == []
    assert not (toy / "dvc.lock").exists()


def test_after_a_run_every_stage_is_up_to_date_unless_forced(done: Path) -> None:
    assert plan(done) == dict.fromkeys(("make", "left", "right", "join"), "up to date")
    assert plan(done, "--force", "--from", "right") == {"right": "forced", "join": "forced"}


def test_it_says_why_each_stage_would_run_and_changes_nothing_itself(done: Path) -> None:
    with (done / "stages" / "right.py").open("a") as source:
        source.write("# another byte\n")
    (done / "make.txt").unlink()
    assert plan(done, "-S", "left.text=other") == {
        "make": "outs make.txt deleted",
        "left": "params left.text left -> other",
        "right": "deps stages/right.py modified",
        "join": "after left, right",
    }


def test_a_param_that_was_changed_in_the_file_reads_as_one_that_will_be(done: Path) -> None:
    params = json.loads((done / "params.yaml").read_text())
    params["left"] |= {"text": "other", "seconds": 1.5}
    (done / "params.yaml").write_text(json.dumps(params))
    assert plan(done, "--only", "left", "join") == {
        "left": "params left.text left -> other, left.seconds 0.0 -> 1.5",
        "join": "after left",
    }
    assert plan(done, "-S", "left.text=left", "-S", "left.seconds=0.0") == dict.fromkeys(
        ("make", "left", "right", "join"), "up to date"
    )


def test_of_many_changes_the_first_are_named_and_the_others_counted(done: Path) -> None:
    graph = json.loads((done / "dvc.yaml").read_text())
    graph["stages"]["left"]["params"].append("machine")
    graph["stages"]["join"]["cmd"] += " make.txt"
    (done / "dvc.yaml").write_text(json.dumps(graph))
    found = plan(done, "-S", "left.text=a", "-S", "left.seconds=1.0", "-S", "left.status=2")
    assert found["left"] == ("params left.text left -> a, left.seconds 0.0 -> 1.0, left.status 0 -> 2 and 3 more")
    assert found["join"] == "its command changed"


def test_a_plan_of_what_is_not_there_is_one_line(done: Path) -> None:
    with starting(done, "--only", "lift") as process:
        out, err = process.communicate()
    assert process.returncode == 1
    assert (out, err) == ("", "pipeline: no stage 'lift' in dvc.yaml, which has make, left, right, join\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only"], "--only: name the stages to run; dvc.yaml has make, left, right, join"),
        (["--only", "--from", "left"], "--only: name the stages to run; dvc.yaml has make, left, right, join"),
        (["--commit-to", "results"], "--plan reads the project's folder and runs nothing: leave --where and"),
        (["--where", "clone"], "--plan reads the project's folder and runs nothing: leave --where and"),
    ],
    ids=str,
)
def test_what_a_plan_cannot_mean_is_one_line(done: Path, words: list[str], said: str) -> None:
    with starting(done, *words) as process:
        out, err = process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(f"pipeline: {said}")


def test_a_folder_that_is_not_dvcs_is_one_line_and_no_wait(done: Path) -> None:
    shutil.rmtree(done / ".dvc")
    with starting(done) as process:
        ending = threading.Timer(30, process.kill)
        ending.start()
        out, err = process.communicate()
        ending.cancel()
    assert (process.returncode, out) == (1, "")
    assert err == f"pipeline: {done}: not a DVC project: run `dvc init` in it, or a clone of the project\n"
    assert not (done / ".dvc").exists()
