"""The published recipes beside ours on MNIST, in turn: accuracy on the test images, and seconds in the training loop.

make bench                                     # all but `record`; goes on where it was stopped
make bench ONLY="quick standard" SEEDS=5
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib.pyplot as plt
import torch
from cyclopts import App
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import ROOT, Results, describe, limit
from benchmarks.published import PUBLISHED, train
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.weights import read_weights

OURS = ("quick", "standard", "native", "strong", "record")
# Seeds by default; `record` takes long, and is measured when it is named.
SEEDS = {"quick": 5, "standard": 5, "native": 5, "strong": 5, "record": 0}
UNTIL = 0.99  # reference A goes on after its three epochs until it first reaches this
LONG = {"pytorch_examples": 1}  # epochs that are run of more, and extrapolated

app = App(name="python -m benchmarks.training", result_action="return_none")


@app.default
def measure(
    *, only: list[str] | None = None, seeds: int | None = None, threads: int = 2, plot: Path | None = None
) -> None:
    """Run what is missing, one seed of each recipe after the other; then print the table, and draw PLOT."""
    names = only or [*PUBLISHED, *OURS]
    check(names)
    results = Results("training", describe(threads))
    wanted = {name: seeds or SEEDS.get(name, 1) or (3 if only else 0) for name in names}
    print(f"on {results.machine}", flush=True)
    for seed in range(max(wanted.values())):
        for name in (name for name in names if seed < wanted[name]):
            if not results.find(recipe=name, seed=seed, settings=settings(name)):
                row = run(name, seed, threads)
                results.add(row)
                print(f"{name}, seed {seed}: {row['accuracy']:.2%} in {row['seconds']:.2f} s", flush=True)
    rows = [row for row in results if "recipe" in row and row["settings"] == settings(row["recipe"])]
    results.add({"limit": limit(threads)})  # the machine is shared: what it can do is the best that was seen
    print(table(rows, max(row["limit"] for row in results if "limit" in row)))
    if plot:
        draw(rows, plot)


def check(names: list[str]) -> None:
    if strange := [name for name in names if name not in PUBLISHED and name not in OURS]:
        sys.exit(f"{strange[0]} is no recipe; there are {', '.join([*PUBLISHED, *OURS])}")
    source = ROOT / "data" / "raw" / "source.json"
    if not source.exists() or json.loads(source.read_text())["dataset"] != "mnist":
        sys.exit("data/raw does not hold MNIST, which the published recipes are of: `make run DATASET=mnist` brings it")


def run(name: str, seed: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "one", name, str(seed), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}, seed {seed}: {done.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


@app.command
def one(name: str, seed: int, threads: int) -> None:
    """Train one recipe from nothing, in this process or in the stage's, and print what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = (
            published(name, seed, threads, Path(folder))
            if name in PUBLISHED
            else ours(name, seed, threads, Path(folder))
        )
    print(json.dumps({"recipe": name, "seed": seed, "settings": settings(name), **numbers}))


def published(name: str, seed: int, threads: int, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(threads)
    recipe = PUBLISHED[name]
    raw = Path(shutil.copytree(ROOT / "data" / "raw", folder / "MNIST" / "raw"))
    for file in raw.glob("*.gz"):
        subprocess.run(["gunzip", "-f", file], check=True)
    if name == "reference_a":
        seen = train(recipe, folder, seed, epochs=30, at_least=recipe.epochs, until=UNTIL)
    else:
        seen = train(recipe, folder, seed, epochs=LONG.get(name, recipe.epochs))
    seconds, reached = seen[min(recipe.epochs, len(seen)) - 1]
    images = 60_000 * min(recipe.epochs, len(seen))
    return {"accuracy": reached, "seconds": seconds, "epochs": seen, "flops": flops(recipe.network()), "images": images}


def ours(name: str, seed: int, threads: int, folder: Path) -> dict[str, Any]:
    """By the stages' own commands."""
    params = overridden(name)
    params["train"]["seed"] = seed
    params["machine"] |= {"device": "cpu", "threads": threads}
    (folder / "params.yaml").write_text(json.dumps(params))
    stage("preprocess", folder, raw=ROOT / "data" / "raw", splits=folder / "splits", samples=folder / "samples.png")
    paths = {name: folder / name for name in ("weights", "history", "trace", "report", "environment")}
    said = stage("train", folder, splits=folder / "splits", checkpoints=folder / "checkpoints", **paths)
    found = re.search(r"(\d+) steps in ([\d.]+) s", said)
    assert found, said
    network, _ = read_weights(folder / "weights")
    if params["train"]["stem"] == "whitened":
        network.body[0].requires_grad_(False)
    count, seconds = read_splits_info(folder / "splits").counts["train"], float(found[2])
    steps = int(found[1]) * params["train"]["batch"]
    return {
        "accuracy": accuracy(network, folder / "splits"),
        "seconds": seconds,
        "flops": flops(network),
        "images": min(steps, round(params["train"]["epochs"] * count)) or steps,
    }


@torch.no_grad()
def accuracy(network: torch.nn.Module, splits: Path) -> float:
    images, labels = torch.from_numpy(read_images(splits, "test")), torch.from_numpy(read_labels(splits, "test"))
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((network(some).argmax(1) == theirs).sum()) for some, theirs in parts) / len(labels)


