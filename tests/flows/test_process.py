"""A child under a supervisor: its lines as they come, all of them in a file, and nothing left of it."""

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
from toys import until

from flows import supervisor
from flows.process import CommandResult, stream_command

LEFT = 12  # seconds after which nothing may be left, two graces and some


def python(program: str) -> list[str]:
    return [sys.executable, "-u", "-c", program]


def started(folder: Path) -> list[psutil.Process]:
    """What works in the folder, zombies left out."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != "zombie":
            found.append(process)
    return found


def test_a_status_comes_back_and_a_signals_number_as_a_shell_tells_it(tmp_path: Path) -> None:
    assert asyncio.run(stream_command(["true"], tmp_path)) == CommandResult(0, ())
    assert asyncio.run(stream_command(["sh", "-c", "exit 69"], tmp_path)).returncode == 69
    assert asyncio.run(stream_command(["sh", "-c", "kill -KILL $$"], tmp_path)).returncode == 128 + signal.SIGKILL


def test_both_streams_come_in_the_order_in_which_they_were_written_and_in_the_folder(tmp_path: Path) -> None:
    done = asyncio.run(stream_command(["sh", "-c", "echo out; echo err >&2; echo; pwd; printf 'no newline'"], tmp_path))
    assert done.lines == ("out", "err", str(tmp_path), "no newline")


def test_a_command_that_asks_is_answered_with_an_end_of_file(tmp_path: Path) -> None:
    assert asyncio.run(stream_command(["sh", "-c", "cat; echo done"], tmp_path, timeout=10)) == CommandResult(
        0, ("done",)
    )


def test_lines_come_when_they_are_written(tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    program = "import time\nfor number in range(3):\n    print(number)\n    time.sleep(0.5)"
    begun = time.monotonic()
    asyncio.run(stream_command(python(program), tmp_path, on_line=lambda line: heard.append((line, time.monotonic()))))
    ended = time.monotonic()
    assert [line for line, _ in heard] == ["0", "1", "2"]
    assert begun < heard[0][1] < heard[1][1] - 0.3 < heard[2][1] - 0.6 < ended - 0.9


def test_letters_that_arrive_in_pieces_are_whole_and_bytes_that_are_none_do_no_harm(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "for byte in 'größer\\n'.encode() + b'\\xff!\\n':\n"
        "    sys.stdout.buffer.write(bytes([byte])); sys.stdout.flush(); time.sleep(0.01)"
    )
    done = asyncio.run(stream_command(python(program), tmp_path, log_file=tmp_path / "whole"))
    assert done.lines == ("größer", "\ufffd!")
    assert (tmp_path / "whole").read_bytes() == "größer\n".encode() + b"\xff!\n"


def test_a_progress_bar_is_one_line_in_the_end_and_every_byte_in_the_file(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "print('begins')\n"
        "for step in range(5000):\n    sys.stderr.write(f'\\r{step + 1}/5000')\n"
        "sys.stderr.write('\\n')\nprint('ends')"
    )
    done = asyncio.run(stream_command(python(program), tmp_path, log_file=tmp_path / "whole"))
    assert done.lines == ("begins", "5000/5000", "ends")
    bar = "".join(f"\r{step + 1}/5000" for step in range(5000))
    assert (tmp_path / "whole").read_bytes() == f"begins\n{bar}\nends\n".encode()


def test_a_tqdm_bar_shows_how_it_ended(tmp_path: Path) -> None:
    program = (
        "import tqdm\nfor step in tqdm.tqdm(range(3000), 'epoch', mininterval=0, miniters=1):\n    pass\nprint('done')"
    )
    file = tmp_path / "whole"
    done = asyncio.run(stream_command(python(program), tmp_path, log_file=file))
    assert len(done.lines) == 2
    assert done.lines[0].startswith("epoch: 100%")
    assert "3000/3000" in done.lines[0]
    assert done.lines[1] == "done"
    assert file.read_bytes().count(b"\r") > 2900


@pytest.mark.slow
@pytest.mark.ci
def test_a_long_progress_bar_is_a_line_now_and_then(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "for step in range(900):\n    sys.stderr.write(f'\\r{step + 1}/900'); time.sleep(0.02)\n"
        "sys.stderr.write('\\n')"
    )
    heard: list[str] = []
    asyncio.run(stream_command(python(program), tmp_path, on_line=heard.append))
    assert len(heard) == 2
    assert 600 < int(heard[0].split("/")[0]) < 900
    assert heard[1] == "900/900"


def test_the_file_is_whole_and_of_the_lines_the_last_are_kept(tmp_path: Path) -> None:
    done = asyncio.run(stream_command(["seq", "200000"], tmp_path, log_file=tmp_path / "whole"))
    assert (tmp_path / "whole").read_text().split() == [str(number) for number in range(1, 200001)]
    assert done.lines[-1] == "200000"
    assert len(done.lines) == 1000


def test_one_file_takes_one_command_after_another(tmp_path: Path) -> None:
    for word in ("once", "again"):
        asyncio.run(stream_command(["echo", word], tmp_path, log_file=tmp_path / "whole"))
    assert (tmp_path / "whole").read_text() == "once\nagain\n"


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
    """A command whose child will not hear of SIGTERM; it says so with the file `ready`."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    return [sys.executable, "-u", str(tmp_path / "stubborn.py")]


