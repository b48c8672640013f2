"""Runs a stage's command as DVC would, and prints at the end how many seconds the stage function took.

python benchmarks/time_stage.py IMPORTS STAGE FLAG...

IMPORTS is a JSON file with the modules that the stage imports, which are imported first; it is written if it does not
exist. STAGE `none` imports them and does nothing else.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path

from cyclopts import App


def import_modules(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # a module that only its own package can import
            importlib.import_module(name)


def main(imports: Path, name: str, flags: list[str]) -> None:
    if imports.exists():
        import_modules(json.loads(imports.read_text()))
    resume_garbage_collection()
    if name == "none":
        return
    stage = getattr(importlib.import_module(f"stages.{name}"), name)
    call, arguments, _ = App(default_command=stage).parse_args(flags)
    start = time.perf_counter()
    call(*arguments.args, **arguments.kwargs)
    seconds = time.perf_counter() - start
    if not imports.exists():
        imports.write_text(json.dumps([module for module in sys.modules if module != "__main__"]))
    print(json.dumps({"work": seconds}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    from stages.core.arithmetic import set_arithmetic_env

    gc.disable()  # both before torch is imported, as `python -m stages.NAME` does
    set_arithmetic_env(sys.argv[3:], os.environ)
    from stages.core.command import resume_garbage_collection

    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
