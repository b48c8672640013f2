"""Compare the published recipes with ours on MNIST: accuracy on the test images, and seconds in the training loop.

make bench                                     # all recipes but `record`; results that exist are kept
make bench ONLY="quick standard" SEEDS=5
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib.pyplot as plt
import torch
from cyclopts import App
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import ROOT, Results, describe_machine, measure_matmul_flops
from benchmarks.published import PUBLISHED_RECIPES, train_published
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.weights import read_weights

PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
EXPERIMENTS = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
OURS = [name for name in EXPERIMENTS if name not in (*PUBLISHED_RECIPES, "photos")]  # benchmarks.photos measures that
DEFAULT_SEEDS = {
    **dict.fromkeys(PUBLISHED_RECIPES, 1),
    **dict.fromkeys(OURS, 5),
    "record": 0,
}  # record runs only by request
TARGET = 0.99  # reference A continues after its three epochs until it reaches this accuracy
EPOCH_LIMITS = {"pytorch_examples": 1}  # recipes of which fewer epochs are run; their time is extrapolated

app = App(name="python -m benchmarks.training", result_action="return_none")


@app.default
def measure(
    *, only: list[str] | None = None, seeds: int | None = None, threads: int = 2, plot: Path | None = None
) -> None:
    """Run the recipes and seeds without a result, seed by seed; then print the table, and draw PLOT."""
    names = only or [*PUBLISHED_RECIPES, *OURS]
    check_names(names)
    results = Results("training", describe_machine(threads))
    seed_counts = {name: seeds or DEFAULT_SEEDS[name] or (3 if only else 0) for name in names}
    print(f"on {results.machine}", flush=True)
    for seed in range(max(seed_counts.values())):
        for name in (name for name in names if seed < seed_counts[name]):
            if not results.find(recipe=name, seed=seed, settings=recipe_settings(name)):
                row = run_in_subprocess(name, seed, threads)
                results.add(row)
                print(f"{name}, seed {seed}: {row['accuracy']:.2%} in {row['seconds']:.2f} s", flush=True)
    rows = [row for row in results if "recipe" in row and row["settings"] == recipe_settings(row["recipe"])]
    results.add({"limit": measure_matmul_flops(threads)})  # the highest of several is nearest to the limit
    print(format_table(rows, max(row["limit"] for row in results if "limit" in row)))
    if plot:
        draw_plot(rows, plot)


def check_names(names: list[str]) -> None:
    if unknown := [name for name in names if name not in PUBLISHED_RECIPES and name not in OURS]:
        sys.exit(f"{unknown[0]} is no recipe; choose from {', '.join([*PUBLISHED_RECIPES, *OURS])}")
    source = ROOT / "data" / "raw" / "source.json"
    if not source.exists() or json.loads(source.read_text())["dataset"] != "mnist":
        sys.exit("data/raw does not contain MNIST, which the published recipes need: run `make run DATASET=mnist`")


def run_in_subprocess(name: str, seed: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "train-once", name, str(seed), str(threads)]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if completed.returncode:
        sys.exit(f"{name}, seed {seed}: {completed.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return row


@app.command
def train_once(name: str, seed: int, threads: int) -> None:
    """Train one recipe with one seed, a published one in this process, and print the result as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        run_recipe = run_published if name in PUBLISHED_RECIPES else run_ours
        numbers = run_recipe(name, seed, threads, Path(folder))
    print(json.dumps({"recipe": name, "seed": seed, "settings": recipe_settings(name), **numbers}))


