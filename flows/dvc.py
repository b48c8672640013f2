"""The `dvc` command, which waits for other DVC commands where it would fail for their sake."""

import asyncio
import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.process import Ended, follow

PAUSE = 0.3  # seconds between two looks at what others hold
PATIENCE = 5  # looks, before a line says so
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")


async def dvc(
    words: Sequence[str],
    root: Path,
    *,
    say: Callable[[str], None] | None = None,
    file: Path | None = None,
    limit: float | None = None,
) -> Ended:
    """Run `dvc WORDS` in ROOT, as soon as other DVC commands let it; LIMIT is without the waiting."""
    told = ""
    while True:
        await lock_is_free(root, say)
        done = await follow(["dvc", "--wait-for-lock", *words], root, say=say, file=file, limit=limit)
        busy = [line for line in done.lines if line.startswith("ERROR") and any(word in line for word in BUSY)]
        if done.status == 0 or not busy:
            return done
        holders = ", ".join(line.strip() for line in done.lines if line.strip().startswith("(PID"))
        if say and told != holders:
            say(f"Waiting for another DVC command: {holders}")
        told = holders
        await asyncio.sleep(PAUSE * PATIENCE)


async def lock_is_free(root: Path, say: Callable[[str], None] | None) -> None:
    """Wait while another command holds DVC's lock: DVC itself waits without a word."""
    looks = 0
    while locked(root / ".dvc" / "tmp" / "lock"):
        looks += 1
        if say and looks == PATIENCE:
            say("Waiting for DVC's lock, which another DVC command holds")
        await asyncio.sleep(PAUSE)


def locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
