"""One child under a supervisor: its lines as they come, a time limit, and nothing left behind however this ends."""

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

from flows import supervisor
from flows.environment import environment

PROGRESS = 15.0  # seconds between two lines of a progress bar
KEPT = 1000  # lines


@dataclass(frozen=True)
class Ended:
    status: int
    lines: tuple[str, ...]  # the last ones
    timed_out: bool = False


async def follow(
    command: Sequence[str],
    root: Path,
    *,
    say: Callable[[str], None] | None = None,
    file: Path | None = None,
    limit: float | None = None,
) -> Ended:
    """Run the command in ROOT and hand on each line as it comes, all also to a file; end it after LIMIT seconds."""
    process = subprocess.Popen(  # asyncio's own never ends if it is cancelled with all other tasks while it starts one
        [sys.executable, "-I", "-S", supervisor.__file__, *command],
        cwd=root,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C in the terminal is the flow's to hear
    )
    assert process.stdin is not None
    output, screen, kept, timed_out = asyncio.StreamReader(), Screen(), deque[str](maxlen=KEPT), False
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), process.stdout)
        async with asyncio.timeout(limit):
            chunk = b"\n"
            while chunk:
                chunk = await output.read(65536)
                if file:
                    with file.open("ab") as whole:
                        whole.write(chunk)
                for line in screen.feed(chunk or b"\n"):
                    kept.append(line)
                    if say:
                        say(line)
            await wait_exit(process)
    except TimeoutError:
        timed_out = True
    finally:
        process.stdin.close()  # the supervisor ends what is left
        status = await finished(process, output)
    return Ended(status, tuple(kept), timed_out)


async def finished(process: subprocess.Popen[bytes], output: asyncio.StreamReader) -> int:
    """Its exit status, waited for also in a task that is being cancelled, as long as a supervisor may need."""
    waiting = asyncio.ensure_future(asyncio.wait_for(drained(process, output), 4 * supervisor.GRACE))
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            continue
    return 128 + signal.SIGKILL if isinstance(waiting.exception(), TimeoutError) else waiting.result()


async def drained(process: subprocess.Popen[bytes], output: asyncio.StreamReader) -> int:
    """Whoever still writes must not be kept from ending by a full pipe."""
    while await output.read(65536):
        pass
    return await wait_exit(process)


async def wait_exit(process: subprocess.Popen[bytes]) -> int:
    while (status := process.poll()) is None:
        await asyncio.sleep(0.01)
    return status


class Screen:
    """Output as a terminal shows it: a text after a carriage return takes the place of what was in the line."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.line = ""
        self.returned = False
        self.shown = time.monotonic()

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The lines that ended; of a line that is drawn over and over, now and then what it shows."""
        for text, end in re.findall(r"([^\r\n]*)([\r\n]?)", self.decoder.decode(chunk)):
            self.line = text if text and self.returned else self.line + text
            self.returned = end == "\r" or (self.returned and not text and not end)
            late = time.monotonic() - self.shown > PROGRESS
            if self.line.strip() and (end == "\n" or (end == "\r" and late)):
                self.shown = time.monotonic()
                yield self.line.rstrip()
            if end == "\n":
                self.line = ""
