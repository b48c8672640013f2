"""Runs a command under flows/supervisor.py: its lines as they are written, a timeout, and no process left behind."""

import asyncio
import codecs
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows import supervisor
from flows.environment import environment

PROGRESS_SECONDS = 15.0  # between two lines of a progress bar
MAX_LINES = 1000  # in a result


@dataclass(frozen=True)
class CommandResult:
    returncode: int
    lines: tuple[str, ...]  # the last ones, of both stdout and stderr
    timed_out: bool = False


async def stream_command(
    command: Sequence[str],
    root: Path,
    *,
    on_line: Callable[[str], None] | None = None,
    log_file: Path | None = None,
    timeout: float | None = None,
    max_lines: int | None = MAX_LINES,
    stderr: IO[bytes] | int = subprocess.STDOUT,
) -> CommandResult:
    """Run the command in ROOT, pass on each line as it is written, and append all output to LOG_FILE.

    The result has the last MAX_LINES of the output, or all if that is None. STDERR may be a file of its own.
    """
    process = subprocess.Popen(  # asyncio's own may never end if it is cancelled while it starts
        [sys.executable, "-I", "-S", supervisor.__file__, *command],
        cwd=root,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,  # so that Ctrl-C in the terminal reaches the flow only
    )
    assert process.stdin is not None
    output, decoder = asyncio.StreamReader(), LineDecoder()
    lines, timed_out = deque[str](maxlen=max_lines), False
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), process.stdout)
        async with asyncio.timeout(timeout):
            chunk = b"\n"
            while chunk:
                chunk = await output.read(65536)
                if log_file:
                    with log_file.open("ab") as file:
                        file.write(chunk)
                for line in decoder.feed(chunk or b"\n"):
                    lines.append(line)
                    if on_line:
                        on_line(line)
            await wait_exit(process)
    except TimeoutError:
        timed_out = True
    finally:
        process.stdin.close()  # the supervisor then ends every process of the command
        returncode = await wait_exit_uncancelled(process, output)
    return CommandResult(returncode, tuple(lines), timed_out)


async def wait_exit_uncancelled(process: subprocess.Popen[bytes], output: asyncio.StreamReader) -> int:
    """Wait until the supervisor has ended. If this task is cancelled during that time, cancel it afterwards."""
    timeout = 2 * (supervisor.LOCK_WRITE_TIMEOUT + supervisor.TERM_TIMEOUT)
    waiting = asyncio.ensure_future(asyncio.wait_for(drain_and_wait(process, output), timeout))
    is_cancelled = False
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError
    return 128 + signal.SIGKILL if isinstance(waiting.exception(), TimeoutError) else waiting.result()


async def drain_and_wait(process: subprocess.Popen[bytes], output: asyncio.StreamReader) -> int:
    """Read what is left of the output: a process that writes to a full pipe does not end."""
    while await output.read(65536):
        pass
    return await wait_exit(process)


async def wait_exit(process: subprocess.Popen[bytes]) -> int:
    while (returncode := process.poll()) is None:
        await asyncio.sleep(0.01)
    return returncode


class LineDecoder:
    """Splits output into lines as a terminal shows them: text after a carriage return replaces the line."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.line = ""
        self.at_line_start = False  # after a carriage return
        self.last_line_time = time.monotonic()

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Each complete line. Of a progress bar, which rewrites its line, one version every PROGRESS_SECONDS."""
        for text, end in re.findall(r"([^\r\n]*)([\r\n]?)", self.decoder.decode(chunk)):
            self.line = text if text and self.at_line_start else self.line + text
            self.at_line_start = end == "\r" or (self.at_line_start and not text and not end)
            is_due = time.monotonic() - self.last_line_time > PROGRESS_SECONDS
            if self.line.strip() and (end == "\n" or (end == "\r" and is_due)):
                self.last_line_time = time.monotonic()
                yield self.line.rstrip()
            if end == "\n":
                self.line = ""
