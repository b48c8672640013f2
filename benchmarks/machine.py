"""Describes the machine of a benchmark, measures its matrix products, and stores measurements in a file."""

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


def describe_machine(threads: int) -> str:
    return (
        f"{cpu_name()}, {threads} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_matmul_flops(threads: int, dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Floating point operations a second in products of two SIZE x SIZE matrices: the median of five."""
    torch.set_num_threads(threads)
    a, b = torch.rand(size, size, dtype=dtype), torch.rand(size, size, dtype=dtype)
    a @ b
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        durations.append(time.perf_counter() - start)
    return 2 * size**3 / median(durations)


class Results:
    """Measurements of one machine in a JSON Lines file. A row that the file has is not measured again."""

    def __init__(self, name: str, machine: str) -> None:
        self.path, self.machine = RESULTS / f"{name}.jsonl", machine

    def __iter__(self) -> Iterator[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return (row for line in lines if (row := json.loads(line))["machine"] == self.machine)

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self if key.items() <= row.items()), None)

    def once(self, measure: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """The row of this key: from the file, or measured now."""
        if row := self.find(**key):
            return row
        row = {**key, **measure()}
        self.add(row)
        return row

    def add(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**row, "machine": self.machine}) + "\n")
