"""The environment in which DVC and the stages run."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment() -> dict[str, str]:
    """This process's environment, with its Python first on PATH: the `python` of a stage's command is this one."""
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # lines appear when they are written, also in a pipe
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def run_command(command: Sequence[str], root: Path, *, quiet: bool = False) -> int:
    """Run a command in this terminal, or without input and output if QUIET; returns its exit status."""
    stream = subprocess.DEVNULL if quiet else None
    result = subprocess.run(
        command, cwd=root, env=environment(), stdin=stream, stdout=stream, stderr=stream, check=False
    )
    return result.returncode
