"""Seconds of `lockstep predict` for one, a few and many files, on one core and on all.

python -m benchmarks.predict   # of MNIST's test images as PNG of 140 x 140
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
from cyclopts import App
from PIL import Image

from benchmarks.machine import ROOT, Results, describe_machine
from lockstep.classifier import available_cores

MODEL, IMAGES = ROOT / "data" / "model" / "model.onnx", ROOT / "data" / "splits" / "test-images.npy"

app = App(name="python -m benchmarks.predict", result_action="return_none")


@app.default
def measure(*, counts: tuple[int, ...] = (1, 300, 1000, 10_000), rounds: int = 3) -> None:
    """Measure each number of files in turn; print medians of the rounds."""
    results = Results("predict", describe_machine(available_cores()))
    print(f"{results.machine}; medians of {rounds} rounds\n")
    seconds: dict[tuple[int, int], list[float]] = {}
    with write_pictures(max(counts)) as folder:
        for _, count, threads in product(range(rounds), counts, (1, available_cores())):
            seconds.setdefault((count, threads), []).append(time_predict(folder, count, threads))
    print("| files | cores | seconds | files per second |\n|---|---|---|---|")
    for (count, threads), times in seconds.items():
        median = float(np.median(times))
        print(f"| {count:,} | {threads} | {median:.2f} | {count / median:,.0f} |")
        results.add({"files": count, "cores": threads, "seconds": median})


@contextmanager
def write_pictures(count: int) -> Iterator[Path]:
    """A temporary folder of pictures, dark on white."""
    with tempfile.TemporaryDirectory() as name:
        for index, image in enumerate(np.load(IMAGES, mmap_mode="r")[:count, 0]):
            Image.fromarray(255 - image).resize((140, 140)).save(Path(name) / f"{index:05}.png")
        yield Path(name)


def time_predict(folder: Path, count: int, threads: int) -> float:
    """Seconds of the whole command, its start included."""
    with tempfile.TemporaryDirectory() as name:
        for file in sorted(folder.iterdir())[:count]:
            (Path(name) / file.name).hardlink_to(file)
        command = [sys.executable, "-m", "lockstep", "predict", name, "--json", "--model", str(MODEL)]
        started = time.perf_counter()
        subprocess.run([*command, "--threads", str(threads)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    app()
