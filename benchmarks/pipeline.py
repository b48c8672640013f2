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
from pathlib import Path
from statistics import median

import numpy as np
import torch
from cyclopts import App
from ruamel.yaml import YAML

from benchmarks.machine import ROOT, Results, describe
from benchmarks.training import accuracy
from stages.common.augmentation import warped
from stages.common.splits import growing, read_images, read_labels
from stages.common.weights import read_weights

TIMES = 10  # the data

app = App(name="python -m benchmarks.pipeline", result_action="return_none")


@app.default
def measure(*, rounds: int = 5, threads: int = 2) -> None:
    """In a clone of the last commit, with the data of a finished pipeline: `dvc repro` first."""
    results = Results("pipeline", describe(threads))
    print(f"on {results.machine}; medians of {rounds} rounds\n", flush=True)
    with clone() as project:
        print("| stage | its process | bare imports | its computation | overhead | memory over the imports |")
        print("|---|---|---|---|---|---|")
        for name, command in commands(project).items():
            row = alone(name, command, project, rounds)
            overhead = row["seconds"] - row["bare"] - row["work"]
            times = " | ".join(f"{row[key]:.2f} s" for key in ("seconds", "bare", "work"))
            print(f"| {name} | {times} | {overhead:.2f} s | {row['anonymous']:.0f} MB |", flush=True)
            results.add({"stage": name, **row})
        whole = [run(["dvc", "repro", "--force", "--downstream", "preprocess"], project).seconds for _ in range(rounds)]
        print(f"\nFrom raw files to the parity report, one `dvc repro`: {median(whole):.1f} s", flush=True)
        nothing = [run(["dvc", "repro"], project).seconds for _ in range(rounds)]
        print(f"`dvc repro` with nothing to do: {median(nothing):.2f} s", flush=True)
        results.add({"whole": whole, "nothing": nothing})
        one, ten = (a_pass(project, times) for times in (1, TIMES))
    print(
        f"A pass over {ten['images']:,} images takes {ten['seconds'] / one['seconds']:.1f} times as long as over "
        f"{one['images']:,}, and {ten['anonymous'] - one['anonymous']:.0f} MB more anonymous memory; "
        f"test accuracy {ten['accuracy']:.2%} after it, and {one['accuracy']:.2%}."
    )
    results.add({"one": one, "ten": ten})


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


def alone(name: str, command: list[str], project: Path, rounds: int) -> dict[str, float]:
    """A stage's command beside a process that only imports what it does, in turn."""
    imports = project / f"{name}.json"
    watched = [sys.executable, str(ROOT / "benchmarks" / "watched.py"), str(imports)]
    rows = []
    run([*watched, name, *command[3:]], project)  # writes down what it imports
    for _ in range(rounds):
        whole, bare = run([*watched, name, *command[3:]], project), run([*watched, "none"], project)
        work = json.loads(whole.said.splitlines()[-1])["work"]
        memory = whole.anonymous - bare.anonymous
        rows.append({"seconds": whole.seconds, "bare": bare.seconds, "work": work, "anonymous": memory})
    return {key: median(row[key] for row in rows) for key in rows[0]}


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
    shutil.copytree(project / "data" / "splits", splits)
    images, labels = read_images(splits, "train"), read_labels(splits, "train")
    (splits / "train-images.npy").unlink()
    with growing(splits / "train-images.npy", (times * len(images), *images.shape[1:]), "u1") as file:
        for turn in range(times):
            chance = torch.Generator().manual_seed(turn)
            for some in torch.from_numpy(images).split(10_000):
                file.write((warped(some, 10.0, 0.1, chance).byte() if turn else some).numpy())
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
