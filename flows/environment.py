"""The environment in which DVC and the stages run: the project's own, .venv, or that of this process."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT_BIN = Path(__file__).parent.parent / ".venv" / "bin"


def environment() -> dict[str, str]:
    """This process's variables, with the project's Python first on PATH: it is the `python` of a stage's command.

    A worker's own Python may be another one, which has Prefect but not the libraries of this revision.
    """
    folder = PROJECT_BIN if PROJECT_BIN.is_dir() else Path(sys.executable).parent
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # lines appear when they are written, also in a pipe
        "PATH": os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)]),
    }


def run_command(command: Sequence[str], root: Path, *, quiet: bool = False) -> int:
    """Run a command in this terminal, or without input and output if QUIET; returns its exit status."""
    stream = subprocess.DEVNULL if quiet else None
    result = subprocess.run(
        command, cwd=root, env=environment(), stdin=stream, stdout=stream, stderr=stream, check=False
    )
    return result.returncode
