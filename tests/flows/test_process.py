"""A command under the supervisor: its lines as they are written, its log file, and no process left behind."""

import asyncio
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from toys import wait_until

from flows import supervisor
from flows.process import CommandResult, stream_command

CLEANUP_TIMEOUT = 12  # seconds, more than the supervisor's timeouts for SIGTERM and SIGKILL


def python_command(program: str) -> list[str]:
    return [sys.executable, "-u", "-c", program]


def processes_in(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is the folder, without zombies."""
    processes = []
    for process in psutil.process_iter(["cwd", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != "zombie":
            processes.append(process)
    return processes


def test_the_exit_status_is_returned_and_for_a_signal_128_plus_its_number(tmp_path: Path) -> None:
    assert asyncio.run(stream_command(["true"], tmp_path)) == CommandResult(0, ())
    assert asyncio.run(stream_command(["sh", "-c", "exit 69"], tmp_path)).returncode == 69
    assert asyncio.run(stream_command(["sh", "-c", "kill -KILL $$"], tmp_path)).returncode == 128 + signal.SIGKILL


def test_stdout_and_stderr_come_in_order_and_the_command_runs_in_the_folder(tmp_path: Path) -> None:
    result = asyncio.run(
        stream_command(["sh", "-c", "echo out; echo err >&2; echo; pwd; printf 'no newline'"], tmp_path)
    )
    assert result.lines == ("out", "err", str(tmp_path), "no newline")


def test_a_command_that_reads_stdin_gets_an_end_of_file(tmp_path: Path) -> None:
    assert asyncio.run(stream_command(["sh", "-c", "cat; echo done"], tmp_path, timeout=10)) == CommandResult(
        0, ("done",)
    )


def test_lines_come_when_they_are_written(tmp_path: Path) -> None:
    received: list[tuple[str, float]] = []
    program = "import time\nfor number in range(3):\n    print(number)\n    time.sleep(0.5)"
    start = time.monotonic()
    asyncio.run(
        stream_command(
            python_command(program), tmp_path, on_line=lambda line: received.append((line, time.monotonic()))
        )
    )
    end = time.monotonic()
    assert [line for line, _ in received] == ["0", "1", "2"]
    assert start < received[0][1] < received[1][1] - 0.3 < received[2][1] - 0.6 < end - 0.9


def test_characters_that_arrive_in_parts_are_decoded_and_invalid_bytes_replaced(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "for byte in 'größer\\n'.encode() + b'\\xff!\\n':\n"
        "    sys.stdout.buffer.write(bytes([byte])); sys.stdout.flush(); time.sleep(0.01)"
    )
    result = asyncio.run(stream_command(python_command(program), tmp_path, log_file=tmp_path / "log"))
    assert result.lines == ("größer", "\ufffd!")
    assert (tmp_path / "log").read_bytes() == "größer\n".encode() + b"\xff!\n"


def test_a_progress_bar_is_one_line_and_every_byte_is_in_the_log_file(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "print('begins')\n"
        "for step in range(5000):\n    sys.stderr.write(f'\\r{step + 1}/5000')\n"
        "sys.stderr.write('\\n')\nprint('ends')"
    )
    result = asyncio.run(stream_command(python_command(program), tmp_path, log_file=tmp_path / "log"))
    assert result.lines == ("begins", "5000/5000", "ends")
    bar = "".join(f"\r{step + 1}/5000" for step in range(5000))
    assert (tmp_path / "log").read_bytes() == f"begins\n{bar}\nends\n".encode()


def test_of_a_tqdm_bar_the_last_state_is_kept(tmp_path: Path) -> None:
    program = (
        "import tqdm\nfor step in tqdm.tqdm(range(3000), 'epoch', mininterval=0, miniters=1):\n    pass\nprint('done')"
    )
    file = tmp_path / "log"
    result = asyncio.run(stream_command(python_command(program), tmp_path, log_file=file))
    assert len(result.lines) == 2
    assert result.lines[0].startswith("epoch: 100%")
    assert "3000/3000" in result.lines[0]
    assert result.lines[1] == "done"
    assert file.read_bytes().count(b"\r") > 2900


@pytest.mark.slow
@pytest.mark.ci
def test_a_long_progress_bar_gives_a_line_every_15_seconds(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "for step in range(900):\n    sys.stderr.write(f'\\r{step + 1}/900'); time.sleep(0.02)\n"
        "sys.stderr.write('\\n')"
    )
    received: list[str] = []
    asyncio.run(stream_command(python_command(program), tmp_path, on_line=received.append))
    assert len(received) == 2
    assert 600 < int(received[0].split("/")[0]) < 900
    assert received[1] == "900/900"


def test_the_log_file_has_all_lines_and_the_result_the_last_thousand(tmp_path: Path) -> None:
    result = asyncio.run(stream_command(["seq", "200000"], tmp_path, log_file=tmp_path / "log"))
    assert (tmp_path / "log").read_text().split() == [str(number) for number in range(1, 200001)]
    assert result.lines[-1] == "200000"
    assert len(result.lines) == 1000


def test_a_second_command_appends_to_the_log_file(tmp_path: Path) -> None:
    for word in ("once", "again"):
        asyncio.run(stream_command(["echo", word], tmp_path, log_file=tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "once\nagain\n"


STUBBORN = """
import signal, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "grandchild"])
    print("started")
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("ready", "w").close()
time.sleep(300)
"""


@pytest.fixture
def stubborn(tmp_path: Path) -> list[str]:
    """A command whose child ignores SIGTERM; the file `ready` appears when it does."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    return [sys.executable, "-u", str(tmp_path / "stubborn.py")]


