"""A stage's command, run as ever, that prints at its end how many seconds went into its computation.

python benchmarks/watched.py IMPORTS STAGE FLAG...

What the stage imports on its way counts as an import and not as work: IMPORTS is a file that names it, imported first.
Where there is no such file yet it is written.
"""

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cyclopts import App

# What each stage computes; the rest of its time is reading, writing and checking.
WORK = {
    "download": ["datasets.fetch"],
    "preprocess": ["write", "draw", "stratified"],
    "train": ["fit"],
    "evaluate": ["answers", "draw_first_nine", "draw_mistakes", "draw_tsne"],
    "export_onnx": ["exported"],
    "validate_parity": ["eager", "replies", "wrong_declarations"],
}
spent = 0.0


def counted(work: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        global spent
        started = time.perf_counter()
        try:
            return work(*given, **named)
        finally:
            spent += time.perf_counter() - started

    return call


def import_all(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # a module that only its package can import
            importlib.import_module(name)


if __name__ == "__main__":
    imports, name, *flags = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    known = Path(imports)
    if known.exists():
        import_all(json.loads(known.read_text()))
    if name == "none":
        sys.exit()
    module = importlib.import_module(f"stages.{name}")
    for path in WORK[name]:
        *owners, function = path.split(".")
        owner = getattr(module, owners[0]) if owners else module
        setattr(owner, function, counted(getattr(owner, function)))
    App(default_command=getattr(module, name), result_action="return_none")(flags)
    if not known.exists():
        known.write_text(json.dumps([module for module in sys.modules if module != "__main__"]))
    print(json.dumps({"work": spent}))
