"""What a check returns, and what several checks know of the project: files and commands that are read once for all."""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.errors import FlowError

if TYPE_CHECKING:  # at run time a check imports these itself, since the packages that they need may be missing
    from flows.dvc.dag import Dag

Status = Literal["ok", "warning", "error", "skipped"]
FACT_TIMEOUT = 60.0  # seconds to wait for what another check is reading


@dataclass(frozen=True)
class Finding:
    status: Status  # an error ends a run or makes its results wrong; with a warning a run still works
    message: str
    fix: str = ""  # a command, or what a person has to do


@dataclass(frozen=True)
class Check:
    group: str
    name: str
    find: Callable[["Project"], Iterable[Finding]]


class SkipError(Exception):
    """A check is not possible, or not needed here: the message says why."""


class Facts:
    """Each value is computed once, by the first thread that asks for it. Its error is raised for everyone."""

    def __init__(self) -> None:
        self.lock, self.futures = threading.Lock(), dict[str, Future[Any]]()

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        with self.lock:
            is_first = name not in self.futures
            future = self.futures.setdefault(name, Future())
        if is_first:
            try:
                future.set_result(compute())
            except Exception as error:
                future.set_exception(error)
        return future.result(FACT_TIMEOUT)


@dataclass(frozen=True)
class Project:
    root: Path
    min_free: float = 1.0  # GB of each disk
    port: int = 8000  # of `make serve`
    facts: Facts = field(default_factory=Facts)

    def relative(self, path: Path) -> str:
        """The path as a person in the project's folder types it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def params(self) -> Mapping[str, Any]:
        """The params by their names, such as train.epochs."""

        def read() -> dict[str, Any]:
            from flows.dvc.params_file import flatten, read_params

            return flatten(read_params(self.root / "params.yaml"))

        try:
            params: Mapping[str, Any] = self.facts.get("params", read)
        except FlowError as error:
            raise SkipError("params.yaml cannot be read: see params") from error
        return params

    def dag(self) -> "Dag":
        def read() -> "Dag":
            from flows.dvc.dag import read_dag

            return read_dag(self.root)

        try:
            dag: Dag = self.facts.get("dag", read)
        except FlowError as error:
            raise SkipError("dvc.yaml cannot be read: see pipeline") from error
        return dag

    def lock_entries(self) -> Mapping[str, Any]:
        """The entries of dvc.lock by stage; none if there is no such file."""

        def read() -> Any:
            from ruamel.yaml import YAML

            path = self.root / "dvc.lock"
            return YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}

        try:
            return dict(self.facts.get("lock", read))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # cut off at any byte
            raise SkipError("dvc.lock cannot be read: see dvc.lock") from error


def setup_fix(root: Path) -> str:
    """The command that makes the environment anew: `make setup` alone does nothing if it believes it to be complete."""
    lock, installed = root / "requirements.lock", root / ".venv" / "installed.lock"
    is_believed_complete = installed.exists() and lock.exists() and installed.read_bytes() == lock.read_bytes()
    return "rm .venv/installed.lock && make setup" if is_believed_complete else "make setup"


def name_some(names: Iterable[str], most: int = 3) -> str:
    first, rest = [*names][:most], [*names][most:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")