def run_published(name: str, seed: int, threads: int, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(threads)
    recipe = PUBLISHED_RECIPES[name]
    raw = Path(shutil.copytree(ROOT / "data" / "raw", folder / "MNIST" / "raw"))
    for file in raw.glob("*.gz"):
        subprocess.run(["gunzip", "-f", file], check=True)
    if name == "reference_a":
        epochs = train_published(recipe, folder, seed, epochs=30, at_least=recipe.epochs, until=TARGET)
    else:
        epochs = train_published(recipe, folder, seed, epochs=EPOCH_LIMITS.get(name, recipe.epochs))
    count = min(recipe.epochs, len(epochs))
    seconds, accuracy = epochs[count - 1]
    flops = count_flops(recipe.network())
    return {"accuracy": accuracy, "seconds": seconds, "epochs": epochs, "flops": flops, "images": 60_000 * count}


def run_ours(name: str, seed: int, threads: int, folder: Path) -> dict[str, Any]:
    """Run the commands of the stages."""
    params = recipe_params(name)
    params["train"]["seed"] = seed
    params["machine"] |= {"device": "cpu", "threads": threads}
    (folder / "params.yaml").write_text(json.dumps(params))
    run_stage(
        "preprocess",
        folder,
        raw=ROOT / "data" / "raw",
        splits=folder / "splits",
        samples=folder / "samples.png",
        findings=folder / "data.md",
    )
    paths = {name: folder / name for name in ("weights", "history", "trace", "report", "environment")}
    paths |= {name: folder / name for name in ("splits", "pretrained", "checkpoints")}
    output = run_stage("train", folder, **paths)
    match = re.search(r"(\d+) steps in ([\d.]+) s", output)
    assert match, output
    network, _ = read_weights(folder / "weights")
    if params["train"]["stem"] == "whitened":
        next(network.body.children()).requires_grad_(False)
    count, seconds = read_splits_info(folder / "splits").counts["train"], float(match[2])
    steps = int(match[1]) * params["train"]["batch"]
    return {
        "accuracy": test_accuracy(network, folder / "splits"),
        "seconds": seconds,
        "flops": count_flops(network),
        "images": min(steps, round(params["train"]["epochs"] * count)) or steps,
    }


@torch.no_grad()
def test_accuracy(network: torch.nn.Module, splits: Path) -> float:
    images, labels = torch.from_numpy(read_images(splits, "test")), torch.from_numpy(read_labels(splits, "test"))
    predictions = torch.cat([network(batch).argmax(1) for batch in images.split(500)])
    return int((predictions == labels).sum()) / len(labels)


def run_stage(name: str, folder: Path, **paths: Path) -> str:
    flags = [
        part for flag, path in {"params": folder / "params.yaml", **paths}.items() for part in (f"--{flag}", str(path))
    ]
    command = [sys.executable, "-m", f"stages.{name}", *flags]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def recipe_params(name: str) -> dict[str, Any]:
    """params.yaml with the overrides of an experiment."""
    params: dict[str, Any] = deepcopy(PARAMS)
    for key, value in EXPERIMENTS[name].items():
        section, param = key.split(".")
        params[section][param] = value
    return params


def recipe_settings(name: str) -> Any:
    """What defines the recipe: results of other settings are ignored."""
    if name in PUBLISHED_RECIPES:
        return PUBLISHED_RECIPES[name].epochs
    params = recipe_params(name)
    arithmetic, validation = params["machine"]["arithmetic"], params["preprocess"]["validation_fraction"]
    return {"train": params["train"] | {"seed": None}, "validation": validation, "arithmetic": arithmetic}


def count_flops(network: torch.nn.Module) -> int:
    """Floating-point operations for one training image: forward, and backward for the trained layers."""
    pixels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8 if hasattr(network, "mean") else torch.float32)
    with FlopCounterMode(display=False) as counter:
        network.eval()(pixels).sum().backward()
    return int(counter.get_total_flops()) // len(pixels)


def format_table(rows: list[dict[str, Any]], peak: float) -> str:
    """A line for each recipe; times also relative to the three epochs of reference A."""
    a = [row for row in rows if row["recipe"] == "reference_a"]
    base = median(row["seconds"] for row in a) if a else None
    lines = [
        f"Seconds are medians, of training loops alone. Matrix products run at {peak / 1e9:.0f} GFLOP/s here.",
        "",
        "| recipe | seeds | test accuracy, mean (worst) | seconds | time relative to reference A "
        "| time relative to the fastest reference of this accuracy | share of the peak speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        runs = [row for row in rows if row["recipe"] == name]
        seconds, accuracies = median(row["seconds"] for row in runs), [row["accuracy"] for row in runs]
        utilization = runs[0]["flops"] * runs[0]["images"] / seconds / peak
        relative = f"{seconds / base:.2f}" if base else "not measured"
        lines.append(
            f"| `{name}` | {len(runs)} | {mean(accuracies):.2%} ({min(accuracies):.2%}) | {seconds:.2f} | "
            f"{relative} | {relative_time(name, seconds, mean(accuracies), rows)} | {utilization:.0%} |"
        )
    return "\n".join([*lines, "", *time_to_target(a, rows), *extrapolated_times(rows)])


def relative_time(name: str, seconds: float, accuracy: float, rows: list[dict[str, Any]]) -> str:
    """The seconds divided by those of the fastest other published recipe that reaches this accuracy, to 0.1 %."""
    others: dict[str, list[float]] = {}
    for row in rows:
        if row["recipe"] in PUBLISHED_RECIPES and row["recipe"] != name:
            reached = (end for end, epoch_accuracy in row["epochs"] if epoch_accuracy >= round(accuracy, 3))
            others.setdefault(row["recipe"], []).append(next(reached, float("inf")))
    medians = ((median(times), other) for other, times in others.items())
    reference, fastest = min(medians, default=(float("inf"), ""))
    return f"{seconds / reference:.2g} (`{fastest}`)" if reference < float("inf") else "none is"


def time_to_target(a: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    """When reference A first reaches the accuracy that `quick` aims at."""
    seconds = [next((end for end, accuracy in row["epochs"] if accuracy >= TARGET), None) for row in a]
    quick = [row["seconds"] for row in rows if row["recipe"] == "quick"]
    if not a or not quick or None in seconds:
        return []
    first = median(second for second in seconds if second)
    return [
        f"Reference A first touches {TARGET:.1%} after {first:.1f} s of training; "
        f"`quick` takes {median(quick):.2f} s, 1/{first / median(quick):.0f} of it."
    ]


def extrapolated_times(rows: list[dict[str, Any]]) -> list[str]:
    epochs = {name: PUBLISHED_RECIPES[name].epochs for name in EPOCH_LIMITS}
    return [
        f"`{row['recipe']}` was run for {EPOCH_LIMITS[row['recipe']]} of its {epochs[row['recipe']]} epochs, "
        f"which would take {row['seconds'] / EPOCH_LIMITS[row['recipe']] * epochs[row['recipe']]:.0f} s."
        for row in rows
        if row["recipe"] in EPOCH_LIMITS
    ]


def draw_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against time, both on logarithmic scales; a dot for each seed."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.set(xscale="log", yscale="log", xlabel="seconds in the training loop", ylabel="test errors, %")
    labels = []
    for name in dict.fromkeys(row["recipe"] for row in rows):
        runs = [row for row in rows if row["recipe"] == name]
        color = "#b5542a" if name in OURS else "#4a6fa5"
        axes.scatter([row["seconds"] for row in runs], [100 - 100 * row["accuracy"] for row in runs], 16, color)
        position = median(row["seconds"] for row in runs), 100 - 100 * mean(row["accuracy"] for row in runs)
        label = f"{name}, {EPOCH_LIMITS[name]} epoch" if name in EPOCH_LIMITS else name
        labels.append(axes.annotate(label, position, (0, 0), textcoords="offset points", fontsize=9, color=color))
    axes.margins(x=0.15, y=0.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.set_title("Handwritten digits on two cores: lower is better on both axes", fontsize=10)
    figure.draw_without_rendering()  # sets the limits of the axes
    place_labels(labels, axes)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def place_labels(labels: list[Annotation], axes: Axes) -> None:
    """Put each label at a side of its point where it covers no label before it and stays within the axes."""
    placed: list[Bbox] = []
    for label in labels:
        for x, y, is_right in ((7, 5, True), (-7, 5, False), (7, -13, True), (-7, -13, False), (-7, 14, True)):
            label.set_position((x, y))
            label.set_horizontalalignment("left" if is_right else "right")
            box = label.get_window_extent()
            if axes.bbox.x1 > box.x1 and axes.bbox.x0 < box.x0 and not box.count_overlaps(placed):
                break
        placed.append(box)


if __name__ == "__main__":
    app()
