"""Runs a flow from a terminal: on the configured Prefect server or a temporary one, with the flow's log on stdout."""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cyclopts import App, Parameter

from flows.errors import FlowError
from flows.server import start_temporary_server

if TYPE_CHECKING:
    from prefect import State

LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def run_cli(command: Callable[..., None], name: str) -> NoReturn:
    """Parse the command line, run the command with it, and exit. A FlowError is printed as one line."""
    prefix = name.rpartition(".")[2]
    try:
        App(
            name=name,
            default_command=command,
            default_parameter=Parameter(negative=()),  # no --no-force
            version_flags=(),
            result_action="return_none",
        )()
    except FlowError as error:
        sys.exit(f"{prefix}: {error}")
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        from prefect.settings import PREFECT_API_URL

        url = PREFECT_API_URL.value()
        sys.exit(f"{prefix}: no Prefect server answers at {url}: start it, or unset PREFECT_API_URL")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def run_flow(flow: Any, wait_for_server: Callable[[], str] | None = None, **parameters: Any) -> int:
    """Run the flow in this process; returns its exit status. WAIT_FOR_SERVER is of one that is already starting."""
    from httpx import TransportError
    from prefect.exceptions import TerminationSignal  # Prefect takes a second to import
    from prefect.settings import PREFECT_API_URL, temporary_settings

    wait_for_server = wait_for_server or start_temporary_server()
    log_to_terminal()
    with ExitStack() as stack:
        if wait_for_server:
            stack.enter_context(temporary_settings({PREFECT_API_URL: wait_for_server()}))
            logging.getLogger("prefect.engine").setLevel(logging.WARNING)  # no link to a page that ends with the run
        try:
            state: State[Any] = asyncio.run(flow(**parameters, return_state=True))
        except TerminationSignal as error:
            sys.exit(128 + error.signal)
        except TransportError as error:
            raise FlowError(
                f"the Prefect server has stopped answering ({error}), so the end of this run is not on record there; "
                "what its stages have made is in DVC's cache: start the server, and run it again"
            ) from None
    return 0 if state.is_completed() else 1


def log_to_terminal() -> None:
    for logger in map(logging.getLogger, LOGGERS):
        logger.propagate = False
        logger.addHandler(TerminalHandler(sys.stdout))


class TerminalHandler(logging.StreamHandler[Any]):
    """Shows what this project's flows log, and nothing of Prefect; a task's lines start with its name."""

    def filter(self, record: logging.LogRecord) -> bool:
        return Path(__file__).parent in Path(record.pathname).parents

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "task_run_name", None)
        prefix = f"{name:<16}| " if name else ""
        return "\n".join(f"{prefix}{line}" for line in record.getMessage().splitlines())
