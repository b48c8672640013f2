"""Runs programs of flows/ for commands that need the pipeline: in a clone, with its environment, in a process each."""

import subprocess
import sys
from pathlib import Path

from lockstep.errors import LockstepError

SUPERVISOR = Path("flows", "supervisor.py")


def start_program(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE` in this folder. It ends when its stdin is closed, also if this process is killed."""
    if not SUPERVISOR.is_file():
        raise LockstepError("this needs a clone of the project as the current folder, and `make setup` there")
    command = [sys.executable, "-I", "-S", str(SUPERVISOR), sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
