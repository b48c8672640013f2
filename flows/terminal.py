"""A flow run from a terminal: on the server that is set or a temporary one, its lines here, a problem as one line."""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from cyclopts import App
from prefect import State
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.errors import FlowError
from flows.server import temporary_server

LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def run_cli(command: Callable[..., None], name: str) -> NoReturn:
    """Run a command with the command line's flags, and exit."""
    try:
        App(name=name, default_command=command, result_action="return_none")()
    except FlowError as problem:
        sys.exit(f"{name.rpartition('.')[2]}: {problem}")
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        url = PREFECT_API_URL.value()
        sys.exit(f"{name.rpartition('.')[2]}: no Prefect server answers at {url}: start it, or unset PREFECT_API_URL")
    except KeyboardInterrupt:
        sys.exit(130)
    except TerminationSignal as ended:
        sys.exit(128 + ended.signal)
    sys.exit(0)


def run_flow(run: Any, temporary: Callable[[], str] | None = None, **parameters: Any) -> int:
    """The exit status of a run of the flow in this process, whose lines this terminal shows.

    TEMPORARY is a server that was started before.
    """
    temporary = temporary or temporary_server()
    lines()
    with ExitStack() as stack:
        if temporary:
            stack.enter_context(temporary_settings({PREFECT_API_URL: temporary()}))
            logging.getLogger("prefect.engine").setLevel(logging.WARNING)  # it would name a page that ends with the run
        state: State[Any] = asyncio.run(run(**parameters, return_state=True))
    return 0 if state.is_completed() else 1


def lines() -> None:
    """Show what the flows say, and of Prefect itself the warnings alone."""
    for logger in map(logging.getLogger, LOGGERS):
        logger.propagate = False
        logger.addHandler(Lines(sys.stdout))


class Lines(logging.StreamHandler[Any]):
    """What this project's flows log, each line of a task headed by its name."""

    def filter(self, record: logging.LogRecord) -> bool:
        return Path(__file__).parent in Path(record.pathname).parents

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "task_run_name", None)
        head = f"{name:<16}| " if name else ""
        return "\n".join(f"{head}{line}" for line in record.getMessage().splitlines())
