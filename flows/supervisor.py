"""A program that runs a command in its own process group, and ends the whole group when its own stdin closes.

The process that starts it holds the other end of stdin and writes nothing: however that process ends, the system closes
it. If the command is DVC, it is not ended while it writes dvc.lock.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_WRITE_TIMEOUT = 5.0  # seconds to wait for DVC to finish writing dvc.lock
TERM_TIMEOUT = 5.0  # seconds between SIGTERM and SIGKILL
KILL_TIMEOUT = 1.0  # seconds for the system to remove killed processes
WRITTEN_IN_PLACE = ("/dvc.lock", "/.dvc/tmp/rwlock")  # DVC would leave an incomplete file


def main(command: list[str]) -> int:
    """The command's exit status, once its whole group has ended; 128 plus the signal's number if a signal ended it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=end_group_when_stdin_closes, args=(child.pid,), daemon=True).start()
    returncode = child.wait()
    end_group(child.pid)
    return 128 - returncode if returncode < 0 else returncode


def end_group_when_stdin_closes(group: int) -> None:
    while os.read(0, 1):
        pass
    stop_between_writes(group)
    end_group(group)


def stop_between_writes(pid: int) -> None:
    """Send SIGSTOP at a moment when the process has no file open that it writes in place."""
    deadline = time.monotonic() + LOCK_WRITE_TIMEOUT
    with contextlib.suppress(OSError):  # the process has ended, or this system has no /proc
        while time.monotonic() < deadline:
            os.kill(pid, signal.SIGSTOP)
            if process_state(pid) == "T":
                if not any(path.endswith(WRITTEN_IN_PLACE) for path in open_files(pid)):
                    return
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)


def process_state(pid: int) -> str:
    """The letter that `ps` shows; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def open_files(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed a moment ago
            yield str(link.readlink())


def end_group(group: int) -> None:
    """SIGTERM, then SIGKILL, until no process of the group is left."""
    for number, timeout in ((signal.SIGTERM, TERM_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)):
        deadline = time.monotonic() + timeout
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(group, number)
            os.killpg(group, signal.SIGCONT)  # a stopped process receives the signal only then
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.02)
            continue  # the group still exists: the next signal
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
