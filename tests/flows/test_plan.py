"""`--plan` prints which stages would run and why, and starts no stage and no server."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from repositories import command_environment
from toys import read_trace


@pytest.fixture
def finished_toy(template_toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template_toy, tmp_path / "a toy", symlinks=True))


def plan_process(project: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m flows.pipeline --plan ARGUMENTS` in the project, with no server set."""
    env = {name: value for name, value in command_environment().items() if not name.startswith("PREFECT_")}
    env["PREFECT_HOME"] = str(project.parent / "prefect")
    command = [sys.executable, "-m", "flows.pipeline", "--plan", *arguments]
    return subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plan(project: Path, *arguments: str) -> dict[str, str]:
    """The reasons that it prints, by stage; checks that it changes no file."""
    before = snapshot(project)
    with plan_process(project, *arguments) as process:
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


def test_before_the_first_run_every_stage_never_ran_and_no_server_is_started(toy_repository: Path) -> None:
    servers = []
    with plan_process(toy_repository) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                servers += [child for child in parent.children(recursive=True) if "uvicorn" in child.cmdline()]
            except psutil.Error:
                continue
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, "never ran"] for name in ("make", "left", "right", "join")
    ]
    assert servers == []
    assert not list((toy_repository.parent / "prefect").rglob("*.db*"))
    assert read_trace(toy_repository) == []
    assert not (toy_repository / "dvc.lock").exists()


def test_after_a_run_every_stage_is_up_to_date_unless_forced(finished_toy: Path) -> None:
    assert plan(finished_toy) == dict.fromkeys(("make", "left", "right", "join"), "up to date")
    assert plan(finished_toy, "--force", "--from", "right") == {"right": "forced", "join": "forced"}


def test_it_says_why_each_stage_would_run_and_changes_nothing_itself(finished_toy: Path) -> None:
    with (finished_toy / "stages" / "right.py").open("a") as source:
        source.write("# another byte\n")
    (finished_toy / "make.txt").unlink()
    assert plan(finished_toy, "-S", "left.text=other") == {
        "make": "outs make.txt deleted",
        "left": "params left.text left -> other",
        "right": "deps stages/right.py modified",
        "join": "after left, right",
    }


def test_params_changed_in_the_file_and_by_a_flag_give_the_same_plan(finished_toy: Path) -> None:
    params = json.loads((finished_toy / "params.yaml").read_text())
    params["left"] |= {"text": "other", "seconds": 1.5}
    (finished_toy / "params.yaml").write_text(json.dumps(params))
    assert plan(finished_toy, "--only", "left", "join") == {
        "left": "params left.text left -> other, left.seconds 0.0 -> 1.5",
        "join": "after left",
    }
    assert plan(finished_toy, "-S", "left.text=left", "-S", "left.seconds=0.0") == dict.fromkeys(
        ("make", "left", "right", "join"), "up to date"
    )


def test_of_many_changes_three_are_named_and_the_others_counted(finished_toy: Path) -> None:
    graph = json.loads((finished_toy / "dvc.yaml").read_text())
    graph["stages"]["left"]["params"].append("machine")
    graph["stages"]["join"]["cmd"] += " make.txt"
    (finished_toy / "dvc.yaml").write_text(json.dumps(graph))
    reasons = plan(finished_toy, "-S", "left.text=a", "-S", "left.seconds=1.0", "-S", "left.status=2")
    assert reasons["left"] == ("params left.text left -> a, left.seconds 0.0 -> 1.0, left.status 0 -> 2 and 3 more")
    assert reasons["join"] == "its command changed"


def test_an_unknown_stage_is_one_line(finished_toy: Path) -> None:
    with plan_process(finished_toy, "--only", "lift") as process:
        out, err = process.communicate()
    assert process.returncode == 1
    assert (out, err) == ("", "pipeline: no stage 'lift' in dvc.yaml, which has make, left, right, join\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only"], "--only: name the stages to run; dvc.yaml has make, left, right, join"),
        (["--only", "--from", "left"], "--only: name the stages to run; dvc.yaml has make, left, right, join"),
        (
            ["--commit-to", "results"],
            "--plan reads the project's folder and runs nothing: leave --where, ",
        ),
        (
            ["--where", "clone"],
            "--plan reads the project's folder and runs nothing: leave --where, ",
        ),
    ],
    ids=str,
)
def test_flags_that_a_plan_cannot_have_are_one_line(finished_toy: Path, arguments: list[str], expected: str) -> None:
    with plan_process(finished_toy, *arguments) as process:
        out, err = process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(f"pipeline: {expected}")


def test_a_folder_that_cannot_be_written_is_one_line(finished_toy: Path) -> None:
    locks = finished_toy / ".dvc" / "tmp"
    (locks / "lock").unlink()
    locks.chmod(0o555)
    command = [sys.executable, "-m", "flows.pipeline", "--plan"]
    if os.geteuid() == 0:  # whom the mode of a folder does not stop
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    result = subprocess.run(
        command, cwd=finished_toy, env=command_environment(), capture_output=True, text=True, check=False
    )
    locks.chmod(0o755)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert result.stderr.startswith(f"pipeline: {locks / 'lock'}: Permission denied: ")


def test_a_folder_without_dvc_is_one_line_at_once(finished_toy: Path) -> None:
    shutil.rmtree(finished_toy / ".dvc")
    with plan_process(finished_toy) as process:
        timer = threading.Timer(30, process.kill)
        timer.start()
        out, err = process.communicate()
        timer.cancel()
    assert (process.returncode, out) == (1, "")
    assert err == f"pipeline: {finished_toy}: not a DVC project: run `dvc init` in it, or a clone of the project\n"
    assert not (finished_toy / ".dvc").exists()
