"""The environment that DVC and the stages run in, and commands run in it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def environment() -> dict[str, str]:
    """This process's own, with its Python's folder first on PATH: a stage's `python` is the one that runs this."""
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # lines appear when they are written, also in a pipe
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def run_command(command: Sequence[str], root: Path, *, quiet: bool = False) -> int:
    """The exit status of the command; `quiet`: it shows nothing and asks nothing."""
    nothing = subprocess.DEVNULL if quiet else None
    done = subprocess.run(
        command, cwd=root, env=environment(), stdin=nothing, stdout=nothing, stderr=nothing, check=False
    )
    return done.returncode


def set_param_flags(params: Mapping[str, object]) -> list[str]:
    """The -S flags of `dvc exp run` that set these params."""
    return [flag for name, value in params.items() for flag in ("-S", f"{name}={plain(value)}")]


def plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
