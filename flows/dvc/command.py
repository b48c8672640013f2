"""The `dvc` command, which waits for other DVC commands where it would fail for their sake."""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from flows.errors import FlowError
from flows.process import Ended, follow

PAUSE = 0.3  # seconds between two looks at what others hold
PATIENCE = 5  # looks, before a line says so
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
ADVICE = ("(PID ", "If there are no processes with such PIDs")  # lines that come with it


async def dvc(
    words: Sequence[str],
    root: Path,
    *,
    say: Callable[[str], None] | None = None,
    wait: Callable[[str], None] | None = None,
    file: Path | None = None,
    limit: float | None = None,
) -> Ended:
    """Run `dvc WORDS` in ROOT, as soon as other DVC commands let it; LIMIT is without the waiting.

    WAIT is told when it waits, SAY each line that is not about that.
    """
    told = ""
    while True:
        await wait_for_dvc_lock(root, wait)
        done = await follow(
            ["dvc", "--wait-for-lock", *words],
            root,
            say=lambda line: say(line) if say and not about_waiting(line) else None,
            file=file,
            limit=limit,
        )
        if done.status == 0 or not any(line.startswith("ERROR") and about_waiting(line) for line in done.lines):
            return done
        holders = ", ".join(line.strip() for line in done.lines if line.strip().startswith("(PID"))
        if wait and told != holders:
            wait(f"Waiting for another DVC command: {holders}")
        told = holders
        await asyncio.sleep(PAUSE * PATIENCE)


def about_waiting(line: str) -> bool:
    return line.strip().startswith(ADVICE) or any(word in line for word in BUSY)


async def wait_for_dvc_lock(root: Path, wait: Callable[[str], None] | None) -> None:
    """Wait while another command holds DVC's lock: DVC itself waits without a word."""
    looks = 0
    while locked(root / ".dvc" / "tmp" / "lock"):
        looks += 1
        if wait and looks == PATIENCE:
            wait("Waiting for DVC's lock, which another DVC command holds")
        await asyncio.sleep(PAUSE)


@asynccontextmanager
async def hold_dvc_lock(root: Path) -> AsyncIterator[None]:
    """While no DVC command writes in ROOT: DVC rewrites dvc.lock in place, and holds its own lock meanwhile."""
    with (dvc_tmp_dir(root) / "lock").open("a") as lock:
        while not try_lock(lock):
            await asyncio.sleep(0.05)
        yield


def dvc_tmp_dir(root: Path) -> Path:
    """DVC's folder for locks and the like."""
    if not (root / ".dvc").is_dir():
        raise FlowError(f"{root}: not a DVC project: run `dvc init` in it, or a clone of the project")
    (folder := root / ".dvc" / "tmp").mkdir(exist_ok=True)
    return folder


def try_lock(lock: IO[str]) -> bool:
    """Whether the file could be locked, until it is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
