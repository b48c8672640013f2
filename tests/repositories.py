"""Git repositories that contain the pipeline, and commands run in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import QUICK_PARAMS, ROOT

from flows.dvc.dag import read_dag
from flows.dvc.params_file import set_param

STAGES = [*read_dag(ROOT).stages]  # in the order in which `dvc repro` runs them
CompletedCommand = subprocess.CompletedProcess[str]


def command_environment() -> dict[str, str]:
    """As `make` sets it: this Python first on PATH. And no network: the proxy refuses every connection.

    A `make` below this one does not take itself for a part of `make test`: it would print the folders it enters.
    """
    proxy = "http://127.0.0.1:9"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return {**inherited, "PATH": path, "http_proxy": proxy, "https_proxy": proxy, "no_proxy": ""}


def run_command(folder: Path, *command: str, status: int | None = 0) -> CompletedCommand:
    done = subprocess.run(command, cwd=folder, env=command_environment(), capture_output=True, text=True, check=False)
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done


def run_dvc(folder: Path, *arguments: str, status: int | None = 0) -> CompletedCommand:
    return run_command(folder, "dvc", *arguments, status=status)


def executed_stages(done: CompletedCommand) -> list[str]:
    """The stages that `dvc repro` ran, in order."""
    lines = done.stdout.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def commit_all(folder: Path) -> None:
    run_command(folder, "git", "add", "-A")
    run_command(folder, "git", "commit", "-qm", "work")


def create_project(folder: Path, params: dict[str, object]) -> Path:
    """Copy this working tree without results into a new repository, with these params, and commit it."""
    files = run_command(ROOT, "git", "ls-files", "-co", "--exclude-standard", "-z").stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists() and not name.startswith("data/reports") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for param, value in params.items():
        set_param(folder / "params.yaml", param, value)
    run_command(folder, "git", "init", "-q", "-b", "main")
    run_command(folder, "git", "config", "user.email", "test@example.org")
    run_command(folder, "git", "config", "user.name", "test")
    commit_all(folder)
    return folder


DIGITS_PARAMS = {**QUICK_PARAMS, "download.dataset": "digits", "train.epochs": 6, "evaluate.min_accuracy": 0.5}
