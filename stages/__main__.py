"""Check every section of a params file, each against the stage that reads it, before any of them starts."""

import importlib
import pkgutil
import sys
from pathlib import Path

from cyclopts import App

from stages.core.errors import StageError
from stages.core.params import Machine, Section, read_section


def check(*names: str, params: Path) -> None:
    """Name each wrong key of PARAMS in one line; NAMES are the stages to ask, otherwise all of them."""
    problems = list(dict.fromkeys(filter(None, (problem(params, name) for name in ["machine", *asked(names)]))))
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    sys.exit(1 if problems else 0)


def asked(names: tuple[str, ...]) -> list[str]:
    """A stage of dvc.yaml that is no module here has no section to check."""
    return [name for name in modules() if name in names or not names]


def modules() -> list[str]:
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if not module.ispkg]
    return [name for name in found if name != "__main__"]


def problem(params: Path, name: str) -> str:
    """What is wrong with a section, or nothing."""
    try:
        for section in [Machine] if name == "machine" else sections(name):
            read_section(params, name, section)
    except StageError as wrong:
        return str(wrong)
    return ""


def sections(name: str) -> list[type[Section]]:
    """The section that a stage's module declares."""
    kinds = vars(importlib.import_module(f"stages.{name}")).values()
    own = [kind for kind in kinds if isinstance(kind, type) and kind.__module__ == f"stages.{name}"]
    return [kind for kind in own if issubclass(kind, Section)]


if __name__ == "__main__":
    App(name="python -m stages", default_command=check, result_action="return_none")()
