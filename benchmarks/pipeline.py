"""What the pipeline costs: each stage's overhead and memory, a run with nothing to do, ten times the data.

make bench-pipeline
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from cyclopts import App
from ruamel.yaml import YAML

from benchmarks.machine import ROOT, Results, describe_machine
from benchmarks.training import test_accuracy
from stages.core.splits import npy_writer, read_images, read_labels
from stages.network.weights import read_weights
from stages.training.augmentation import random_affine

DATA_FACTOR = 10
REPRO_RUNS = {  # flags of `dvc repro`, and what to call the run
    "--force --downstream preprocess": "\nFrom raw files to the parity report, one `dvc repro`:",
    "": "`dvc repro` with nothing to do:",
}

app = App(name="python -m benchmarks.pipeline", result_action="return_none")


@app.default
def measure(*, rounds: int = 3, threads: int = 2) -> None:
    """Measure in a clone of the last commit, with the data of a finished pipeline: run `dvc repro` first."""
    results = Results("pipeline", describe_machine(threads))
    print(f"on {results.machine}; medians of {rounds} rounds\n", flush=True)
    with clone_project() as project:
        measured = ("HEAD:stages", "HEAD:params.yaml", "HEAD:benchmarks/time_stage.py")
        sources = subprocess.check_output(["git", "rev-parse", *measured], cwd=project, text=True)
        measure_once = partial(results.once, sources=sources.split())  # rows of other sources do not count
        print("| stage | its process | bare imports | the stage function | overhead | memory over the imports |")
        print("|---|---|---|---|---|---|")
        for name, command in read_commands(project).items():
            stage = StageBenchmark(name, command, project)
            rows = [measure_once(stage.measure, stage=name, round=turn) for turn in range(rounds)]
            medians = {key: median(row[key] for row in rows) for key in ("seconds", "bare", "work", "anonymous")}
            overhead = median(row["seconds"] - row["bare"] - row["work"] for row in rows)
            times = " | ".join(f"{medians[key]:.2f} s" for key in ("seconds", "bare", "work"))
            print(f"| {name} | {times} | {overhead:.2f} s | {medians['anonymous']:.0f} MB |", flush=True)
        for flags, title in REPRO_RUNS.items():
            subprocess.run(["dvc", "repro", "--quiet"], cwd=project, check=True)  # everything is up to date
            measurement = partial(time_repro, flags, project)
            seconds = [measure_once(measurement, repro=flags, round=turn)["seconds"] for turn in range(rounds)]
            print(f"{title} {median(seconds):.2f} s, from {min(seconds):.2f} to {max(seconds):.2f}", flush=True)
        # The small data set is measured before and after the large one, because the machine's speed drifts.
        before, large, after = (
            measure_once(partial(train_one_epoch, project, factor), times=factor, round=turn)
            for factor, turn in ((1, 0), (DATA_FACTOR, 0), (1, 1))
        )
    print(
        f"An epoch of {large['images']:,} images takes "
        f"{2 * large['seconds'] / (before['seconds'] + after['seconds']):.1f} times as long as one of "
        f"{after['images']:,}, and {large['anonymous'] - before['anonymous']:.0f} MB more anonymous memory; "
        f"test accuracy {large['accuracy']:.2%} after it, and {before['accuracy']:.2%}."
    )


@contextmanager
def clone_project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for command in (
            ["git", "clone", "--quiet", str(ROOT), str(project)],
            ["dvc", "config", "--quiet", "--local", "cache.dir", str(ROOT / ".dvc" / "cache")],
            ["dvc", "checkout", "--quiet"],
        ):
            subprocess.run(command, cwd=project if project.exists() else None, check=True)
        yield project


def read_commands(project: Path) -> dict[str, list[str]]:
    stages = YAML(typ="safe", pure=True).load(project / "dvc.yaml")["stages"]
    return {name: [sys.executable, *stage["cmd"].split()[1:]] for name, stage in stages.items()}


class StageBenchmark:
    """A stage's command, compared with a process that only imports what the stage does."""

    def __init__(self, name: str, command: list[str], project: Path) -> None:
        self.imports, self.project = project / f"{name}.json", project
        program = [sys.executable, str(ROOT / "benchmarks" / "time_stage.py"), str(self.imports)]
        self.stage_command, self.imports_command = [*program, name, *command[3:]], [*program, "none"]

    def measure(self) -> dict[str, float]:
        if not self.imports.exists():
            run_command(self.stage_command, self.project)  # writes the list of imports
        stage, imports = (run_command(words, self.project) for words in (self.stage_command, self.imports_command))
        work = json.loads(stage.output.splitlines()[-1])["work"]
        memory = stage.anonymous - imports.anonymous
        return {"seconds": stage.seconds, "bare": imports.seconds, "work": work, "anonymous": memory}


def time_repro(flags: str, project: Path) -> dict[str, float]:
    return {"seconds": run_command(["dvc", "repro", *flags.split()], project).seconds}


@dataclass(frozen=True)
class Measurement:
    seconds: float
    anonymous: float  # MB, the maximum
    output: str


def run_command(command: list[str], project: Path) -> Measurement:
    """Run the command and poll its anonymous memory."""
    maximum, start = 0.0, time.perf_counter()
    with (
        subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(1) as reader,
    ):
        assert process.stdout
        output = reader.submit(process.stdout.read)
        while process.poll() is None:
            maximum = max(maximum, anonymous_memory(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exited with {process.returncode}")
    return Measurement(seconds, maximum, output.result())


def anonymous_memory(pid: int) -> float:
    """MB of memory that belong to no file: the system can drop mapped files at any time."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def train_one_epoch(project: Path, factor: int) -> dict[str, float]:
    """Train for one epoch on FACTOR versions of each training image: the image itself, and distortions of it."""
    splits, folder = project / f"splits{factor}", project / f"out{factor}"
    for path in (splits, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(project / "data" / "splits", splits)
    images, labels = read_images(splits, "train"), read_labels(splits, "train")
    (splits / "train-images.npy").unlink()
    with npy_writer(splits / "train-images.npy", (factor * len(images), *images.shape[1:]), "u1") as file:
        for seed in range(factor):
            generator = torch.Generator().manual_seed(seed)
            for batch in torch.from_numpy(images).split(10_000):
                file.write((random_affine(batch, 10.0, 0.1, generator).byte() if seed else batch).numpy().tobytes())
    np.save(splits / "train-labels.npy", np.tile(labels, factor))
    params = YAML(typ="safe", pure=True).load(project / "params.yaml")
    params["train"] |= {"epochs": 1, "min_steps": 1, "monitor": "none"}
    folder.mkdir()
    (folder / "params.yaml").write_text(json.dumps(params))
    names = ("weights", "history", "trace", "report", "environment", "checkpoints", "pretrained")
    flags = [f"--params={folder / 'params.yaml'}", *(f"--{name}={folder / name}" for name in names)]
    result = run_command([sys.executable, "-m", "stages.train", f"--splits={splits}", *flags], project)
    match = re.search(r"steps in ([\d.]+) s", result.output)
    assert match, result.output
    network, _ = read_weights(folder / "weights")
    return {
        "images": factor * len(images),
        "seconds": float(match[1]),
        "anonymous": result.anonymous,
        "accuracy": test_accuracy(network, splits),
    }


if __name__ == "__main__":
    app()
