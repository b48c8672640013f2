"""Checks a params file: every section against the stage that reads it, before any stage runs."""

import importlib
import sys
from pathlib import Path

from cyclopts import App

from stages.core.errors import StageError
from stages.core.params import Machine, Section, read_section, stage_names

HELP = """Check a params file before any stage runs: unknown, renamed and missing keys, types and ranges.

Example: `python -m stages --params params.yaml train evaluate`

Stages: {stages}. `python -m stages.NAME --help` lists the flags of one; `dvc repro` runs them all.
"""


def check(*names: str, params: Path) -> None:
    """Print one line for each section with errors, and exit with status 1 if there is one.

    Args:
        names: Stages to check; all if none is named. A name that is no module of stages/ is skipped.
        params: The params file.
    """
    sections: list[tuple[str, type[Section]]] = [("machine", Machine)]
    for name in stage_names():
        if name in names or not names:
            sections += [(name, section) for section in declared_sections(name)]
    errors: dict[str, None] = {}  # without repetitions: an error of the whole file is found with every section
    for name, section in sections:
        try:
            read_section(params, name, section)
        except StageError as error:
            errors[str(error)] = None
    for message in errors:
        print(message, file=sys.stderr)
    sys.exit(1 if errors else 0)


def declared_sections(name: str) -> list[type[Section]]:
    """The section that the module of a stage declares; none if the stage has no params."""
    module = importlib.import_module(f"stages.{name}")
    classes = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    return [item for item in classes if issubclass(item, Section)]


if __name__ == "__main__":
    app = App(name="python -m stages", default_command=check, result_action="return_none", version_flags=[])
    app.help = HELP.format(stages=", ".join(stage_names()))
    app()
