"""Small runs of the stages in portable arithmetic, and the hashes of the files that they write.

    python tests/portable_runs.py                # every run: prints a line of JSON for each, [run, {file: hash}]
    python tests/portable_runs.py strong resume  # only these runs
    python tests/portable_runs.py --write        # every run: writes tests/portable.json, the committed table

It runs as a separate process, on a real or an emulated CPU.
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
from stages.core.arithmetic import OPENMP_SPIN, PORTABLE_ENV

os.environ.update({**PORTABLE_ENV, **OPENMP_SPIN})  # before numpy and torch are imported

import numpy as np
import torch
from conftest import write_params, write_raw
from PIL import Image
from ruamel.yaml import YAML

from stages.core.splits import read_splits_info
from stages.evaluate import evaluate
from stages.export_onnx import export_onnx
from stages.network.models import MODELS, build_model
from stages.network.weights import WeightsHeader, write_weights
from stages.preprocess import preprocess
from stages.train import train
from stages.training.optimizers import OptimizerName
from stages.validate_parity import validate_parity

TABLE = ROOT / "tests" / "portable.json"
STEPS = 6
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
EXPERIMENTS = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
# conftest.py makes params quick; the runs take those of params.yaml, with fewer steps.
RECIPE = {f"train.{key}": value for key, value in PARAMS["train"].items()} | {
    "machine.threads": 2,
    "machine.arithmetic": "portable",
    "preprocess.validation_fraction": 0.1,
    "evaluate.min_accuracy": 0.0,
    "evaluate.min_macro_f1": 0.0,
    "evaluate.tsne_images": 60,
}
SHORT = {"train.epochs": 0, "train.min_steps": STEPS, "train.points": 2}
Files = dict[str, Path]


def run_train(folder: Path, raw: Path, changes: dict[str, Any]) -> Path:
    """Preprocess RAW and train in the folder, which is returned."""
    params = write_params(folder / "params.yaml", {**RECIPE, **changes, **SHORT, "machine.arithmetic": "portable"})
    preprocess(
        params=params, raw=raw, splits=folder / "splits", samples=folder / "samples.png", findings=folder / "data.md"
    )
    train(
        params=params,
        splits=folder / "splits",
        pretrained=folder / "pretrained",
        weights=folder / "weights.safetensors",
        history=folder / "history.csv",
        trace=folder / "trace.csv",
        report=folder / "train.json",
        environment=folder / "environment.json",
        checkpoints=folder / "checkpoints",
    )
    return folder


def run_resumed_train(folder: Path, raw: Path) -> Path:
    """Like `run_train` with the default recipe, but interrupted in the middle and resumed from the checkpoint."""
    from stages.training.checkpoint import Checkpoint

    is_due, save = Checkpoint.is_due, Checkpoint.save

    def save_and_interrupt(self: Checkpoint, state: dict[str, Any]) -> None:
        if state["steps_done"] == STEPS // 2:
            save(self, state)
            raise KeyboardInterrupt

    Checkpoint.is_due, Checkpoint.save = lambda _: True, save_and_interrupt  # type: ignore[method-assign,assignment]
    with contextlib.suppress(KeyboardInterrupt):
        run_train(folder, raw, {})
    Checkpoint.is_due, Checkpoint.save = is_due, save  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        run_train(folder, raw, {})
    assert f"resuming from step {STEPS // 2} of {STEPS}" in stdout.getvalue()
    return folder


def run_proof(folder: Path, raw: Path) -> Path:
    """Run the stages after train on weights from integers, which do not depend on floating-point arithmetic."""
    params = write_params(folder / "params.yaml", RECIPE)
    splits, weights = folder / "splits", folder / "weights.safetensors"
    preprocess(params=params, raw=raw, splits=splits, samples=folder / "samples.png", findings=folder / "data.md")
    info = read_splits_info(splits)
    network = build_model("compact", 8, info.size, info.channels, len(info.classes), info.mean, info.std)
    generator = np.random.Generator(np.random.PCG64(0))
    for name, tensor in network.state_dict().items():
        if name.endswith((".weight", ".bias")):
            tensor.copy_(torch.from_numpy(generator.integers(-128, 128, tuple(tensor.shape)) / 1024))
    network.temperature.fill_(0.4375)
    write_weights(weights, network, WeightsHeader.of("compact", 8, info, {}))
    inputs = {"params": params, "splits": splits, "weights": weights}
    model: Files = {"model": folder / "model.onnx", "golden": folder / "golden.json"}
    tables = {name: folder / f"{name}.csv" for name in ("predictions", "classes", "reliability", "suspects")}
    pictures = {name: folder / f"{name}.png" for name in ("first_nine", "mistakes", "tsne", "suspicious")}
    report = folder / "evaluate.json"
    evaluate(**inputs, report=report, **tables, **pictures)
    export_onnx(**inputs, **model)
    measured = folder / "measured" / "parity.csv"  # not hashed: ONNX Runtime selects its kernels by the CPU
    environment = folder / "environment.json"
    environment.write_text(json.dumps({"arithmetic": "portable"}))
    outputs = {
        "environment": environment,
        "report": folder / "parity.json",
        "measurements": measured,
        "certificate": folder / "certificate.json",
        "card": folder / "CARD.md",
    }
    validate_parity(**inputs, **model, evaluation=report, **outputs)
    return folder


def download_own(folder: Path) -> Path:
    """Colour images of different sizes as PNG and JPEG, downloaded as the data set `own`; returns the raw folder."""
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


def download_digits(folder: Path) -> Path:
    from stages.download import download

    (folder / "own").mkdir(parents=True)
    params = write_params(folder / "download.yaml", {"download.dataset": "digits"})
    download(params=params, own=folder / "own", raw=folder / "raw")
    return folder / "raw"


def runs() -> dict[str, Callable[[Path], Path]]:
    """Runs by name: every experiment, network and optimizer, resuming, and every kind of data set."""

    def run_on_idx(changes: dict[str, Any]) -> Callable[[Path], Path]:
        return lambda folder: run_train(folder, write_raw(folder / "raw", 900, 100), changes)

    colour = {"preprocess.channels": 3, "preprocess.size": 32, "train.rotate": 180, "train.zoom": 0.2}
    # An experiment that only changes the arithmetic would repeat the default run.
    recipes = {name: changes for name, changes in EXPERIMENTS.items() if changes.keys() - {"machine.arithmetic"}}
    optimizers = {
        f"{model}-{optimizer}": {"train.model": model, "train.optimizer": optimizer, "train.weight_decay": 0.01}
        for model in ("compact", "reference_b")
        for optimizer in get_args(OptimizerName)
    }
    networks = {f"network-{model}": {"train.model": model, "train.stem": "learned"} for model in MODELS}
    others = {
        "bfloat16": {"train.precision": "bfloat16"},
        "one-thread": {"machine.threads": 1},
    }
    trainings = {**recipes, **optimizers, **networks, **others}
    assert len(trainings) == sum(map(len, (recipes, optimizers, networks, others)))
    return {
        **{name: run_on_idx(changes) for name, changes in trainings.items()},
        "resume": lambda folder: run_resumed_train(folder, write_raw(folder / "raw", 900, 100)),
        "digits": lambda folder: run_train(folder, download_digits(folder), {}),
        "own": lambda folder: run_train(folder, download_own(folder), colour),
        "proof": lambda folder: run_proof(folder, write_raw(folder / "raw", 400, 200)),
    }


def hash_files(folder: Path) -> dict[str, str]:
    """Hashes of the splits and outputs of a run, not of its inputs."""
    files = [*folder.iterdir(), *(folder / "splits").iterdir()]
    outputs = [path for path in files if path.is_file() and path.suffix != ".yaml"]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(outputs)
    }


def main(arguments: list[str]) -> None:
    names = [name for name in arguments if name != "--write"]
    if unknown := set(names) - runs().keys():
        sys.exit(f"no such runs: {', '.join(sorted(unknown))}; there are {', '.join(runs())}")
    if names and "--write" in arguments:
        sys.exit("--write needs all runs: leave out the names")
    table: dict[str, dict[str, str]] = {}
    with contextlib.redirect_stdout(sys.stderr):  # messages of the stages
        for name, run in runs().items():
            if name in names or not names:
                with TemporaryDirectory() as folder:
                    table[name] = hash_files(run(Path(folder)))
                print(json.dumps([name, table[name]]), file=sys.__stdout__, flush=True)
    if "--write" in arguments:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
