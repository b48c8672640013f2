"""A stage's function as a command: flags from its signature, problems as one line, and an end when orphaned."""

import os
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

RESTORE = "If DVC removed this stage's former outputs, `dvc checkout` and `git checkout` bring them back."


def run_stage(stage: Callable[..., None]) -> NoReturn:
    """Run the stage with the command line's flags and exit: 0 when done, a problem's status, or 130 for Ctrl-C."""
    if "DVC_STAGE" in os.environ or "RANK" in os.environ:  # a stage that a person started may outlive its shell
        end_when_orphaned()
    sections_read.clear()
    app = App(
        name=f"python -m stages.{stage.__name__}",
        default_command=stage,
        result_action="return_none",
        suppress_keyboard_interrupt=False,
    )
    try:
        app()
        check_unchanged()
    except (StageError, OSError) as problem:  # an OSError tells of a full disk, or of a file that may not be written
        print(f"{stage.__name__}: {problem}", file=sys.stderr)
        if "DVC_STAGE" in os.environ:
            print(RESTORE, file=sys.stderr)
        sys.exit(problem.status if isinstance(problem, StageError) else 1)
    except KeyboardInterrupt:
        print(f"{stage.__name__}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def check_unchanged() -> None:
    """Fail if what DVC would record is not what ran: it reads source and params when this process has ended."""
    if changed := [*changed_params(), *changed_source()]:
        raise StageError(
            f"{', '.join(changed)} changed while it ran: its outputs belong to the former version; run it again"
        )


def end_when_orphaned(interval: float = 0.2) -> None:
    """Exit soon after the process that started this one is gone: a killed `dvc repro` leaves no stage behind."""
    chain = ancestors()
    if "DVC_STAGE" in os.environ and any(adopted(parent) for _, parent in chain):
        end()
    threading.Thread(target=watch, args=(chain, interval), name="orphan-watch", daemon=True).start()


def ancestors() -> list[tuple[psutil.Process, int]]:
    """This process with its parent's id; under DVC also the shells that stand between DVC and this process."""
    process = psutil.Process()
    chain = [(process, process.ppid())]
    while "DVC_STAGE" in os.environ and (shell := process.parent()) and shell.name() in ("sh", "bash", "dash", "zsh"):
        if shell.pid == 1:
            break
        chain.append((shell, shell.ppid()))
        process = shell
    return chain


def watch(chain: list[tuple[psutil.Process, int]], interval: float) -> None:
    while all(alive_under(process, parent) for process, parent in chain):
        time.sleep(interval)
    end()


def end() -> NoReturn:
    print("the process that started this stage is gone: the stage ends too", file=sys.stderr, flush=True)
    os._exit(1)  # outputs appear whole, by rename: there is nothing to clean up


def adopted(parent: int) -> bool:
    """Whether DVC was gone before this watch began: who adopts orphans is not of DVC's process group."""
    try:
        return os.getpgid(parent) != os.getpgrp()
    except (ProcessLookupError, PermissionError):
        return True


def alive_under(process: psutil.Process, parent: int) -> bool:
    try:
        return bool(process.ppid() == parent)
    except psutil.NoSuchProcess:
        return False


def echo(*words: Any) -> None:
    """A line for whoever watches, at once also when the output is a pipe."""
    print(*words, flush=True)