def stage(name: str, folder: Path, **paths: Path) -> str:
    flags = [
        part for flag, path in {"params": folder / "params.yaml", **paths}.items() for part in (f"--{flag}", str(path))
    ]
    command = [sys.executable, "-m", f"stages.{name}", *flags]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def overridden(name: str) -> dict[str, Any]:
    """params.yaml with what experiments.yaml says of the name."""
    yaml = YAML(typ="safe", pure=True)
    params: dict[str, Any] = yaml.load(ROOT / "params.yaml")
    for key, value in yaml.load(ROOT / "experiments.yaml")[name].items():
        section, param = key.split(".")
        params[section][param] = value
    return params


def settings(name: str) -> Any:
    """What the recipe is, so that numbers of a former one are not taken for its own."""
    if name in PUBLISHED:
        return PUBLISHED[name].epochs
    params = overridden(name)
    arithmetic, validation = params["machine"]["arithmetic"], params["preprocess"]["validation_fraction"]
    return {"train": params["train"] | {"seed": None}, "validation": validation, "arithmetic": arithmetic}


def flops(network: torch.nn.Module) -> int:
    """Operations to learn from an image: forward, and backward for what is learnt."""
    pixels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8 if hasattr(network, "mean") else torch.float32)
    with FlopCounterMode(display=False) as counter:
        network.eval()(pixels).sum().backward()
    return counter.get_total_flops() // len(pixels)


def table(rows: list[dict[str, Any]], peak: float) -> str:
    """A line for each recipe; times beside those of reference A's three epochs."""
    a = [row for row in rows if row["recipe"] == "reference_a"]
    base = median(row["seconds"] for row in a) if a else float("nan")
    lines = [
        f"Seconds are medians, of training loops alone. Matrix products run at {peak / 1e9:.0f} GFLOP/s here.",
        "",
        "| recipe | seeds | test accuracy, mean (worst) | seconds | of reference A's three epochs "
        "| of the fastest reference as accurate | of the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        some = [row for row in rows if row["recipe"] == name]
        seconds, accuracies = median(row["seconds"] for row in some), [row["accuracy"] for row in some]
        share = some[0]["flops"] * some[0]["images"] / seconds / peak
        lines.append(
            f"| `{name}` | {len(some)} | {mean(accuracies):.2%} ({min(accuracies):.2%}) | {seconds:.2f} | "
            f"{seconds / base:.2f} | {beside(name, seconds, mean(accuracies), rows)} | {share:.0%} |"
        )
    return "\n".join([*lines, "", *first_touch(a, rows), *extrapolated(rows)])


def beside(name: str, seconds: float, accuracy: float, rows: list[dict[str, Any]]) -> str:
    """These seconds as a share of what another published recipe takes to be as accurate, to a tenth of a percent."""
    others: dict[str, list[float]] = {}
    for row in rows:
        if row["recipe"] in PUBLISHED and row["recipe"] != name:
            reached = (took for took, there in row["epochs"] if there >= round(accuracy, 3))
            others.setdefault(row["recipe"], []).append(next(reached, float("inf")))
    took, fastest = min(((median(each), other) for other, each in others.items()), default=(float("inf"), ""))
    return f"{seconds / took:.2g} (`{fastest}`)" if took < float("inf") else "none is"


def first_touch(a: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    """When reference A first reaches what `quick` is for."""
    seconds = [next((took for took, accuracy in row["epochs"] if accuracy >= UNTIL), None) for row in a]
    quick = [row["seconds"] for row in rows if row["recipe"] == "quick"]
    if not a or not quick or None in seconds:
        return []
    first = median(second for second in seconds if second)
    return [
        f"Reference A first touches {UNTIL:.1%} after {first:.1f} s of training; "
        f"`quick` takes {median(quick):.2f} s, 1/{first / median(quick):.0f} of it."
    ]


def extrapolated(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"`{row['recipe']}` was run for {LONG[row['recipe']]} of its {PUBLISHED[row['recipe']].epochs} epochs, "
        f"which would take {row['seconds'] / LONG[row['recipe']] * PUBLISHED[row['recipe']].epochs:.0f} s."
        for row in rows
        if row["recipe"] in LONG
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against time, both on scales of ratios; a dot for each seed."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in dict.fromkeys(row["recipe"] for row in rows):
        some = [row for row in rows if row["recipe"] == name]
        color = "#b5542a" if name in OURS else "#4a6fa5"
        axes.scatter([row["seconds"] for row in some], [100 - 100 * row["accuracy"] for row in some], 16, color)
        place = median(row["seconds"] for row in some), 100 - 100 * mean(row["accuracy"] for row in some)
        label, offset, side = (f"{name}, {LONG[name]} epoch", -6, "right") if name in LONG else (name, 6, "left")
        axes.annotate(label, place, (offset, 5), textcoords="offset points", ha=side, fontsize=9, color=color)
    axes.set(xscale="log", yscale="log", xlabel="seconds in the training loop", ylabel="test errors, %")
    axes.margins(x=0.15, y=0.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.set_title("Handwritten digits on two cores: less is better, both ways", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    app()
