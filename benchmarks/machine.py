"""What a benchmark ran on, how fast that multiplies matrices, and the file that its raw numbers go to."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def describe(threads: int) -> str:
    return (
        f"{processor()}, {threads} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def limit(threads: int, dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Floating point operations a second in products of square matrices: the median of five."""
    torch.set_num_threads(threads)
    a, b = torch.rand(size, size, dtype=dtype), torch.rand(size, size, dtype=dtype)
    a @ b
    took = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - started)
    return 2 * size**3 / median(took)


class Results:
    """Rows of numbers in a file, each under its key: what is there is not measured again."""

    def __init__(self, name: str, machine: str) -> None:
        self.path, self.machine = RESULTS / f"{name}.jsonl", machine

    def __iter__(self) -> Iterator[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return (row for line in lines if (row := json.loads(line))["machine"] == self.machine)

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self if key.items() <= row.items()), None)

    def once(self, measure: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """The row of that key, as it was measured or as it is measured now."""
        if row := self.find(**key):
            return row
        row = {**key, **measure()}
        self.add(row)
        return row

    def add(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**row, "machine": self.machine}) + "\n")
