"""What the pipeline costs beside its computation: each stage's overhead and memory, nothing to do, ten times the data.

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
from concurrent.futures import ThreadPoolExecutor as Pool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from cyclopts import App
from ruamel.yaml import YAML

from benchmarks.machine import ROOT, Results, describe
from benchmarks.training import accuracy
from stages.core.splits import npy_writer, read_images, read_labels
from stages.network.weights import read_weights
from stages.training.augmentation import random_affine

TIMES = 10  # the data
WHOLE = {
    "--force --downstream preprocess": "\nFrom raw files to the parity report, one `dvc repro`:",
    "": "`dvc repro` with nothing to do:",
}

app = App(name="python -m benchmarks.pipeline", result_action="return_none")


@app.default
def measure(*, rounds: int = 3, threads: int = 2) -> None:
    """In a clone of the last commit, with the data of a finished pipeline: `dvc repro` first."""
    results = Results("pipeline", describe(threads))
    print(f"on {results.machine}; medians of {rounds} rounds\n", flush=True)
    with clone() as project:
        sources = subprocess.check_output(
            ["git", "rev-parse", "HEAD:stages", "HEAD:params.yaml"], cwd=project, text=True
        )
        once = partial(results.once, sources=sources.split())  # numbers of other sources are not taken for theirs
        print("| stage | its process | bare imports | its computation | overhead | memory over the imports |")
        print("|---|---|---|---|---|---|")
        for name, command in commands(project).items():
            stage = Stage(name, command, project)
            rows = [once(stage.measure, stage=name, round=turn) for turn in range(rounds)]
            row = {key: median(row[key] for row in rows) for key in ("seconds", "bare", "work", "anonymous")}
            overhead = median(row["seconds"] - row["bare"] - row["work"] for row in rows)
            times = " | ".join(f"{row[key]:.2f} s" for key in ("seconds", "bare", "work"))
            print(f"| {name} | {times} | {overhead:.2f} s | {row['anonymous']:.0f} MB |", flush=True)
        for words, said in WHOLE.items():
            subprocess.run(["dvc", "repro", "--quiet"], cwd=project, check=True)  # as a finished one leaves it
            command = partial(repro, words, project)
            seconds = [once(command, repro=words, round=turn)["seconds"] for turn in range(rounds)]
            print(f"{said} {median(seconds):.2f} s, of {min(seconds):.2f} to {max(seconds):.2f}", flush=True)
        # What is small is measured before and after: the machine's speed drifts.
        before, ten, after = (
            once(partial(a_pass, project, times), times=times, round=turn)
            for times, turn in ((1, 0), (TIMES, 0), (1, 1))
        )
    print(
        f"A pass over {ten['images']:,} images takes "
        f"{2 * ten['seconds'] / (before['seconds'] + after['seconds']):.1f} times as long as over "
        f"{after['images']:,}, and {ten['anonymous'] - before['anonymous']:.0f} MB more anonymous memory; "
        f"test accuracy {ten['accuracy']:.2%} after it, and {before['accuracy']:.2%}."
    )


@contextmanager
def clone() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for command in (
            ["git", "clone", "--quiet", str(ROOT), str(project)],
            ["dvc", "config", "--quiet", "--local", "cache.dir", str(ROOT / ".dvc" / "cache")],
            ["dvc", "checkout", "--quiet"],
        ):
            subprocess.run(command, cwd=project if project.exists() else None, check=True)
        yield project


def commands(project: Path) -> dict[str, list[str]]:
    stages = YAML(typ="safe", pure=True).load(project / "dvc.yaml")["stages"]
    return {name: [sys.executable, *stage["cmd"].split()[1:]] for name, stage in stages.items()}


class Stage:
    """A stage's command beside a process that only imports what it does."""

    def __init__(self, name: str, command: list[str], project: Path) -> None:
        self.imports, self.project = project / f"{name}.json", project
        self.watched = [sys.executable, str(ROOT / "benchmarks" / "watched.py"), str(self.imports)]
        self.words = [*self.watched, name, *command[3:]]

    def measure(self) -> dict[str, float]:
        if not self.imports.exists():
            run(self.words, self.project)  # writes down what it imports
        whole, bare = run(self.words, self.project), run([*self.watched, "none"], self.project)
        work = json.loads(whole.said.splitlines()[-1])["work"]
        memory = whole.anonymous - bare.anonymous
        return {"seconds": whole.seconds, "bare": bare.seconds, "work": work, "anonymous": memory}


def repro(words: str, project: Path) -> dict[str, float]:
    return {"seconds": run(["dvc", "repro", *words.split()], project).seconds}


@dataclass(frozen=True)
class Done:
    seconds: float
    anonymous: float  # MB, the most that was seen
    said: str


def run(command: list[str], project: Path) -> Done:
    """Run it to its end, looking at its anonymous memory on the way."""
    most, started = 0.0, time.perf_counter()
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process, Pool(1) as reader:
        assert process.stdout
        said = reader.submit(process.stdout.read)
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with status {process.returncode}")
    return Done(seconds, most, said.result())


def anonymous(process: int) -> float:
    """Memory that is not a file's, in MB; files that are mapped can be dropped at any time."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def a_pass(project: Path, times: int) -> dict[str, float]:
    """Train for one epoch on so many distortions of each training image; the first is the image itself."""
    splits, folder = project / f"splits{times}", project / f"out{times}"
    for left in (splits, folder):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(project / "data" / "splits", splits)
    images, labels = read_images(splits, "train"), read_labels(splits, "train")
    (splits / "train-images.npy").unlink()
    with npy_writer(splits / "train-images.npy", (times * len(images), *images.shape[1:]), "u1") as file:
        for turn in range(times):
            chance = torch.Generator().manual_seed(turn)
            for some in torch.from_numpy(images).split(10_000):
                file.write((random_affine(some, 10.0, 0.1, chance).byte() if turn else some).numpy())
    np.save(splits / "train-labels.npy", np.tile(labels, times))
    params = YAML(typ="safe", pure=True).load(project / "params.yaml")
    params["train"] |= {"epochs": 1, "min_steps": 1, "monitor": "none"}
    folder.mkdir()
    (folder / "params.yaml").write_text(json.dumps(params))
    paths = {"params": "params.yaml", **{name: name for name in ("weights", "history", "report", "environment")}}
    flags = [f"--{flag}={folder / path}" for flag, path in {**paths, "checkpoints": "checkpoints"}.items()]
    done = run([sys.executable, "-m", "stages.train", f"--splits={splits}", *flags], project)
    found = re.search(r"steps in ([\d.]+) s", done.said)
    assert found, done.said
    network, _ = read_weights(folder / "weights")
    reached = accuracy(network, splits)
    return {
        "images": times * len(images),
        "seconds": float(found[1]),
        "anonymous": done.anonymous,
        "accuracy": reached,
    }


if __name__ == "__main__":
    app()
