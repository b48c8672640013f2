"""Runs a command for a check, with a time limit, and finds processes, locks and ports in Linux's /proc."""

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.doctor.findings import SkipError
from flows.environment import environment
from flows.process import CommandResult, stream_command
from flows.supervisor import open_files

PROC = Path("/proc")
LISTENING = "0A"  # a state in /proc/net/tcp


def run(command: Sequence[str], root: Path, timeout: float) -> CommandResult:
    """Run the command in ROOT with the project's environment; no process is left."""
    if not shutil.which(command[0], path=environment()["PATH"]):
        raise SkipError(f"the command {command[0]} was not found")
    return asyncio.run(stream_command(command, root, timeout=timeout, max_lines=None))


def run_program(program: str, root: Path, timeout: float) -> tuple[dict[str, Any], CommandResult]:
    """Run Python source that prints JSON objects, a line each; returns them merged, also if it ends early."""
    result = run(["python", "-c", program], root, timeout)
    facts: dict[str, Any] = {}
    for line in result.lines:
        with contextlib.suppress(ValueError):
            facts |= json.loads(line) if line.startswith("{") else {}
    return facts, result


def last_line(result: CommandResult) -> str:
    return result.lines[-1].strip() if result.lines else f"exit status {result.returncode}"


def hide_password(text: str) -> str:
    """Without the user and password of URLs."""
    return re.sub(r"://[^/@\s]*@", "://", text)


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"PID {self.pid} ({' '.join(self.command)[:60]})"


def read_process(pid: int) -> Process | None:
    """None if there is no such process, or another user's that cannot be read."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        command = (PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, int(fields[1]), tuple(command))


def list_processes() -> dict[int, Process]:
    if not PROC.is_dir():
        raise SkipError("this system has no /proc")
    pids = [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]
    return {pid: process for pid in pids if (process := read_process(pid))}


def ancestors(process: Process, processes: dict[int, Process]) -> Iterator[Process]:
    while process.parent in processes:
        process = processes[process.parent]
        yield process


def working_directory(pid: int) -> Path | None:
    try:
        return (PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def lock_holder(path: Path) -> Process | None:
    """The process that holds the lock of the file or folder. Reads only: taking the lock would disturb a run."""
    if not (PROC / "locks").exists():
        raise SkipError("this system has no /proc/locks")
    try:
        inode, lines = str(path.stat().st_ino), (PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    for words in map(str.split, lines):  # 1: FLOCK ADVISORY WRITE pid major:minor:inode start end
        if words[1] != "->" and words[5].rpartition(":")[2] == inode:
            return read_process(int(words[4])) or Process(int(words[4]), 0, ("of another user",))
    return None


def file_holders(path: Path) -> list[Process]:
    """The processes that have the file open."""
    found = []
    for pid, process in list_processes().items():
        with contextlib.suppress(OSError):
            if str(path.resolve()) in open_files(pid):
                found.append(process)
    return found


def port_holder(port: int) -> Process | None:
    """The process that listens at the port, if it may be seen."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for words in map(str.split, (PROC / "net" / name).read_text().splitlines()[1:]):
                if words[3] == LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    for pid, process in list_processes().items():
        with contextlib.suppress(OSError):
            if inodes & set(open_files(pid)):
                return process
    return None


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write to the disk of the path."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize
