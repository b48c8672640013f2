"""What portable arithmetic costs, and how two trainings share the cores: the default recipe's training loop.

    python -m benchmarks.arithmetic            # portable and native in turn, then one alone and two side by side
    python -m benchmarks.arithmetic --rounds 7

Needs MNIST's splits in data/splits, which `dvc repro preprocess` makes, and a machine without other work.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from ruamel.yaml import YAML

from stages.core.arithmetic import OPENMP_SPIN, PORTABLE

ROOT = Path(__file__).parent.parent
OUTPUTS = ("weights", "history", "trace", "report", "environment", "checkpoints")
LIBRARY_DEFAULT = {"GOMP_SPINCOUNT": "300000"}  # what GNU OpenMP takes where nothing is set
app = App(name="python -m benchmarks.arithmetic", result_action="return_none")


@app.default
def measure(*, rounds: Annotated[int, Parameter(validator=Number(gte=1))] = 5) -> None:
    """Each round runs every alternative once; prints medians."""
    if not (ROOT / "data" / "splits").exists():
        sys.exit("data/splits is missing: `dvc repro preprocess` makes it")
    report("portable or native", ["portable", "native"], rounds, lambda name: train(1, {"arithmetic": name}, {}))
    waits: dict[str, Mapping[str, str]] = {"GOMP_SPINCOUNT=1000": OPENMP_SPIN, "library's default": LIBRARY_DEFAULT}
    report("alone, by how threads wait", [*waits], rounds, lambda name: train(1, {}, waits[name]))
    report("two side by side, by how threads wait", [*waits], rounds, lambda name: train(2, {}, waits[name]))


def report(title: str, names: list[str], rounds: int, run: Any) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(run(name))
    first, second = (median(seconds[name]) for name in names)
    print(f"{title}: {names[0]} {first:.1f} s, {names[1]} {second:.1f} s, ratio {first / second:.2f}", flush=True)
    for name in names:
        print(f"  {name}: {' '.join(f'{each:.1f}' for each in sorted(seconds[name]))}", flush=True)


def train(count: int, machine: Mapping[str, Any], environment: Mapping[str, str]) -> float:
    """The longest training loop, in seconds, of so many that run at once."""
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    params["machine"] |= {"device": "cpu", **machine}
    plain = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(json.dumps(params))
        running = [start(Path(folder), number, {**plain, **environment}) for number in range(count)]
        said = [process.communicate()[0] for process in running]
    found = [re.search(r"steps in ([\d.]+) s", text) for text in said]
    assert all(found), said
    return max(float(match[1]) for match in found if match)


def start(folder: Path, number: int, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    paths = {name: folder / str(number) / name for name in OUTPUTS}
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    known = ["--params", str(folder / "params.yaml"), "--splits", str(ROOT / "data" / "splits")]
    command = [sys.executable, "-m", "stages.train", *known, *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


if __name__ == "__main__":
    app()
