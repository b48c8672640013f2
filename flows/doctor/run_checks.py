"""Runs the checks at the same time, and gives the findings of each in the order of the table."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from flows.doctor.data import check_cache, check_dvc_locks, check_lockfile, check_outputs, check_remote
from flows.doctor.findings import Check, Finding, Project, SkipError
from flows.doctor.inputs import check_dataset, check_git, check_params, check_pipeline
from flows.doctor.leftovers import check_checkpoints, check_clones, check_processes, check_temporary_files
from flows.doctor.machine import (
    check_arithmetic,
    check_clock,
    check_commands,
    check_disk,
    check_memory,
    check_open_files,
    check_packages,
    check_python,
    check_threads,
    check_torch,
)
from flows.doctor.probe import hide_password
from flows.doctor.services import (
    check_database,
    check_model,
    check_port,
    check_prefect,
    check_providers,
    check_temporary_server,
    check_workers,
)
from flows.errors import FlowError

DEADLINE = 40.0  # seconds; each check has shorter limits of its own, except for a disk that does not answer
CHECKS = (
    Check("environment", "python", check_python),
    Check("environment", "packages", check_packages),
    Check("environment", "commands", check_commands),
    Check("environment", "torch", check_torch),
    Check("machine", "arithmetic", check_arithmetic),
    Check("machine", "threads", check_threads),
    Check("machine", "memory", check_memory),
    Check("machine", "open-files", check_open_files),
    Check("machine", "disk", check_disk),
    Check("machine", "clock", check_clock),
    Check("project", "git", check_git),
    Check("project", "pipeline", check_pipeline),
    Check("project", "params", check_params),
    Check("project", "data-set", check_dataset),
    Check("DVC", "dvc.lock", check_lockfile),
    Check("DVC", "outputs", check_outputs),
    Check("DVC", "cache", check_cache),
    Check("DVC", "remote", check_remote),
    Check("DVC", "locks", check_dvc_locks),
    Check("left by killed runs", "processes", check_processes),
    Check("left by killed runs", "temporary-files", check_temporary_files),
    Check("left by killed runs", "clones", check_clones),
    Check("left by killed runs", "checkpoints", check_checkpoints),
    Check("Prefect", "prefect", check_prefect),
    Check("Prefect", "database", check_database),
    Check("Prefect", "temporary-server", check_temporary_server),
    Check("Prefect", "workers", check_workers),
    Check("model", "model", check_model),
    Check("model", "providers", check_providers),
    Check("model", "port", check_port),
)


def run_checks(checks: Sequence[Check], project: Project) -> Iterator[tuple[Check, list[Finding]]]:
    """Each check runs in a thread of its own, which is left alone if it does not end."""
    futures = {check: Future[list[Finding]]() for check in checks}
    for check, future in futures.items():
        threading.Thread(target=complete, args=(future, check, project), daemon=True, name=check.name).start()
    deadline = time.monotonic() + DEADLINE
    for check, future in futures.items():
        try:
            yield check, future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            yield check, [Finding("error", f"did not end within {DEADLINE:.0f} s: does every disk answer?", "df")]


def complete(future: Future[list[Finding]], check: Check, project: Project) -> None:
    future.set_result(find(check, project))


def find(check: Check, project: Project) -> list[Finding]:
    """The findings of a check. It may fail in any way, since what it looks at may be broken in any way."""
    try:
        return list(check.find(project))
    except SkipError as error:
        return [Finding("skipped", str(error))]
    except ModuleNotFoundError as error:
        return [Finding("skipped", f"needs the package {error.name}, which is not installed")]
    except FlowError as error:
        return [Finding("error", hide_password(str(error)), f"mend that, then: python -m flows.doctor {check.name}")]
    except Exception as error:
        message = f"the check itself failed: {type(error).__name__}: {error}"[:300]
        return [Finding("error", message, "report this as a bug of the doctor")]