@pytest.mark.slow
@pytest.mark.ci
def test_a_time_limit_ends_also_a_grandchild_that_ignores_sigterm(tmp_path: Path, stubborn: list[str]) -> None:
    begun = time.monotonic()
    done = asyncio.run(stream_command(stubborn, tmp_path, timeout=2))
    assert done.timed_out
    assert done.lines == ("started",)
    assert (tmp_path / "ready").exists()
    assert started(tmp_path) == []
    assert time.monotonic() - begun < 2 + LEFT


def test_a_command_within_its_limit_is_not_timed_out(tmp_path: Path) -> None:
    assert asyncio.run(stream_command(["echo", "quick"], tmp_path, timeout=30)) == CommandResult(
        0, ("quick",), timed_out=False
    )


def test_a_child_that_a_command_left_in_the_background_is_ended_with_it(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = asyncio.run(stream_command(["sh", "-c", "sleep 300 & echo left; exit 3"], tmp_path))
    assert (done.returncode, done.lines) == (3, ("left",))
    assert started(tmp_path) == []
    assert time.monotonic() - begun < LEFT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whoever_is_killed_while_it_follows_leaves_nothing_behind(
    tmp_path: Path, stubborn: list[str], number: signal.Signals
) -> None:
    program = (
        "import asyncio, pathlib, flows.process\n"
        f"asyncio.run(flows.process.stream_command({stubborn!r}, pathlib.Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen(python(program), cwd=ROOT, stderr=subprocess.DEVNULL) as follower:
        until((tmp_path / "ready").exists, 30)
        assert len(started(tmp_path)) == 3  # the supervisor, the command, its child
        follower.send_signal(number)
    until(lambda: not started(tmp_path), LEFT)
    assert started(tmp_path) == []


def test_a_task_that_is_cancelled_ends_its_command_before_it_ends_itself(tmp_path: Path) -> None:
    async def cancelled() -> list[psutil.Process]:
        command = ["sh", "-c", "echo started; sleep 300"]
        heard = asyncio.Event()
        task = asyncio.create_task(stream_command(command, tmp_path, on_line=lambda _: heard.set()))
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return started(tmp_path)

    assert asyncio.run(cancelled()) == []


def test_a_program_that_ends_while_a_command_starts_does_not_wait_for_it_for_ever(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, flows.process\n"
        "async def main():\n"
        f"    command = flows.process.stream_command(['sleep', '300'], pathlib.Path({str(tmp_path)!r}))\n"
        "    task = asyncio.create_task(command)\n"
        "    await asyncio.sleep(0)\n"  # now it starts
        "    raise SystemExit(3)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(python(program), cwd=ROOT, capture_output=True, timeout=LEFT, check=False)
    assert done.returncode == 3
    until(lambda: not started(tmp_path), LEFT)


WRITER = """
import time
with open("dvc.lock", "w") as file:
    for number in range(20):
        print(number, file=file, flush=True)
        time.sleep(0.1)
time.sleep(300)
"""


def test_the_supervisor_lets_dvc_lock_be_written_to_its_end_before_it_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    with supervised(f"{sys.executable} writer.py", tmp_path) as process:
        until((tmp_path / "dvc.lock").exists, 30)
        begun = time.monotonic()
        process.communicate()
    assert (tmp_path / "dvc.lock").read_text().split() == [str(number) for number in range(20)]
    assert started(tmp_path) == []
    assert time.monotonic() - begun < LEFT


@pytest.mark.slow
@pytest.mark.ci
def test_the_supervisor_does_not_wait_for_ever_for_a_file_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER.replace("sleep(0.1)", "sleep(100)"))
    with supervised(f"{sys.executable} writer.py", tmp_path) as process:
        until((tmp_path / "dvc.lock").exists, 30)
        begun = time.monotonic()
        process.communicate()
    assert started(tmp_path) == []
    assert time.monotonic() - begun < LEFT


def supervised(command: str, folder: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-I", "-S", supervisor.__file__, *shlex.split(command)]
    return subprocess.Popen(program, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_supervisor_exits_as_its_command_did(tmp_path: Path) -> None:
    with supervised("sh -c 'echo said; exit 7'", tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "said\n"  # and not communicate(), which closes the input first
    assert process.returncode == 7


def test_the_supervisor_ends_the_command_when_its_input_closes(tmp_path: Path) -> None:
    with supervised("sh -c 'sleep 300 & echo $$; wait'", tmp_path) as process:
        assert process.stdout is not None
        group = int(process.stdout.readline())
        assert psutil.pid_exists(group)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert started(tmp_path) == []
