"""A stage as a command: its flags, its problems, its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from conftest import ROOT

from stages.core import command
from stages.core.errors import StageError, UnavailableError

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

STAGE = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
time.sleep(float(os.environ.get("IMPORTING", 0)))
from stages.core.command import run_stage

def sleepy(*, pid: Path) -> None:
    pid.with_suffix(".new").write_text(str(os.getpid()))
    pid.with_suffix(".new").rename(pid)
    time.sleep(60)

run_stage(sleepy)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a stage in this process with flags; gives the exit status."""
    monkeypatch.setattr(command, "end_when_orphaned", lambda: None)

    def run(stage: Callable[..., None], *flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stage", *flags])
        with pytest.raises(SystemExit) as ended:
            command.run_stage(stage)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def test_flags_are_made_from_the_signature(start: Callable[..., int]) -> None:
    given: list[object] = []

    def stage(*, params: Path, check: bool = False) -> None:
        given.extend([params, check])

    assert start(stage, "--params", "a/b.yaml", "--check") == 0
    assert given == [Path("a/b.yaml"), True]


@pytest.mark.parametrize("flags", [["--unknown", "1"], ["--params", "a", "--unknown"], [], ["--params"]])
def test_wrong_flags_end_it_before_any_work(flags: list[str], start: Callable[..., int]) -> None:
    def stage(*, params: Path) -> None:
        pytest.fail("ran")

    assert start(stage, *flags) != 0


@pytest.mark.parametrize(("problem", "status"), [(StageError, 1), (UnavailableError, 69)])
def test_a_problem_is_one_line_and_a_status(
    problem: type[StageError], status: int, start: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def stage() -> None:
        raise problem("a.png: broken")

    assert start(stage) == status
    assert capsys.readouterr() == ("", "stage: a.png: broken\n")


def test_under_dvc_a_problem_says_how_to_restore_the_outputs(
    start: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage() -> None:
        raise StageError("a.png: broken")

    monkeypatch.setenv("DVC_STAGE", "stage")
    assert start(stage) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "stage: a.png: broken"
    assert "dvc checkout" in second


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stage() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "end_when_orphaned", lambda: None)
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        command.run_stage(stage)


def test_the_command_line_of_a_stage_ends_with_1_and_one_line(tmp_path: Path) -> None:
    flags = ["--params", "none.yaml", "--own", "own", "--raw", str(tmp_path / "raw")]
    done = subprocess.run(
        [sys.executable, "-m", "stages.download", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "download: none.yaml: there is no such params file\n")


def wait_for(path: Path) -> psutil.Process:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))


def gone(process: psutil.Process) -> bool:
    """Ended; in a container nobody may collect a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def test_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    flags = [sys.executable, "-c", STAGE, "--pid", str(tmp_path / "pid")]
    with subprocess.Popen(flags, env=environment(), stderr=subprocess.PIPE, text=True) as child:
        wait_for(tmp_path / "pid").send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert errors == "sleepy: interrupted\n"


def test_a_stage_of_dvc_ends_also_when_dvc_was_killed_while_it_was_still_importing(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    words = [sys.executable, str(tmp_path / "stage.py"), "--pid", str(tmp_path / "pid")]
    program = f"import subprocess; child = subprocess.Popen({words!r}); print(child.pid, flush=True); child.wait()"
    more = environment(DVC_STAGE="sleepy", IMPORTING="2")
    with subprocess.Popen([sys.executable, "-c", program], env=more, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        stage = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    stage.wait(timeout=30)
    assert not (tmp_path / "pid").exists(), "it worked on"


@pytest.mark.parametrize("shell", [False, True], ids=["directly", "by a shell of DVC"])
def test_a_stage_of_dvc_ends_when_what_started_it_was_killed(shell: bool, tmp_path: Path) -> None:
    stage = orphaned(tmp_path, shell, DVC_STAGE="sleepy")
    deadline = time.monotonic() + 5
    while not gone(stage) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = gone(stage)
    if not ended:
        stage.kill()
    assert ended


def test_a_stage_that_a_person_started_outlives_its_shell(tmp_path: Path) -> None:
    """As `nohup python -m stages.train … &` has it."""
    stage = orphaned(tmp_path, shell=True)
    time.sleep(2)
    outlived = not gone(stage)
    stage.kill()
    assert outlived


def orphaned(tmp_path: Path, shell: bool, **more: str) -> psutil.Process:
    """A running stage whose parent has just been killed."""
    (tmp_path / "stage.py").write_text(STAGE)
    line = f"{sys.executable} {tmp_path / 'stage.py'} --pid {tmp_path / 'pid'}"
    started = ["sh", "-c", f"{line}; true"] if shell else line.split()
    program = f"import subprocess; subprocess.run({started!r})"
    with subprocess.Popen([sys.executable, "-c", program], env=environment(**more)) as parent:
        stage = wait_for(tmp_path / "pid")
        time.sleep(0.5)
        assert not gone(stage)
        parent.kill()
    return stage


def test_the_watch_ends_the_process_once_its_parent_is_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ended)
    me = psutil.Process()
    with pytest.raises(SystemExit, match="1"):
        command.watch([(me, os.getppid()), (me, -1)], 0.01)
    assert "is gone" in capsys.readouterr().err
    assert command.ancestors() == [(me, os.getppid())]