@pytest.mark.slow
@pytest.mark.ci
def test_a_timeout_also_ends_a_grandchild_that_ignores_sigterm(tmp_path: Path, stubborn: list[str]) -> None:
    start = time.monotonic()
    result = asyncio.run(stream_command(stubborn, tmp_path, timeout=2))
    assert result.timed_out
    assert result.lines == ("started",)
    assert (tmp_path / "ready").exists()
    assert processes_in(tmp_path) == []
    assert time.monotonic() - start < 2 + CLEANUP_TIMEOUT


def test_a_command_within_its_timeout_is_not_timed_out(tmp_path: Path) -> None:
    assert asyncio.run(stream_command(["echo", "quick"], tmp_path, timeout=30)) == CommandResult(
        0, ("quick",), timed_out=False
    )


def test_a_background_process_ends_with_its_command(tmp_path: Path) -> None:
    start = time.monotonic()
    result = asyncio.run(stream_command(["sh", "-c", "sleep 300 & echo left; exit 3"], tmp_path))
    assert (result.returncode, result.lines) == (3, ("left",))
    assert processes_in(tmp_path) == []
    assert time.monotonic() - start < CLEANUP_TIMEOUT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_when_the_program_that_runs_a_command_is_killed(
    tmp_path: Path, stubborn: list[str], number: signal.Signals
) -> None:
    program = (
        "import asyncio, pathlib, flows.process\n"
        f"asyncio.run(flows.process.stream_command({stubborn!r}, pathlib.Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen(python_command(program), cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        wait_until((tmp_path / "ready").exists, 30)
        assert len(processes_in(tmp_path)) == 3  # the supervisor, the command, its child
        parent.send_signal(number)
    wait_until(lambda: not processes_in(tmp_path), CLEANUP_TIMEOUT)
    assert processes_in(tmp_path) == []


def test_a_cancelled_task_ends_its_command_first(tmp_path: Path) -> None:
    async def run_and_cancel() -> list[psutil.Process]:
        command = ["sh", "-c", "echo started; sleep 300"]
        received = asyncio.Event()
        task = asyncio.create_task(stream_command(command, tmp_path, on_line=lambda _: received.set()))
        await received.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return processes_in(tmp_path)

    assert asyncio.run(run_and_cancel()) == []


def test_a_task_that_is_cancelled_while_its_command_is_ended_is_cancelled(tmp_path: Path, stubborn: list[str]) -> None:
    async def time_out_and_cancel() -> None:
        task = asyncio.create_task(stream_command(stubborn, tmp_path, timeout=0.5))
        await asyncio.sleep(1.5)  # it waits for the command to end
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(time_out_and_cancel())
    assert processes_in(tmp_path) == []


def test_a_program_that_exits_while_a_command_starts_does_not_hang(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, flows.process\n"
        "async def main():\n"
        f"    command = flows.process.stream_command(['sleep', '300'], pathlib.Path({str(tmp_path)!r}))\n"
        "    task = asyncio.create_task(command)\n"
        "    await asyncio.sleep(0)\n"  # now it starts
        "    raise SystemExit(3)\n"
        "asyncio.run(main())"
    )
    result = subprocess.run(
        python_command(program), cwd=ROOT, capture_output=True, timeout=CLEANUP_TIMEOUT, check=False
    )
    assert result.returncode == 3
    wait_until(lambda: not processes_in(tmp_path), CLEANUP_TIMEOUT)


WRITER = """
import time
with open("dvc.lock", "w") as file:
    for number in range(20):
        print(number, file=file, flush=True)
        time.sleep(0.1)
time.sleep(300)
"""


def test_the_supervisor_waits_until_dvc_lock_is_written(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    with start_supervisor(f"{sys.executable} writer.py", tmp_path) as process:
        wait_until((tmp_path / "dvc.lock").exists, 30)
        start = time.monotonic()
        process.communicate()
    assert (tmp_path / "dvc.lock").read_text().split() == [str(number) for number in range(20)]
    assert processes_in(tmp_path) == []
    assert time.monotonic() - start < CLEANUP_TIMEOUT


@pytest.mark.slow
@pytest.mark.ci
def test_the_supervisor_waits_for_dvc_lock_only_until_a_timeout(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER.replace("sleep(0.1)", "sleep(100)"))
    with start_supervisor(f"{sys.executable} writer.py", tmp_path) as process:
        wait_until((tmp_path / "dvc.lock").exists, 30)
        start = time.monotonic()
        process.communicate()
    assert processes_in(tmp_path) == []
    assert time.monotonic() - start < CLEANUP_TIMEOUT


def start_supervisor(command: str, folder: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-I", "-S", supervisor.__file__, *shlex.split(command)]
    return subprocess.Popen(program, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_supervisor_exits_with_the_commands_status(tmp_path: Path) -> None:
    with start_supervisor("sh -c 'echo said; exit 7'", tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "said\n"  # and not communicate(), which closes the input first
    assert process.returncode == 7


def test_the_supervisor_ends_the_command_when_stdin_closes(tmp_path: Path) -> None:
    with start_supervisor("sh -c 'sleep 300 & echo $$; wait'", tmp_path) as process:
        assert process.stdout is not None
        group = int(process.stdout.readline())
        assert psutil.pid_exists(group)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert processes_in(tmp_path) == []
