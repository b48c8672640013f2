"""Runs the service in several processes that share one listening socket, and starts those that die again."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from lockstep.errors import LockstepError
from lockstep.service.metrics import FOLDER_VARIABLE

log = logging.getLogger("lockstep")
CHECK_SECONDS, STOP_SECONDS = 0.2, 15.0
MIN_LIFE_SECONDS = 2.0  # of a worker that is replaced at once
# This process's sys.path, and not the current folder, where a json.py may be.
PROGRAM = "import sys; sys.path[:] = {path!r}; from lockstep.__main__ import main; sys.exit(main())"


class Worker:
    """`lockstep serve` with the same arguments and the socket. Its stdin is a pipe that closes when this process ends.

    All workers accept connections from one socket. If each had its own (SO_REUSEPORT), those that the kernel has given
    to a worker that dies would be lost, and any program of the same user could take a share of the requests.
    """

    def __init__(self, words: Sequence[str], listener: socket.socket, folder: str) -> None:
        self.words, self.listener, self.folder = words, listener, folder
        self.start()

    def start(self) -> None:
        number = self.listener.fileno()
        self.started = time.monotonic()
        Path(self.folder).mkdir(exist_ok=True)  # something may have cleaned the temporary files
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", PROGRAM.format(path=sys.path), *self.words, "--listener", str(number)],
            stdin=subprocess.PIPE,
            pass_fds=[number],
            env={**os.environ, FOLDER_VARIABLE: self.folder},
            start_new_session=True,  # Ctrl-C is for this process, which ends the workers
        )

    def restart_if_dead(self) -> None:
        if self.process.poll() is None:
            return
        log.warning("worker %d ended with status %d; another is started", self.process.pid, self.process.returncode)
        mark_process_dead(self.process.pid, self.folder)  # type: ignore[no-untyped-call]
        if time.monotonic() - self.started < MIN_LIFE_SECONDS:
            time.sleep(1)
        self.close()
        try:
            self.start()
        except OSError as error:  # too little memory, or too many processes or open files
            log.warning("no worker can be started: %s; trying again", error.strerror or error)

    def stop(self, end: float) -> None:
        try:
            self.process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()


def run_workers(count: int, words: Sequence[str], listener: socket.socket) -> int:
    """Until Ctrl-C or SIGTERM; the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    with tempfile.TemporaryDirectory(prefix="lockstep-metrics-") as folder:
        workers: list[Worker] = []
        try:
            for _ in range(count):
                workers.append(Worker(words, listener, folder))
            while True:
                time.sleep(CHECK_SECONDS)
                for worker in workers:
                    worker.restart_if_dead()
        except (KeyboardInterrupt, SystemExit):
            return 0
        except OSError as error:
            raise LockstepError(f"a worker cannot be started: {error.strerror or error}; lower --workers") from None
        finally:
            for worker in workers:
                worker.process.terminate()
            end = time.monotonic() + STOP_SECONDS
            for worker in workers:
                worker.stop(end)


def watch_parent() -> None:
    """In a worker: end when the process that has started it has ended, also if it was killed."""
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    os.read(0, 1)  # stdin, not through its buffer, whose lock would be held when the interpreter ends
    shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)
