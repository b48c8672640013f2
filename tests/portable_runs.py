"""Small runs of the stages in portable arithmetic, and the hashes of all that they write.

    python tests/portable_runs.py                # every run, each as a line of JSON: [run, {file: hash}]
    python tests/portable_runs.py strong resume  # these
    python tests/portable_runs.py --write        # every run, into tests/portable.json, the committed table

A process of its own, on any CPU, real or emulated.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from stages.core.arithmetic import OPENMP_SPIN, PORTABLE

os.environ.update({**PORTABLE, **OPENMP_SPIN})  # before numpy and torch are imported

import numpy as np
import torch
from conftest import write_params, write_raw
from PIL import Image
from ruamel.yaml import YAML

from stages.core.splits import read_splits_info
from stages.evaluate import evaluate
from stages.export_onnx import export_onnx
from stages.network.models import ModelName, build_model
from stages.network.weights import WeightsHeader, write_weights
from stages.preprocess import preprocess
from stages.train import train
from stages.training.optimizers import OptimizerName
from stages.validate_parity import validate_parity

TABLE = ROOT / "tests" / "portable.json"
STEPS = 6
COMMITTED = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
EXPERIMENTS = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
# What conftest.py makes quick is put back, but for the number of steps: the recipes themselves are tested.
RECIPE = {f"train.{key}": value for key, value in COMMITTED["train"].items()} | {
    "machine.threads": 2,
    "machine.arithmetic": "portable",
    "preprocess.validation_fraction": 0.1,
    "evaluate.min_accuracy": 0.0,
    "evaluate.tsne_images": 60,
}
SHORT = {"train.epochs": 0, "train.min_steps": STEPS, "train.points": 2}
Files = dict[str, Path]


def trained(folder: Path, raw: Path, changes: dict[str, Any]) -> Path:
    """The folder with the splits of RAW, and what train made of them."""
    params = write_params(folder / "params.yaml", {**RECIPE, **changes, **SHORT, "machine.arithmetic": "portable"})
    preprocess(params=params, raw=raw, splits=folder / "splits", samples=folder / "samples.png")
    train(
        params=params,
        splits=folder / "splits",
        weights=folder / "weights.safetensors",
        history=folder / "history.csv",
        trace=folder / "trace.csv",
        report=folder / "train.json",
        environment=folder / "environment.json",
        checkpoints=folder / "checkpoints",
    )
    return folder


def interrupted(folder: Path, raw: Path) -> Path:
    """As `trained` with the default recipe, but stopped in the middle, and gone on with from its checkpoint."""
    from stages.training.checkpoint import Checkpoint

    due, save = Checkpoint.due, Checkpoint.save

    def save_and_stop(self: Checkpoint, state: dict[str, Any]) -> None:
        if state["steps"] == STEPS // 2:
            save(self, state)
            raise KeyboardInterrupt

    Checkpoint.due, Checkpoint.save = lambda _: True, save_and_stop  # type: ignore[method-assign,assignment]
    with contextlib.suppress(KeyboardInterrupt):
        trained(folder, raw, {})
    Checkpoint.due, Checkpoint.save = due, save  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trained(folder, raw, {})
    assert f"going on from step {STEPS // 2} of {STEPS}" in said.getvalue()
    return folder


def proven(folder: Path, raw: Path) -> Path:
    """The stages after train, on weights that no arithmetic made."""
    params = write_params(folder / "params.yaml", RECIPE)
    splits, weights = folder / "splits", folder / "weights.safetensors"
    preprocess(params=params, raw=raw, splits=splits, samples=folder / "samples.png")
    about = read_splits_info(splits)
    network = build_model("compact", 8, about.size, about.channels, len(about.classes), about.mean, about.std)
    generator = np.random.Generator(np.random.PCG64(0))
    for name, tensor in network.state_dict().items():
        if name.endswith((".weight", ".bias")):
            tensor.copy_(torch.from_numpy(generator.integers(-128, 128, tuple(tensor.shape)) / 1024))
    network.temperature.fill_(0.4375)
    write_weights(weights, network, WeightsHeader.of("compact", 8, about, {}))
    made = {"params": params, "splits": splits, "weights": weights}
    model: Files = {"model": folder / "model.onnx", "golden": folder / "golden.json"}
    tables = {name: folder / f"{name}.csv" for name in ("predictions", "classes", "reliability")}
    pictures = {name: folder / f"{name}.png" for name in ("first_nine", "mistakes", "tsne")}
    report = folder / "evaluate.json"
    evaluate(**made, report=report, **tables, **pictures)
    export_onnx(**made, **model)
    measured = folder / "measured" / "parity.csv"  # not hashed: ONNX Runtime chooses its kernels by the CPU
    environment = folder / "environment.json"
    environment.write_text(json.dumps({"arithmetic": "portable"}))
    proof = {
        "environment": environment,
        "report": folder / "parity.json",
        "measured": measured,
        "certificate": folder / "certificate.json",
    }
    validate_parity(**made, **model, quality=report, **proof)
    return folder


def write_pictures(folder: Path) -> Path:
    """Images as `own` has them: PNG and JPEG, in colour, of sizes of their own; the folder as download leaves it."""
    from stages.download import download

    generator = np.random.Generator(np.random.PCG64(3))
    for index in range(120):
        name = ("cat", "dog", "eel")[index % 3]
        side = int(generator.integers(20, 40))
        pixels = generator.integers(0, 90, (side, side + 3, 3), dtype=np.uint8)
        pixels[side // 4 : side // 2, 3 + 5 * (index % 3) : 12 + 5 * (index % 3)] += 150
        path = folder / "own" / name / f"{index}.{'png' if index % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    params = write_params(folder / "download.yaml", {"download.dataset": "own"})
    download(params=params, own=folder / "own", raw=folder / "raw")
    return folder / "raw"


def embedded(folder: Path) -> Path:
    from stages.download import download

    (folder / "own").mkdir(parents=True)
    params = write_params(folder / "download.yaml", {"download.dataset": "digits"})
    download(params=params, own=folder / "own", raw=folder / "raw")
    return folder / "raw"


def runs() -> dict[str, Callable[[Path], Path]]:
    """By name: every set of experiments.yaml, every network, every optimizer, resuming, every kind of data set."""

    def on_digits_like(changes: dict[str, Any]) -> Callable[[Path], Path]:
        return lambda folder: trained(folder, write_raw(folder / "raw", 900, 100), changes)

    colour = {"preprocess.channels": 3, "preprocess.size": 32, "train.rotate": 180, "train.zoom": 0.2}
    # What differs by arithmetic alone would here be a default run once more.
    recipes = {name: changes for name, changes in EXPERIMENTS.items() if changes.keys() - {"machine.arithmetic"}}
    optimizers = {
        f"{model}-{rule}": {"train.model": model, "train.optimizer": rule, "train.weight_decay": 0.01}
        for model in ("compact", "reference_b")
        for rule in get_args(OptimizerName)
    }
    networks = {f"network-{model}": {"train.model": model, "train.stem": "learned"} for model in get_args(ModelName)}
    others = {
        "bfloat16": {"train.precision": "bfloat16"},
        "one-thread": {"machine.threads": 1},
    }
    named = {**recipes, **optimizers, **networks, **others}
    assert len(named) == sum(map(len, (recipes, optimizers, networks, others)))
    return {
        **{name: on_digits_like(changes) for name, changes in named.items()},
        "resume": lambda folder: interrupted(folder, write_raw(folder / "raw", 900, 100)),
        "digits": lambda folder: trained(folder, embedded(folder), {}),
        "own": lambda folder: trained(folder, write_pictures(folder), colour),
        "proof": lambda folder: proven(folder, write_raw(folder / "raw", 400, 200)),
    }


def hashed(folder: Path) -> dict[str, str]:
    """Of the run's outputs and splits; not of what it was given."""
    files = [*folder.iterdir(), *(folder / "splits").iterdir()]
    known = [path for path in files if path.is_file() and path.suffix != ".yaml"]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(known)
    }


def main(arguments: list[str]) -> None:
    names = [name for name in arguments if name != "--write"]
    if unknown := set(names) - runs().keys():
        sys.exit(f"no such runs: {', '.join(sorted(unknown))}; there are {', '.join(runs())}")
    if names and "--write" in arguments:
        sys.exit("--write makes the whole table: leave the names out")
    table: dict[str, dict[str, str]] = {}
    with contextlib.redirect_stdout(sys.stderr):  # what the stages say
        for name, run in runs().items():
            if name in names or not names:
                with TemporaryDirectory() as folder:
                    table[name] = hashed(run(Path(folder)))
                print(json.dumps([name, table[name]]), file=sys.__stdout__, flush=True)
    if "--write" in arguments:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
