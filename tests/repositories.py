"""Git repositories with the pipeline in them, and commands run there as a person runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import QUICK, ROOT

from flows.dvc.params_file import set_param

STAGES = ["download", "preprocess", "train", "evaluate", "export_onnx", "validate_parity"]
Done = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    """As `make` sets it: this Python's folder first on PATH, and no mirror that answers."""
    nowhere = "http://127.0.0.1:9"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": ""}


def run(folder: Path, *command: str, status: int | None = 0) -> Done:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done


def dvc(folder: Path, *words: str, status: int | None = 0) -> Done:
    return run(folder, "dvc", *words, status=status)


def ran(done: Done) -> list[str]:
    lines = done.stdout.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "work")


def new_project(folder: Path, params: dict[str, object]) -> Path:
    """What is in this working tree, as a repository of its own, without results."""
    files = run(ROOT, "git", "ls-files", "-co", "--exclude-standard", "-z").stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists() and not name.startswith("data/reports") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for param, value in params.items():
        set_param(folder / "params.yaml", param, value)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "git", "config", "user.name", "test")
    commit(folder)
    return folder


DIGITS = {**QUICK, "download.dataset": "digits", "train.epochs": 6, "evaluate.min_accuracy": 0.5}
