"""A program that runs a command in a process group of its own, and ends the whole group when its own input closes.

Whoever starts it holds the other end of that input and writes nothing: however the holder ends, the system closes it.
DVC is not ended while it writes dvc.lock: that must also hold when nobody else is left to see to it.
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

GRACE = 5.0  # seconds between asking a group to end and ending it
DEAD = 1.0  # seconds for the system to clear away what it has ended; who adopts orphans may be slow to do so
IN_PLACE = ("/dvc.lock", "/.dvc/tmp/rwlock")  # what DVC rewrites in place: an end in the middle leaves half a file


def main(command: list[str]) -> int:
    """The exit status of the command, when nothing of it is left; 128 and the signal's number if one ended it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=end_when_closed, args=(child.pid,), daemon=True).start()
    status = child.wait()
    end(child.pid)
    return 128 - status if status < 0 else status


def end_when_closed(group: int) -> None:
    while os.read(0, 1):
        pass
    stop_between_writes(group)
    end(group)


def stop_between_writes(process: int) -> None:
    """Stop the process at a moment at which it has no such file open, so that its end finds it there."""
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(OSError):  # it has ended by itself, or this system has no /proc
        while time.monotonic() < deadline:
            os.kill(process, signal.SIGSTOP)
            if state(process) == "T":
                if not any(file.endswith(IN_PLACE) for file in open_files(process)):
                    return
                os.kill(process, signal.SIGCONT)
            time.sleep(0.01)


def state(process: int) -> str:
    """The letter that `ps` shows."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def open_files(process: int) -> Iterator[str]:
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed a moment ago
            yield str(link.readlink())


def end(group: int) -> None:
    """TERM, then KILL, until no process of the group is left."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, DEAD)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(group, number)
            os.killpg(group, signal.SIGCONT)  # one that is stopped hears of it only then
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.02)
            continue  # something of it is left: the next signal
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
