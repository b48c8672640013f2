"""Compare recipes on hard pictures in colour, which are made from a seed: accuracy on held-out pictures, and seconds.

python -m benchmarks.photos                       # two sets of 150 training pictures a class
python -m benchmarks.photos --train 20 --test 10  # smaller

The default recipe sees the pictures as MNIST's, 28x28 grey. `photos` is the set of experiments.yaml. ResNet-18 is
torchvision's, trained from scratch as PyTorch's tutorial on transfer learning does, for the time of `photos` and for
twice that: batches of 4, SGD 0.001 with momentum 0.9, the rate divided by ten twice, random resized crops and flips.
From scratch, so small a rate learns little: so the same network is also trained for twice the time in a common way:
batches of 32, AdamW with a one-cycle rate of at most 0.002, and milder crops.
"""

import json
import re
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from benchmarks.machine import describe_machine
from benchmarks.made_images import MADE_SETS, SIZE, write_image_folder
from benchmarks.training import recipe_params, run_stage, test_accuracy
from stages.network.weights import read_weights

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TUTORIAL_EPOCHS, TUTORIAL_STEP = 25, 7  # the tutorial's; here a part of the time stands for an epoch
Result = tuple[float, float]  # accuracy on the test pictures, and seconds in the training loop

app = App(name="python -m benchmarks.photos", result_action="return_none")


@app.default
def measure(
    *,
    train: int = 150,
    test: int = 50,
    label_noise: float = 0.05,
    seed: int = 0,
    threads: int = 2,
    only: str | None = None,
    override: list[str] | None = None,
) -> None:
    """Make the sets, run all recipes on each of them in turn, and print the table.

    Args:
        train: training pictures of a class
        test: test pictures of a class
        label_noise: fraction of the training pictures with a wrong label
        seed: of the pictures and of the trainings
        threads: of PyTorch
        only: one of the sets
        override: further params of both of our recipes, as in train.epochs=1
    """
    changes = dict(item.split("=", 1) for item in override or [])
    print(
        f"on {describe_machine(threads)}\n\n| set | recipe | test accuracy | seconds |\n|---|---|---|---|", flush=True
    )
    for kind in [only] if only else MADE_SETS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_image_folder(folder / "own", kind, train, test, seed, label_noise)
            print_row(kind, "the default", run_ours(folder, "standard", seed, threads, changes))
            accuracy, seconds = run_ours(folder, "photos", seed, threads, changes)
            print_row(kind, "`photos`", (accuracy, seconds))
            for way, factor, words in (
                ("tutorial", 1, "as its tutorial, the same time"),
                ("tutorial", 2, "as its tutorial, twice the time"),
                ("adamw", 2, "AdamW, twice the time"),
            ):
                result = train_resnet18(folder / "own", way, seed, threads, factor * seconds)
                print_row(kind, f"torchvision's ResNet-18, {words}", result)


def print_row(kind: str, recipe: str, result: Result) -> None:
    print(f"| {kind} | {recipe} | {result[0]:.1%} | {result[1]:.0f} |", flush=True)


def run_ours(folder: Path, name: str, seed: int, threads: int, changes: dict[str, str]) -> Result:
    """Run the stages from download to train on the pictures, as a person does."""
    params: dict[str, Any] = deepcopy(recipe_params(name))
    params["download"]["dataset"] = "own"
    params["train"]["seed"] = seed
    params["machine"] |= {"device": "cpu", "threads": threads}
    for param, value in changes.items():
        section, key = param.split(".")
        params[section][key] = json.loads(value)
    run = folder / name
    run.mkdir()
    (run / "params.yaml").write_text(json.dumps(params))
    run_stage("download", run, own=folder / "own", raw=run / "raw")
    reports = {"samples": run / "samples.png", "findings": run / "data.md"}
    run_stage("preprocess", run, raw=run / "raw", splits=run / "splits", **reports)
    outputs = ("weights", "history", "trace", "report", "environment", "splits", "pretrained", "checkpoints")
    output = run_stage("train", run, **{output: run / output for output in outputs})
    match = re.search(r"steps in ([\d.]+) s", output)
    assert match, output
    return test_accuracy(read_weights(run / "weights")[0], run / "splits"), float(match[1])


def train_resnet18(own: Path, way: str, seed: int, threads: int, seconds: float) -> Result:
    """At 64x64, from scratch; by pytorch.org/tutorials/beginner/transfer_learning_tutorial.html, or by AdamW."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    by_tutorial = way == "tutorial"
    crop = transforms.RandomResizedCrop(SIZE) if by_tutorial else transforms.RandomResizedCrop(SIZE, (0.5, 1.0))
    to_input = [transforms.ToTensor(), transforms.Normalize(*IMAGENET)]
    pictures = datasets.ImageFolder(
        own / "train", transforms.Compose([crop, transforms.RandomHorizontalFlip(), *to_input])
    )
    loader = DataLoader(pictures, 4 if by_tutorial else 32, shuffle=True)
    network = models.resnet18(num_classes=len(pictures.classes))
    optimizer = (
        torch.optim.SGD(network.parameters(), 0.001, momentum=0.9)
        if by_tutorial
        else torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    )
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for images, labels in loader:
            fraction = (time.perf_counter() - start) / seconds
            if fraction >= 1:
                break
            optimizer.param_groups[0]["lr"] = tutorial_rate(fraction) if by_tutorial else one_cycle_rate(fraction)
            optimizer.zero_grad()
            functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    spent = time.perf_counter() - start
    resize = [transforms.Resize(SIZE * 256 // 224), transforms.CenterCrop(SIZE)] if by_tutorial else []
    held_out = datasets.ImageFolder(own / "test", transforms.Compose([*resize, *to_input]))
    network.eval()
    with torch.no_grad():
        correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in DataLoader(held_out, 250))
    return correct / len(held_out), spent


def tutorial_rate(fraction: float) -> float:
    """Divided by ten every 7 of 25 epochs."""
    return float(0.001 * 0.1 ** (fraction * TUTORIAL_EPOCHS // TUTORIAL_STEP))


def one_cycle_rate(fraction: float) -> float:
    """Up to 0.002 in the first fifth of the time, then down to a hundredth of it, both linearly."""
    return 0.002 * (fraction / 0.2 if fraction < 0.2 else 1 - 0.99 * (fraction - 0.2) / 0.8)


if __name__ == "__main__":
    app()
