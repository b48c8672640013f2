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
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def run(command: Sequence[str], root: Path, *, quiet: bool = False) -> int:
    """The exit status of the command, its output shown unless `quiet`."""
    sink = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, cwd=root, env=environment(), stdout=sink, stderr=sink, check=False).returncode


def output(command: Sequence[str], root: Path) -> str:
    """What the command prints; a CalledProcessError with its stderr if it fails."""
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout


def overrides(params: Mapping[str, object]) -> list[str]:
    """The -S flags of `dvc exp run` that set these params."""
    return [flag for name, value in params.items() for flag in ("-S", f"{name}={plain(value)}")]


def plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
