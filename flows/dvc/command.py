"""Runs the `dvc` command: waits for other DVC commands instead of failing, and returns exit status and last lines."""

import asyncio
import fcntl
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from flows.dvc.messages import error_message, is_about_locks, is_busy_error, lock_holders
from flows.errors import FlowError
from flows.process import CommandResult, stream_command

MESSAGE_DELAY = 1.5  # seconds of waiting


async def run_dvc(
    arguments: Sequence[str],
    root: Path,
    *,
    on_line: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
    log_file: Path | None = None,
    timeout: float | None = None,
) -> CommandResult:
    """Run `dvc ARGUMENTS` in ROOT as soon as no other DVC command blocks it.

    ON_LINE gets each line of output that is not about locks; ON_WAIT gets one line when the command has to wait;
    TIMEOUT, in seconds, does not include the waiting.
    """
    reported_holders = ""
    while True:
        async with hold_dvc_lock(root, on_wait):  # DVC itself would wait for its lock without a message
            await remove_damaged_rwlock(root)
        result = await stream_command(
            ["dvc", "--wait-for-lock", *arguments],
            root,
            on_line=lambda line: on_line(line) if on_line and not is_about_locks(line) else None,
            log_file=log_file,
            timeout=timeout,
        )
        if result.returncode == 0 or not any(is_busy_error(line) for line in result.lines):
            return result
        holders = lock_holders(result.lines)
        if on_wait and holders != reported_holders:
            on_wait(f"Waiting for another DVC command: {holders}")
        reported_holders = holders
        await asyncio.sleep(MESSAGE_DELAY)


async def dvc_status(root: Path, on_wait: Callable[[str], None]) -> dict[str, list[Any]]:
    """What `dvc status` reports as changed, by stage."""
    result = await run_dvc(["status", "--json"], root, on_wait=on_wait)
    for line in result.lines:
        if line.startswith("{"):
            content: dict[str, list[Any]] = json.loads(line)
            return content
    raise FlowError(error_message(result.lines))


async def remove_damaged_rwlock(root: Path) -> None:
    """DVC rewrites its list of used paths in place. Killed then, it leaves one that later commands refuse to read."""
    folder = dvc_tmp_dir(root)
    async with hold_lock(folder / "rwlock.lock", "DVC's list of used paths", None):
        try:
            json.loads((folder / "rwlock").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            (folder / "rwlock").unlink(missing_ok=True)


@asynccontextmanager
async def hold_dvc_lock(root: Path, on_wait: Callable[[str], None] | None = None) -> AsyncIterator[None]:
    """Hold DVC's own lock, so that no other DVC command rewrites dvc.lock."""
    async with hold_lock(dvc_tmp_dir(root) / "lock", "DVC's lock, which another DVC command holds", on_wait):
        yield


@asynccontextmanager
async def hold_lock(path: Path, name: str, on_wait: Callable[[str], None] | None) -> AsyncIterator[None]:
    """Hold the lock of a file; ON_WAIT gets a line if that takes longer than MESSAGE_DELAY."""
    start, is_reported = time.monotonic(), False
    try:
        file = path.open("a")
    except OSError as error:
        raise FlowError(
            f"{path}: {error.strerror}: the flow and DVC lock files there; work in a folder of your own"
        ) from error
    with file:
        while not try_lock(file):
            if on_wait and not is_reported and time.monotonic() - start > MESSAGE_DELAY:
                on_wait(f"Waiting for {name}")
                is_reported = True
            await asyncio.sleep(0.1)
        yield


def try_lock(file: IO[str] | int) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def dvc_tmp_dir(root: Path) -> Path:
    """The folder in which DVC keeps its locks."""
    if not (root / ".dvc").is_dir():
        raise FlowError(f"{root}: not a DVC project: run `dvc init` in it, or a clone of the project")
    folder = root / ".dvc" / "tmp"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise FlowError(f"{folder}: {error.strerror}: work in a folder of your own") from error
    return folder
