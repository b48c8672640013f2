"""The messages of DVC and of the stages that it runs: what a line of their output means."""

import re
from collections.abc import Sequence

HINTS = (  # lines that suggest a command and report nothing
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.auto",
    "Use `dvc push`",
    "If DVC removed this stage's previous outputs",  # the start of RESTORE in stages/core/command.py, as a test checks
)
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
LOCK_HOLDER = "(PID "
EXIT_STATUS = re.compile(r"^ERROR: .*exited with (\d+)$")  # of a stage's command


def is_hint(line: str) -> bool:
    return line.strip().startswith(HINTS)


def is_about_locks(line: str) -> bool:
    """Whether the line only reports that another DVC command holds a lock."""
    advice = (LOCK_HOLDER, "If there are no processes with such PIDs")
    return line.strip().startswith(advice) or any(message in line for message in BUSY)


def is_busy_error(line: str) -> bool:
    return line.startswith("ERROR") and is_about_locks(line)


def lock_holders(lines: Sequence[str]) -> str:
    return ", ".join(line.strip() for line in lines if line.strip().startswith(LOCK_HOLDER))


def error_message(lines: Sequence[str]) -> str:
    """DVC's errors, or the last lines of its output if it names none."""
    return "\n".join(line for line in lines if line.startswith("ERROR")) or "\n".join(lines[-3:])


def command_exit_status(lines: Sequence[str]) -> int | None:
    """The exit status of the stage's command, if it failed."""
    statuses = [int(match[1]) for line in lines if (match := EXIT_STATUS.match(line))]
    return statuses[-1] if statuses else None


def last_error_line(output: str) -> str:
    """The last line that reports something: for a failed stage its own error instead of DVC's summary and hints."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reports = [line for line in lines if not is_hint(line) and not EXIT_STATUS.match(line)]
    return [*lines[-1:], *reports][-1] if lines else ""


def repro_result(stage: str, lines: Sequence[str]) -> str:
    """What a successful `dvc repro` did with a stage: Ran, Restored from the run cache, or UpToDate."""
    if any(line.startswith(f"Running stage '{stage}'") for line in lines):
        return "Ran"
    return "Restored" if any(line.startswith(f"Stage '{stage}' is cached") for line in lines) else "UpToDate"
