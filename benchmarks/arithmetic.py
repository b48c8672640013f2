"""Time the training loop of the default recipe: portable or native arithmetic, and two trainings at once.

    python -m benchmarks.arithmetic            # portable and native, then one training alone and two at once
    python -m benchmarks.arithmetic --rounds 7

Needs MNIST's splits in data/splits, which `dvc repro preprocess` makes, and a machine without other work.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from ruamel.yaml import YAML

from stages.core.arithmetic import OPENMP_SPIN, PORTABLE_ENV

ROOT = Path(__file__).parent.parent
OUTPUTS = ("weights", "history", "trace", "report", "environment", "checkpoints", "pretrained")
LIBRARY_DEFAULT = {"GOMP_SPINCOUNT": "300000"}  # the default of GNU OpenMP
app = App(name="python -m benchmarks.arithmetic", result_action="return_none")


@app.default
def measure(*, rounds: Annotated[int, Parameter(validator=Number(gte=1))] = 5) -> None:
    """Run each alternative once in each round, and print the medians."""
    if not (ROOT / "data" / "splits").exists():
        sys.exit("data/splits is missing: run `dvc repro preprocess`")
    arithmetics = {name: partial(time_training, 1, {"arithmetic": name}, {}) for name in ("portable", "native")}
    print_comparison("portable or native", arithmetics, rounds)
    spin_counts = {"GOMP_SPINCOUNT=1000": OPENMP_SPIN, "library's default": LIBRARY_DEFAULT}
    for title, count in (("alone, by how threads wait", 1), ("two side by side, by how threads wait", 2)):
        trainings = {name: partial(time_training, count, {}, setting) for name, setting in spin_counts.items()}
        print_comparison(title, trainings, rounds)


def print_comparison(title: str, alternatives: Mapping[str, Callable[[], float]], rounds: int) -> None:
    """Print the median seconds of two alternatives, and all measurements."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            seconds[name].append(run())
    (first, second), medians = alternatives, {name: median(times) for name, times in seconds.items()}
    ratio = medians[first] / medians[second]
    print(f"{title}: {first} {medians[first]:.1f} s, {second} {medians[second]:.1f} s, ratio {ratio:.2f}", flush=True)
    for name, times in seconds.items():
        print(f"  {name}: {' '.join(f'{time:.1f}' for time in sorted(times))}", flush=True)


def time_training(count: int, machine: Mapping[str, Any], environment: Mapping[str, str]) -> float:
    """Seconds of the longest training loop of `count` that run at once."""
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    params["machine"] |= {"device": "cpu", **machine}
    inherited = {name: value for name, value in os.environ.items() if name not in PORTABLE_ENV}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(json.dumps(params))
        processes = [start_training(Path(folder), number, {**inherited, **environment}) for number in range(count)]
        outputs = [process.communicate()[0] for process in processes]
    matches = [re.search(r"steps in ([\d.]+) s", output) for output in outputs]
    assert all(matches), outputs
    return max(float(match[1]) for match in matches if match)


def start_training(folder: Path, number: int, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    paths = {name: folder / str(number) / name for name in OUTPUTS}
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    inputs = ["--params", str(folder / "params.yaml"), "--splits", str(ROOT / "data" / "splits")]
    command = [sys.executable, "-m", "stages.train", *inputs, *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


if __name__ == "__main__":
    app()
