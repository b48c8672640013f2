"""A stage's command, run as ever, that prints at its end how many seconds went into its computation.

python benchmarks/watched.py STAGE FLAG...
"""

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


if __name__ == "__main__":
    name, *flags = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    module = importlib.import_module(f"stages.{name}")
    for path in WORK[name]:
        *owners, function = path.split(".")
        owner = getattr(module, owners[0]) if owners else module
        setattr(owner, function, counted(getattr(owner, function)))
    App(default_command=getattr(module, name), result_action="return_none")(flags)
    print(json.dumps({"work": spent}))
