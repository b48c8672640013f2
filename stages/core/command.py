"""Runs a stage's function as a command: flags from its signature, errors as one line, and an end when orphaned."""

import atexit
import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import psutil
from cyclopts import App

from stages.core.errors import StageError
from stages.core.params import changed_params, sections_read
from stages.core.source import changed_source

RESTORE_HINT = "If DVC removed this stage's previous outputs, `dvc checkout` and `git checkout` restore them."
SHELLS = ("sh", "bash", "dash", "zsh")
# The process that has started this one to train together with others, and the folder of their temporary files.
LAUNCHER, LAUNCHER_FOLDER = "LOCKSTEP_LAUNCHER", "LOCKSTEP_LAUNCHER_FOLDER"


def run_stage(stage: Callable[..., None]) -> NoReturn:
    """Run the stage with the flags of the command line, then exit: 0, the status of an error, or 130 for Ctrl-C."""
    resume_garbage_collection()
    is_worker = "RANK" in os.environ  # one of several processes that train together
    is_run_by_dvc = "DVC_STAGE" in os.environ and not is_worker
    if is_run_by_dvc or is_worker:  # started by a person, the stage may outlive its shell
        end_when_orphaned(is_run_by_dvc)
    sections_read.clear()
    app = App(
        name=f"python -m stages.{stage.__name__}",
        default_command=stage,
        result_action="return_none",
        suppress_keyboard_interrupt=False,
        version_flags=[],
    )
    try:
        app()
        # DVC hashes source and params after this process has ended, so it would record a version that has not run.
        if changed := ", ".join([*changed_params(), *changed_source()]):
            raise StageError(
                f"{changed} changed while the stage ran: its outputs are of the version before; run it again"
            )
    except (StageError, OSError) as error:  # an OSError: a full disk, or a file without write permission
        print(f"{stage.__name__}: {error}", file=sys.stderr)
        if is_run_by_dvc:
            print(RESTORE_HINT, file=sys.stderr)
        sys.exit(error.status if isinstance(error, StageError) else 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{stage.__name__}: not enough memory: use a smaller batch, network or image size", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{stage.__name__}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def resume_garbage_collection() -> None:
    """End what stages/__init__.py has begun: imports without garbage collection.

    What is there by now lives until the process ends, and is not looked at again; nor is anything at exit.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system, or a GPU, has no memory left: PyTorch raises RuntimeErrors that say so."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory"))


def end_when_orphaned(is_run_by_dvc: bool, interval: float = 0.2) -> None:
    """Exit soon after the process that started this one has ended, so that a killed `dvc repro` leaves no stage."""
    starters = starting_processes()
    # A stage has DVC's process group. If its parent has another one, DVC was killed before this line, and the parent is
    # the process that adopts orphans.
    if is_run_by_dvc and not all(map(is_in_process_group, starters)):
        exit_orphaned()
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):  # it was killed before this line
        exit_orphaned()

    def watch() -> None:
        while all(map(is_alive, starters)):
            time.sleep(interval)
        exit_orphaned()

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def starting_processes() -> list[psutil.Process]:
    """The parent of this process; if that is a shell, which DVC starts for each command, also the shell's parent."""
    starters: list[psutil.Process] = []
    for process in psutil.Process().parents():
        starters.append(process)
        if process.pid == 1 or process.name() not in SHELLS:
            break
    return starters


def is_in_process_group(process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == os.getpgrp()
    except (ProcessLookupError, PermissionError):
        return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def exit_orphaned() -> NoReturn:
    print("the process that started this stage is gone: the stage ends too", file=sys.stderr, flush=True)
    if folder := os.environ.get(LAUNCHER_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # no other clean-up is needed: outputs are written atomically


def echo(*words: Any) -> None:
    """Print without buffering, so that a reader of a pipe sees each line at once."""
    print(*words, flush=True)
