"""A stage as a command: its flags, its errors, how it ends."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT

from stages.core import command
from stages.core.errors import StageError, UnavailableError

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

STAGE = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
time.sleep(float(os.environ.get("IMPORTING", 0)))
from stages.core.command import run_stage

def sleepy(*, pid: Path) -> None:
    pid.with_suffix(".new").write_text(str(os.getpid()))
    pid.with_suffix(".new").rename(pid)
    time.sleep(60)

run_stage(sleepy)
"""


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a stage in this process with flags; gives the exit status."""
    monkeypatch.setattr(command, "end_when_orphaned", lambda *_: None)

    def run(stage: Callable[..., None], *flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stage", *flags])
        with pytest.raises(SystemExit) as caught:
            command.run_stage(stage)
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return run


def test_flags_are_made_from_the_signature(run_command: Callable[..., int]) -> None:
    arguments: list[object] = []

    def stage(*, params: Path, check: bool = False) -> None:
        arguments.extend([params, check])

    assert run_command(stage, "--params", "a/b.yaml", "--check") == 0
    assert arguments == [Path("a/b.yaml"), True]


@pytest.mark.parametrize("flags", [["--unknown", "1"], ["--params", "a", "--unknown"], [], ["--params"]])
def test_wrong_flags_end_it_before_any_work(flags: list[str], run_command: Callable[..., int]) -> None:
    def stage(*, params: Path) -> None:
        pytest.fail("ran")

    assert run_command(stage, *flags) != 0


@pytest.mark.parametrize(("error", "status"), [(StageError, 1), (UnavailableError, 69)])
def test_an_error_is_one_line_and_a_status(
    error: type[StageError], status: int, run_command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def stage() -> None:
        raise error("a.png: broken")

    assert run_command(stage) == status
    assert capsys.readouterr() == ("", "stage: a.png: broken\n")


def test_under_dvc_an_error_says_how_to_restore_the_outputs(
    run_command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage() -> None:
        raise StageError("a.png: broken")

    monkeypatch.setenv("DVC_STAGE", "stage")
    assert run_command(stage) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "stage: a.png: broken"
    assert "dvc checkout" in second


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stage() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "end_when_orphaned", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        command.run_stage(stage)


def test_a_stage_collects_garbage_but_not_what_it_has_imported(tmp_path: Path) -> None:
    program = "import atexit, gc; atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))"
    (tmp_path / "sitecustomize.py").write_text(program)
    command_line, environment = [sys.executable, "-m", "stages.download"], {**os.environ, "PYTHONPATH": str(tmp_path)}
    for flags in (["--help"], ["--params", "none.yaml", "--own", "own", "--raw", str(tmp_path / "raw")]):
        result = subprocess.run(
            [*command_line, *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=60
        )
        assert result.stdout.splitlines()[-1] == "True True"


def test_the_command_line_of_a_stage_ends_with_1_and_one_line(tmp_path: Path) -> None:
    flags = ["--params", "none.yaml", "--own", "own", "--raw", str(tmp_path / "raw")]
    result = subprocess.run(
        [sys.executable, "-m", "stages.download", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (1, "download: none.yaml: there is no such params file\n")


def wait_for(path: Path) -> psutil.Process:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))


def has_ended(process: psutil.Process) -> bool:
    """A zombie counts: in a container it may stay one."""
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


def test_a_stage_under_dvc_ends_if_dvc_was_killed_while_it_imported(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    words = [sys.executable, str(tmp_path / "stage.py"), "--pid", str(tmp_path / "pid")]
    program = f"import subprocess; child = subprocess.Popen({words!r}); print(child.pid, flush=True); child.wait()"
    more = environment(DVC_STAGE="sleepy", IMPORTING="2")
    with subprocess.Popen([sys.executable, "-c", program], env=more, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        stage = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    stage.wait(timeout=30)
    assert not (tmp_path / "pid").exists(), "the stage went on"


@pytest.mark.parametrize("shell", [False, True], ids=["directly", "by a shell of DVC"])
def test_a_stage_under_dvc_ends_when_its_starter_is_killed(shell: bool, tmp_path: Path) -> None:
    stage = start_orphan(tmp_path, shell, DVC_STAGE="sleepy")
    deadline = time.monotonic() + 5
    while not has_ended(stage) and time.monotonic() < deadline:
        time.sleep(0.05)
    has_stopped = has_ended(stage)
    if not has_stopped:
        stage.kill()
    assert has_stopped


def test_a_stage_that_a_person_started_outlives_its_shell(tmp_path: Path) -> None:
    """As with `nohup python -m stages.train … &`."""
    stage = start_orphan(tmp_path, shell=True)
    time.sleep(2)
    is_running = not has_ended(stage)
    stage.kill()
    assert is_running


def start_orphan(tmp_path: Path, shell: bool, **more: str) -> psutil.Process:
    """A running stage whose parent has just been killed."""
    (tmp_path / "stage.py").write_text(STAGE)
    line = f"{sys.executable} {tmp_path / 'stage.py'} --pid {tmp_path / 'pid'}"
    child = ["sh", "-c", f"{line}; true"] if shell else line.split()
    program = f"import subprocess; subprocess.run({child!r})"
    with subprocess.Popen([sys.executable, "-c", program], env=environment(**more)) as parent:
        stage = wait_for(tmp_path / "pid")
        time.sleep(0.5)
        assert not has_ended(stage)
        parent.kill()
    return stage


@pytest.mark.parametrize(
    ("ancestors", "count"),
    [
        ([(9, "python"), (8, "bash")], 1),
        ([(9, "sh"), (8, "dvc"), (7, "bash")], 2),
        ([(9, "sh"), (8, "bash"), (7, "dvc")], 3),
        ([(9, "sh"), (1, "sh")], 2),
        ([], 0),
    ],
)
def test_the_starting_processes_are_the_shells_and_what_started_them(
    ancestors: list[tuple[int, str]], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = [SimpleNamespace(pid=pid, name=lambda name=name: name) for pid, name in ancestors]
    monkeypatch.setattr(psutil.Process, "parents", lambda _: parents)
    assert command.starting_processes() == parents[:count]


def test_an_ended_process_is_not_alive_even_as_a_zombie() -> None:
    child = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert command.is_alive(child)
    assert command.is_in_process_group(child)
    child.stdin.close()
    deadline = time.monotonic() + 20
    while command.is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not command.is_alive(child)
    child.wait()
    assert not command.is_alive(child)
    assert not command.is_in_process_group(child)


def test_a_parent_that_has_ended_ends_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(os, "_exit", statuses.put)
    monkeypatch.setattr(command, "is_alive", lambda _: False)
    command.end_when_orphaned(False, 0.01)
    assert statuses.get(timeout=10) == 1
    assert "is gone" in capsys.readouterr().err


def test_a_training_process_whose_launcher_is_gone_ends_at_once() -> None:
    """The launcher was killed while the process started, so that PID 1, or a reaper, has adopted it."""
    variables = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", command.LAUNCHER: "1"}
    words = [sys.executable, "-m", "stages.train", "--help"]
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "is gone: the stage ends too" in done.stderr
