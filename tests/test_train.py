"""The stage train: its outputs, the effect of every param, resuming, and its error messages."""

import csv
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional
from toys import wait_until

from stages import train as module
from stages.core.arithmetic import PORTABLE_ENV, cpu_fields
from stages.core.errors import StageError
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.models import MODELS, build_model
from stages.network.weights import read_weights
from stages.train import train
from stages.training import checkpoint
from stages.training.checkpoint import lock_folder

ROOT = Path(__file__).parent.parent
COLUMNS = ["step", "epoch", "learning_rate", "loss", "accuracy", "monitor_loss", "monitor_accuracy"]
OUTPUTS = {
    "weights": "weights.safetensors",
    "history": "history.csv",
    "trace": "trace.csv",
    "report": "report.json",
    "environment": "environment.json",
}
BASELINE = {  # each test below changes some of it
    "train.epochs": 3,
    "train.points": 3,
    "train.optimizer": "adam",
    "train.learning_rate": 0.002,
    "train.momentum": 0.0,
    "train.nesterov": False,
    "train.betas": [0.9, 0.999],
    "train.schedule": "constant",
    "train.label_smoothing": 0.0,
    "train.shift": 0,
    "train.zoom": 0.0,
    "train.monitor": "none",
    "train.calibrate": "none",
}


def output_paths(folder: Path) -> dict[str, Path]:
    return {name: folder / file for name, file in OUTPUTS.items()} | {
        "pretrained": folder / "pretrained",
        "checkpoints": folder / "checkpoints",
    }


def run_train(folder: Path, params: Path, splits: Path, seconds: float = 60) -> Path:
    train(params=params, splits=splits, checkpoint_seconds=seconds, **output_paths(folder))
    return folder


def train_command(folder: Path, params: Path, splits: Path, seconds: float = 60) -> list[str]:
    values = {"params": params, "splits": splits, **output_paths(folder), "checkpoint-seconds": seconds}
    flags = [str(part) for name, value in values.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "stages.train", *flags]


def output_bytes(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in OUTPUTS.values()}


def read_history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "weights.safetensors")[0].state_dict()


def evaluate_weights(folder: Path, splits: Path, split: Any) -> dict[str, float]:
    """Loss and accuracy of the written weights on a split without calibration, comparable with the report."""
    network, _ = read_weights(folder / "weights.safetensors")
    network.temperature.fill_(1)
    images, labels = torch.from_numpy(read_images(splits, split)), torch.from_numpy(read_labels(splits, split))
    with torch.no_grad():
        logits = network(images)
    loss, accuracy = functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).double().mean()
    return {"loss": pytest.approx(float(loss), abs=2e-6), "accuracy": round(float(accuracy), 6)}


def write_splits(folder: Path, train: int = 40, validation: int = 10, test: int = 10, size: int = 28) -> Path:
    """Splits of random images with three channels and two classes."""
    folder.mkdir()
    counts = {"train": train, "validation": validation, "test": test}
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        np.save(folder / f"{name}-images.npy", generator.integers(0, 256, (count, 3, size, size), dtype=np.uint8))
        np.save(folder / f"{name}-labels.npy", np.arange(count) % 2)
    info = {"dataset": "own", "origin": "made", "preparation": "resize", "classes": ["no", "yes"], "channels": 3}
    by_class = {name: [-(-count // 2), count // 2] for name, count in counts.items()}
    info |= {"size": size, "counts": counts, "counts_by_class": by_class, "mean": [0.5] * 3, "std": [0.3] * 3}
    (folder / "about.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def baseline_tensors(stage_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The tensors that a training with BASELINE gives."""
    folder = tmp_path_factory.mktemp("baseline")
    content = json.loads((stage_outputs / "params.yaml").read_text())
    for key, value in BASELINE.items():
        content["train"][key.removeprefix("train.")] = value
    (folder / "params.yaml").write_text(json.dumps(content))
    return read_tensors(run_train(folder, folder / "params.yaml", stage_outputs / "splits"))


def test_a_small_data_set_is_learned(stage_outputs: Path) -> None:
    report = json.loads((stage_outputs / "train.json").read_text())
    assert report["validation"]["accuracy"] > 0.9
    assert report["accuracy"] > 0.9
    assert report["parameters"] == 8490


def test_the_history_has_a_row_for_each_point_and_the_last_is_of_the_last_step(stage_outputs: Path) -> None:
    history = read_history(stage_outputs)
    assert list(history[0]) == COLUMNS
    assert [row["step"] for row in history] == ["9", "18", "27", "36", "44"]
    assert [row["epoch"] for row in history] == ["0.8182", "1.6364", "2.4545", "3.2727", "4.0"]
    assert float(history[-1]["loss"]) < float(history[0]["loss"])


def test_more_points_than_steps_give_a_row_for_each_step(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    run_train(
        tmp_path,
        params({**BASELINE, "train.epochs": 0, "train.min_steps": 3, "train.points": 50}),
        stage_outputs / "splits",
    )
    assert [row["step"] for row in read_history(tmp_path)] == ["1", "2", "3"]


def test_the_history_file_always_has_complete_rows_during_the_training(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    versions: set[bytes] = set()
    has_ended = threading.Event()

    def read_versions() -> None:
        while not has_ended.is_set():
            if (tmp_path / "history.csv").exists():
                versions.add((tmp_path / "history.csv").read_bytes())

    watcher = threading.Thread(target=read_versions)
    watcher.start()
    run_train(tmp_path, params({"train.epochs": 6, "train.points": 12}), stage_outputs / "splits")
    has_ended.set()
    watcher.join()
    final = (tmp_path / "history.csv").read_bytes()
    assert len(versions) > 3
    assert all(content.endswith(b"\n") and final.startswith(content) for content in versions)


@pytest.mark.parametrize(
    "change",
    [
        {"train.optimizer": "adamw", "train.weight_decay": 0.1},
        {"train.optimizer": "sgd", "train.learning_rate": 0.05},
        {"train.optimizer": "sgd", "train.learning_rate": 0.02, "train.momentum": 0.9},
        {"train.optimizer": "sgd", "train.learning_rate": 0.02, "train.momentum": 0.9, "train.nesterov": True},
        {"train.optimizer": "muon", "train.learning_rate": 0.01, "train.muon_rate": 0.1},
        {"train.optimizer": "muon", "train.learning_rate": 0.01, "train.muon_rate": 0.05, "train.momentum": 0.6},
        {"train.betas": [0.8, 0.9]},
        {"train.stem": "whitened"},
        {"train.weight_decay": 0.01},
        {"train.schedule": "one-cycle", "train.learning_rate": 0.005},
        {"train.label_smoothing": 0.1},
        {"train.shuffle": False},
        {"train.normalize": "none"},
        {"train.shift": 1},
        {"train.rotate": 10.0},
        {"train.zoom": 0.1},
        {"train.crop": 0.8},
        {"train.flip": True},
        {"train.brightness": 0.2},
        {"train.contrast": 0.2},
        {"train.erase": 0.3},
        {"train.precision": "bfloat16"},
        {"train.batch": 20},
        {"train.seed": 1},
    ],
    ids=lambda change: "-".join(str(value) for value in change.values()),
)
def test_every_param_trains_and_changes_the_weights(
    change: dict[str, Any], stage_outputs: Path, tmp_path: Path, params: Any, baseline_tensors: dict[str, torch.Tensor]
) -> None:
    run_train(tmp_path, params({**BASELINE, **change}), stage_outputs / "splits")
    losses = [float(row["loss"]) for row in read_history(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(read_tensors(tmp_path)["head.weight"], baseline_tensors["head.weight"])


def test_nesterov_momentum_differs_from_momentum(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    sgd = {**BASELINE, "train.epochs": 1, "train.optimizer": "sgd", "train.momentum": 0.9}
    with_and_without = [
        read_tensors(
            run_train(tmp_path / str(nesterov), params({**sgd, "train.nesterov": nesterov}), stage_outputs / "splits")
        )
        for nesterov in (False, True)
    ]
    assert not torch.equal(with_and_without[0]["head.weight"], with_and_without[1]["head.weight"])


@pytest.mark.parametrize("model", MODELS)
def test_every_network_trains_on_colour_images(model: str, tmp_path: Path, params: Any) -> None:
    splits = write_splits(tmp_path / "splits")
    run_train(tmp_path, params({**BASELINE, "train.model": model, "train.batch": 20}), splits)
    network, header = read_weights(tmp_path / "weights.safetensors")
    assert (header.architecture, header.channels, header.classes) == (model, 3, ["no", "yes"])
    assert network(torch.from_numpy(read_images(splits, "test"))).shape == (10, 2)


def test_a_constant_schedule_keeps_the_learning_rate(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 1}), stage_outputs / "splits")
    assert {row["learning_rate"] for row in read_history(tmp_path)} == {"0.002"}


def test_one_cycle_rises_during_the_warmup_and_falls_to_a_hundredth(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    cycle = {"train.schedule": "one-cycle", "train.warmup": 0.4, "train.learning_rate": 0.01}
    steps = {"train.epochs": 0, "train.min_steps": 10, "train.points": 10}
    run_train(tmp_path, params({**BASELINE, **cycle, **steps}), stage_outputs / "splits")
    rates = [float(row["learning_rate"]) for row in read_history(tmp_path)]
    assert rates[:4] == [0.0025, 0.005, 0.0075, 0.01]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == 0.0001


@pytest.mark.parametrize(
    ("epochs", "min_steps", "steps"), [(1, 1, 11), (0.5, 1, 6), (2.25, 1, 25), (0, 3, 3), (1, 15, 15), (0.01, 1, 1)]
)
def test_epochs_may_be_a_fraction_and_min_steps_is_the_minimum(
    epochs: float, min_steps: int, steps: int, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    run_train(
        tmp_path, params({**BASELINE, "train.epochs": epochs, "train.min_steps": min_steps}), stage_outputs / "splits"
    )
    assert read_report(tmp_path)["step"] == steps
    assert read_history(tmp_path)[-1]["step"] == str(steps)


def test_min_steps_that_decide_are_said_in_epochs(
    stage_outputs: Path, tmp_path: Path, params: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 1, "train.min_steps": 27}), stage_outputs / "splits")
    line = "train.min_steps: 27 steps are 2.455 epochs of 540 images; train.epochs: 1 are 11\n"
    assert line in capsys.readouterr().out
    run_train(tmp_path, params({**BASELINE, "train.epochs": 1, "train.min_steps": 11}), stage_outputs / "splits")
    assert "train.min_steps:" not in capsys.readouterr().out


def test_a_log_says_now_and_then_how_much_time_remains(
    stage_outputs: Path,
    tmp_path: Path,
    params: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices = params({**BASELINE, "train.epochs": 1, "train.points": 1})
    run_train(tmp_path, choices, stage_outputs / "splits")
    assert " left" not in capsys.readouterr().out  # a short training has none
    monkeypatch.setattr("stages.training.progress.LOG_INTERVAL", 0.0)
    run_train(tmp_path, choices, stage_outputs / "splits")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    assert [re.sub(r"\d+ s", "N s", line) for line in lines] == [
        f"step {n} of 11: about N s left" for n in range(1, 11)
    ]


def test_a_terminal_shows_a_bar(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    """The bar of tqdm, with the time that remains; `script` gives the command a terminal."""
    command = train_command(tmp_path, params({**BASELINE, "train.epochs": 1}), stage_outputs / "splits")
    done = subprocess.run(
        ["script", "-qec", f"stty rows 40 cols 100; {shlex.join(command)}", "/dev/null"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"100%.* 11/11 \[\d\d:\d\d<00:00", done.stdout)


def test_imagenets_normalization_needs_colour_and_is_in_the_weights(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    choices = params({**BASELINE, "train.epochs": 1, "train.normalize": "imagenet"})
    with pytest.raises(StageError, match=r"train\.normalize: imagenet needs colour .* preprocess\.channels to 3"):
        run_train(tmp_path, choices, stage_outputs / "splits")
    tensors = read_tensors(run_train(tmp_path, choices, write_splits(tmp_path / "splits")))
    assert tensors["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert tensors["std"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_saturation_changes_the_training_of_colour_images(tmp_path: Path, params: Any) -> None:
    splits = write_splits(tmp_path / "splits")
    heads = [
        read_tensors(
            run_train(tmp_path / str(value), params({**BASELINE, "train.saturation": value}), splits)
        )["head.weight"]
        for value in (0.0, 0.4)
    ]  # fmt: skip
    assert not torch.equal(*heads)


RESNET = {**BASELINE, "train.model": "resnet", "train.width": 8, "train.depth": 1, "train.epochs": 1, "train.batch": 20}


def test_the_weights_file_names_new_params_only_if_they_do_something(tmp_path: Path, params: Any) -> None:
    """So that the weights of a recipe without them stay the same to the byte."""
    splits = write_splits(tmp_path / "splits", size=32)
    plain, used = (
        read_weights(run_train(tmp_path / name, params({**RESNET, **changes}), splits) / "weights.safetensors")[1]
        for name, changes in (
            ("plain", {"train.model": "reference_e", "train.depth": 2}),
            ("used", {"train.flip": True}),
        )
    )
    new = {"flip", "crop", "erase", "brightness", "contrast", "saturation", "class_weights", "start_from", "depth"}
    assert not new & plain.params.keys()
    assert plain.depth is None
    assert (used.params["flip"], used.params["depth"], used.depth) == (True, 1, 1)


def test_a_training_starts_from_the_weights_of_another(
    tmp_path: Path, params: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = write_splits(tmp_path / "splits", size=32)
    first = read_tensors(run_train(tmp_path / "first", params(RESNET), splits))
    (tmp_path / "second" / "pretrained").mkdir(parents=True)
    shutil.copyfile(tmp_path / "first" / "weights.safetensors", tmp_path / "second" / "pretrained" / "first.st")
    still = {"train.start_from": "first.st", "train.optimizer": "sgd", "train.learning_rate": 1e-30, "train.seed": 5}
    second = read_tensors(run_train(tmp_path / "second", params({**RESNET, **still}), splits))
    assert "tensors taken; new: none" in capsys.readouterr().out
    weights = [name for name in first if name.endswith((".weight", ".bias"))]
    assert [name for name in weights if not torch.equal(first[name], second[name])] == []

    about = json.loads((splits / "about.json").read_text())
    (splits / "about.json").write_text(json.dumps({**about, "classes": ["off", "on"]}))
    third = read_tensors(run_train(tmp_path / "second", params({**RESNET, **still}), splits))
    assert "new: head.weight, head.bias\n" in capsys.readouterr().out
    assert not torch.equal(third["head.weight"], second["head.weight"])
    assert torch.equal(third["body.conv1.weight"], second["body.conv1.weight"])


def test_torchvisions_names_are_understood(tmp_path: Path, params: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    (tmp_path / "pretrained").mkdir()
    save_file(state, tmp_path / "pretrained" / "resnet18.safetensors")
    changes = {"train.start_from": "resnet18.safetensors", "train.width": 64, "train.depth": 2, "train.epochs": 0,
               "train.optimizer": "sgd", "train.learning_rate": 1e-30, "train.normalize": "imagenet"}  # fmt: skip
    run_train(tmp_path, params({**RESNET, **changes}), write_splits(tmp_path / "splits", size=32))
    assert "resnet18.safetensors: 120 tensors taken; new: head.weight, head.bias\n" in capsys.readouterr().out
    tensors = read_tensors(tmp_path)
    assert torch.equal(tensors["body.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train.start_from": "absent"}, "absent: missing; put the file there"),
        ({"train.start_from": "text"}, "text: not a complete safetensors file"),
        ({"train.width": 16}, "fit the network, too few; it needs names such as conv1.weight"),
        ({"train.model": "deep", "train.width": 16}, "fit the network, too few; it needs names such as 0.weight"),
        ({"train.stem": "whitened"}, "train.start_from brings its own first convolution: set train.stem to learned"),
    ],
)
def test_pretrained_weights_that_do_not_fit_are_one_line(
    changes: dict[str, Any], reason: str, tmp_path: Path, params: Any
) -> None:
    (tmp_path / "pretrained").mkdir()
    state = build_model("resnet", 8, 32, 3, 2, [0.5] * 3, [0.2] * 3).body.state_dict()
    save_file(state, tmp_path / "pretrained" / "small")
    (tmp_path / "pretrained" / "text").write_text("weights" * 30)
    with pytest.raises(StageError, match=re.escape(reason)) as error:
        run_train(
            tmp_path,
            params({**RESNET, "train.start_from": "small", **changes}),
            write_splits(tmp_path / "splits", size=32),
        )
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_other_pretrained_weights_is_not_used(
    tmp_path: Path, params: Any, interrupt_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    splits, choices = write_splits(tmp_path / "splits", size=32), {**RESNET, "train.start_from": "file"}
    choices |= {"train.epochs": 2, "train.points": 4, "train.monitor": "validation"}
    (tmp_path / "pretrained").mkdir()
    for seed, expected in ((0, False), (0, True), (1, False)):
        torch.manual_seed(seed)
        save_file(
            build_model("resnet", 8, 32, 3, 2, [0.5] * 3, [0.2] * 3).body.state_dict(), tmp_path / "pretrained" / "file"
        )
        if expected or seed:
            run_train(tmp_path, params(choices), splits)
            assert ("resuming" in capsys.readouterr().out) == expected
        if not seed:
            interrupt_training(tmp_path, params(choices), splits)


def test_balanced_class_weights_find_a_rare_class(tmp_path: Path, params: Any) -> None:
    """Of two classes that overlap, one has a tenth of the images: unweighted training hardly ever says its name."""
    splits = write_splits(tmp_path / "splits", train=440, validation=10, test=400, size=32)
    generator = np.random.default_rng(1)
    for split, rare in (("train", 40), ("test", 200)):
        labels = np.arange(len(np.load(splits / f"{split}-labels.npy"))) < rare
        level = np.where(labels, 128, 108)[:, None, None, None] + generator.normal(0, 14, (len(labels), 1, 1, 1))
        images = level + generator.normal(0, 30, (len(labels), 3, 32, 32))
        np.save(splits / f"{split}-images.npy", images.clip(0, 255).astype(np.uint8))
        np.save(splits / f"{split}-labels.npy", labels.astype(np.int64))
    recall = {}
    for choice in ("none", "balanced"):
        changes = {"train.class_weights": choice, "train.epochs": 2, "train.model": "compact", "train.width": 8}
        run_train(tmp_path / choice, params({**RESNET, **changes}), splits)
        network, _ = read_weights(tmp_path / choice / "weights.safetensors")
        images, labels = (torch.from_numpy(read(splits, "test")) for read in (read_images, read_labels))
        with torch.no_grad():
            recall[choice] = float((network(images).argmax(1)[labels == 1] == 1).double().mean())
    assert recall["balanced"] > recall["none"] + 0.1


@pytest.mark.skipif("avx512f" not in cpu_fields().get("flags", ""), reason="needs a CPU with AVX-512")
def test_a_residual_network_trains_in_native_arithmetic_on_batches_of_63(tmp_path: Path, params: Any) -> None:
    """oneDNN's AVX-512 kernel for a 1x1 convolution with a stride dies of it: `subsample_before_pointwise`."""
    splits = write_splits(tmp_path / "splits", train=63 * 4, size=64)
    native = {"machine.arithmetic": "native", "machine.threads": 2, "train.batch": 63, "train.min_steps": 10}
    command = train_command(tmp_path, params({**RESNET, **native}), splits)
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE_ENV}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-500:]}"
    assert read_report(tmp_path)["step"] == 10


@pytest.mark.parametrize(("normalize", "uses_dataset"), [("dataset", True), ("none", False)])
def test_normalization_is_in_the_weights(
    normalize: str, uses_dataset: bool, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 0, "train.normalize": normalize}), stage_outputs / "splits")
    info, written = read_splits_info(stage_outputs / "splits"), read_tensors(tmp_path)
    mean, std = (info.mean[0], info.std[0]) if uses_dataset else (0.0, 1.0)
    assert float(written["mean"]) == pytest.approx(mean)
    assert float(written["std"]) == pytest.approx(std)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_history_and_report_have_the_metrics_of_the_monitored_split(
    split: str, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 1, "train.monitor": split}), stage_outputs / "splits")
    last, expected = read_history(tmp_path)[-1], evaluate_weights(tmp_path, stage_outputs / "splits", split)
    assert read_report(tmp_path)[split] == expected
    assert {"loss": float(last["monitor_loss"]), "accuracy": float(last["monitor_accuracy"])} == expected


def test_monitor_none_leaves_the_monitor_columns_empty(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 1}), stage_outputs / "splits")
    assert {row["monitor_loss"] + row["monitor_accuracy"] for row in read_history(tmp_path)} == {""}
    assert list(read_report(tmp_path)) == ["step", "epoch", "loss", "accuracy", "parameters"]


@pytest.fixture
def mislabelled_splits(stage_outputs: Path, tmp_path: Path) -> Path:
    """Splits whose later training labels are all 0: a training without shuffling gets better, then worse."""
    splits = tmp_path / "mislabelled"
    splits.mkdir()
    for file in (stage_outputs / "splits").iterdir():
        (splits / file.name).write_bytes(file.read_bytes())
    labels = np.load(splits / "train-labels.npy")
    labels[300:] = 0
    np.save(splits / "train-labels.npy", labels)
    return splits


KEEP_BEST = {**BASELINE, "train.epochs": 1, "train.points": 11, "train.shuffle": False, "train.learning_rate": 0.01,
        "train.monitor": "validation", "train.keep": "best"}  # fmt: skip


def test_keep_best_writes_the_weights_of_the_highest_accuracy(
    mislabelled_splits: Path, tmp_path: Path, params: Any
) -> None:
    run_train(tmp_path, params(KEEP_BEST), mislabelled_splits)
    accuracies = [float(row["monitor_accuracy"]) for row in read_history(tmp_path)]
    best = accuracies.index(max(accuracies))
    assert accuracies[-1] < max(accuracies)
    assert read_report(tmp_path)["step"] == best + 1
    assert read_report(tmp_path)["validation"] == evaluate_weights(tmp_path, mislabelled_splits, "validation")
    assert read_report(tmp_path)["validation"]["accuracy"] == max(accuracies)


@pytest.mark.parametrize("monitor", ["test", "none"])
def test_keep_best_requires_the_validation_split_to_be_monitored(
    monitor: str, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=f"keep: best selects by the validation split, but monitor is {monitor}"):
        run_train(tmp_path, params({"train.keep": "best", "train.monitor": monitor}), stage_outputs / "splits")


def test_the_same_bytes_are_written_again_in_any_folder(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    choices = params({"train.epochs": 1, "train.rotate": 10, "train.keep": "best"})
    first = output_bytes(run_train(tmp_path / "first", choices, stage_outputs / "splits"))
    assert output_bytes(run_train(tmp_path / "first", choices, stage_outputs / "splits")) == first
    assert output_bytes(run_train(tmp_path / "second" / "folder", choices, stage_outputs / "splits")) == first


def test_another_seed_gives_other_weights_and_another_history(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    first, second = (
        output_bytes(
            run_train(
                tmp_path / str(seed),
                params({**BASELINE, "train.epochs": 1, "train.seed": seed}),
                stage_outputs / "splits",
            )
        )
        for seed in (0, 1)
    )
    assert first["weights.safetensors"] != second["weights.safetensors"]
    assert first["history.csv"] != second["history.csv"]
    assert first["environment.json"] == second["environment.json"]


@pytest.mark.parametrize("split", ["validation", "train"])
def test_calibration_lowers_the_loss_and_changes_no_prediction(
    split: str, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    smoothed = {"train.label_smoothing": 0.3, "train.epochs": 6}
    run_train(tmp_path, params({**BASELINE, **smoothed, "train.calibrate": split}), stage_outputs / "splits")
    network, _ = read_weights(tmp_path / "weights.safetensors")
    images, labels = (torch.from_numpy(read(stage_outputs / "splits", "test")) for read in (read_images, read_labels))
    with torch.no_grad():
        calibrated = network(images)
        temperature = float(network.temperature.clone())
        network.temperature.fill_(1)
        uncalibrated = network(images)
    assert 0.01 < temperature < 0.9, "label smoothing makes a network underconfident"
    assert torch.equal(calibrated.argmax(1), uncalibrated.argmax(1))
    assert functional.cross_entropy(calibrated, labels) < functional.cross_entropy(uncalibrated, labels)


def test_the_trace_has_checksums_of_each_tensor_at_the_start_every_ten_steps_and_at_the_end(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 0, "train.min_steps": 25}), stage_outputs / "splits")
    with (tmp_path / "trace.csv").open(newline="") as file:
        trace = list(csv.DictReader(file))
    assert [row["step"] for row in trace] == ["0", "10", "20", "25", "final"]
    assert list(trace[0]) == ["step", *read_tensors(tmp_path)]
    last = {name: f"{zlib.crc32(tensor.numpy().tobytes()):08x}" for name, tensor in read_tensors(tmp_path).items()}
    assert trace[-2] == {"step": "25", **last}
    assert trace[-1] == {"step": "final", **last}, "equal, since calibrate is none"
    changed = [name for name in last if trace[0][name] != trace[1][name]]
    assert changed == [name for name in last if name not in ("mean", "std", "temperature")]


def test_a_full_disk_is_reported_in_one_line(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    """A limit of 20 kB on the size of a file stands for the full disk."""
    command = train_command(
        tmp_path / "out", params({**BASELINE, "train.epochs": 1}), stage_outputs / "splits", seconds=0
    )
    limited = ["bash", "-c", 'ulimit -f 20; "$@"', "bash", *command]
    completed = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 1
    last = completed.stderr.splitlines()[-1]
    assert last.startswith("train: ")
    assert last.endswith(": cannot be written: File too large")
    assert "Traceback" not in completed.stderr
    assert not (tmp_path / "out" / "weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_a_training_that_was_killed_three_times_gives_the_same_bytes(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    choices = params({"train.min_steps": 500, "train.points": 20, "train.batch": 20, "train.shift": 2,
                      "train.keep": "best"})  # fmt: skip
    uninterrupted = output_bytes(run_train(tmp_path / "uninterrupted", choices, stage_outputs / "splits"))
    killed = tmp_path / "killed"
    command = train_command(killed, choices, stage_outputs / "splits", seconds=0.05)
    starts = [int(kill_after_checkpoints(command, killed, count)) for count in (1, 2, 2)]
    assert 0 == starts[0] < starts[1] < starts[2]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(re.search(r"resuming from step (\d+) of 500", completed.stdout).group(1)) > starts[2]  # type: ignore[union-attr]
    assert output_bytes(killed) == uninterrupted
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["lock"]


def kill_after_checkpoints(command: list[str], folder: Path, number: int) -> str:
    """Kill the command after it has saved `number` checkpoints; returns the step that it resumed from."""
    log = folder.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    saved = {state.stat().st_mtime_ns for state in (folder / "checkpoints").glob("*.pt")}
    target = len(saved) + number
    while len(saved) < target:
        assert process.poll() is None, log.read_text()
        for state in (folder / "checkpoints").glob("[!.]*.pt"):
            saved.add(state.stat().st_mtime_ns)
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "weights.safetensors").exists()
    history = (folder / "history.csv").read_text()
    assert history.startswith(",".join(COLUMNS) + "\n")
    assert all(line.count(",") == 6 for line in history.splitlines())
    match = re.search(r"resuming from step (\d+) of", log.read_text())
    return match.group(1) if match else "0"


@pytest.fixture
def interrupt_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path, Path], None]:
    """Start a training that saves a checkpoint after every step, and interrupt it at its second point."""

    def start(folder: Path, params: Path, splits: Path) -> None:
        measure = module.measure
        calls: list[int] = []

        def interrupt_second_call(*args: Any) -> tuple[float, float]:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return measure(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, "measure", interrupt_second_call)
            with pytest.raises(KeyboardInterrupt):
                run_train(folder, params, splits, seconds=0)
        assert list((folder / "checkpoints").glob("*.pt"))

    return start


def test_a_training_resumes_from_its_checkpoint_with_its_best_weights(
    mislabelled_splits: Path, tmp_path: Path, params: Any, interrupt_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = params({**KEEP_BEST, "train.points": 2})
    uninterrupted = output_bytes(run_train(tmp_path / "uninterrupted", choices, mislabelled_splits))
    interrupt_training(tmp_path / "interrupted", choices, mislabelled_splits)
    run_train(tmp_path / "interrupted", choices, mislabelled_splits)
    assert "resuming from step 10 of 11" in capsys.readouterr().out
    assert output_bytes(tmp_path / "interrupted") == uninterrupted
    assert read_report(tmp_path / "interrupted")["step"] == 6
    assert not list((tmp_path / "interrupted" / "checkpoints").glob("*.pt"))


def test_a_checkpoint_of_other_params_is_not_used(
    stage_outputs: Path, tmp_path: Path, params: Any, interrupt_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_training(tmp_path, params({"train.epochs": 1}), stage_outputs / "splits")
    run_train(tmp_path, params({"train.epochs": 1, "train.weight_decay": 0.5}), stage_outputs / "splits")
    assert "resuming" not in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_a_checkpoint_of_other_data_is_not_used(
    stage_outputs: Path,
    mislabelled_splits: Path,
    tmp_path: Path,
    params: Any,
    interrupt_training: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choices = params({"train.epochs": 1})
    interrupt_training(tmp_path, choices, stage_outputs / "splits")
    run_train(tmp_path, choices, mislabelled_splits)
    assert "resuming" not in capsys.readouterr().out


def test_a_second_training_waits_until_the_first_has_ended(
    stage_outputs: Path, tmp_path: Path, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices, fit = params({**BASELINE, "train.epochs": 1}), module.fit
    running: list[int] = []
    running_counts: list[int] = []

    def count_running(*args: Any) -> None:
        running.append(1)
        running_counts.append(len(running))
        time.sleep(0.05)
        fit(*args)
        running.pop()

    lines: list[str] = []
    monkeypatch.setattr(module, "fit", count_running)
    monkeypatch.setattr(checkpoint, "echo", lines.append)
    threads = [threading.Thread(target=run_train, args=(tmp_path, choices, stage_outputs / "splits")) for _ in range(2)]
    with lock_folder(tmp_path / "checkpoints"):
        for thread in threads:
            thread.start()
        wait_until(lambda: len(lines) == 2, 60)
        assert all("waiting for it to end" in line for line in lines)
        assert not running_counts
    for thread in threads:
        thread.join()
    assert running_counts == [1, 1]


@pytest.mark.parametrize("points", [1, 11])
def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_previous_weights(
    points: int, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"previous")
    diverging = {"train.optimizer": "sgd", "train.learning_rate": 1e30, "train.epochs": 1, "train.points": points}
    with pytest.raises(
        StageError, match=r"not finite at step 2 of 11, learning rate 1e\+30: lower train.learning_rate"
    ):
        run_train(tmp_path, params({**BASELINE, **diverging}), stage_outputs / "splits")
    assert (tmp_path / "weights.safetensors").read_bytes() == b"previous"
    assert not (tmp_path / "report.json").exists()


def test_weights_that_the_last_step_makes_infinite_are_not_written(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    diverging = {"train.optimizer": "sgd", "train.learning_rate": 1e300, "train.epochs": 0, "train.min_steps": 1}
    with pytest.raises(StageError, match="finite"):
        run_train(tmp_path, params({**BASELINE, **diverging}), stage_outputs / "splits")
    assert not (tmp_path / "weights.safetensors").exists()


def test_an_empty_training_split_raises_an_error(tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=r"training split is empty: lower preprocess\.validation"):
        run_train(tmp_path, params(), write_splits(tmp_path / "splits", train=0))


def test_an_empty_validation_split_cannot_be_used_to_monitor_or_calibrate(tmp_path: Path, params: Any) -> None:
    splits = write_splits(tmp_path / "splits", validation=0)
    with pytest.raises(
        StageError, match=r"train\.calibrate: the validation split is empty: .* or set it to train or none"
    ):
        run_train(tmp_path, params({"train.monitor": "none"}), splits)
    with pytest.raises(StageError, match=r"train\.monitor: the validation split is empty: .* or set it to none"):
        run_train(tmp_path, params(), splits)
    run_train(tmp_path, params({**BASELINE, "train.epochs": 1}), splits)
    assert read_report(tmp_path)["step"] == 1


@pytest.mark.parametrize("model", ["compact", "reference_c", "reference_e"])
def test_images_that_are_too_small_for_the_network_raise_an_error(model: str, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=rf"'{model}' is too deep for images of 6 x 6: raise preprocess\.size"):
        run_train(tmp_path, params({"train.model": model}), write_splits(tmp_path / "splits", size=6))


def test_a_batch_too_small_for_batch_norm_raises_an_error(tmp_path: Path, params: Any) -> None:
    """Batch norm needs more than one pixel of one image."""
    splits = write_splits(tmp_path / "splits", train=4, size=20)
    with pytest.raises(StageError, match=r"train\.batch"):
        run_train(tmp_path, params({**BASELINE, "train.model": "compact", "train.batch": 1}), splits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_missing_device_is_reported_in_one_line(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    command = train_command(tmp_path, params({"machine.device": "cuda"}), stage_outputs / "splits")
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 1
    assert completed.stderr == "train: machine.device: cuda is not available here; set it to auto or cpu\n"
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_gives_the_same_bytes_again(precision: str, stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    choices = params({"machine.device": "cuda", "train.rotate": 10, "train.precision": precision})
    first = output_bytes(run_train(tmp_path / "first", choices, stage_outputs / "splits"))
    assert output_bytes(run_train(tmp_path / "second", choices, stage_outputs / "splits")) == first
    assert json.loads(first["environment.json"])["device"] == torch.cuda.get_device_name()
    assert read_report(tmp_path / "first")["validation"]["accuracy"] > 0.9


@pytest.mark.parametrize("threads", [1, 2])
def test_the_environment_records_what_the_bytes_depend_on(
    threads: int, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    run_train(tmp_path, params({**BASELINE, "train.epochs": 0, "machine.threads": threads}), stage_outputs / "splits")
    environment = json.loads((tmp_path / "environment.json").read_text())
    libraries = environment.pop("libraries")
    assert environment == {
        "arithmetic": "portable",
        "device": "cpu",
        "threads": threads,
    }
    assert torch.get_num_threads() == threads
    assert {"torch", "numpy", "onnx"} <= libraries.keys()
    assert libraries == {name: importlib.metadata.version(name) for name in libraries}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.model", "vgg"),
        ("train.optimizer", "rmsprop"),
        ("train.schedule", "cosine"),
        ("train.precision", "float16"),
        ("train.seed", -1),
        ("train.seed", 99999999999999999999999),
        ("train.calibrate", "test"),
        ("train.epochs", -0.5),
        ("train.epochs", "many"),
        ("train.min_steps", 0),
        ("train.batch", 0),
        ("train.batch", 12.5),
        ("train.shuffle", "perhaps"),
        ("train.learning_rate", 0),
        ("train.momentum", 1.0),
        ("train.weight_decay", -0.1),
        ("train.warmup", 1.5),
        ("train.label_smoothing", 1.0),
        ("train.shift", -1),
        ("train.rotate", 270),
        ("train.zoom", 1.0),
        ("train.crop", 0.0),
        ("train.flip", "often"),
        ("train.brightness", 1.5),
        ("train.erase", 2.0),
        ("train.depth", 0),
        ("train.class_weights", "equal"),
        ("train.points", 0),
        ("train.monitor", "train"),
        ("train.unknown", 3),
        ("machine.device", "tpu"),
        ("machine.arithmetic", "exact"),
        ("machine.threads", 0),
    ],
)
def test_an_invalid_param_is_named_before_any_work(
    key: str, value: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=re.escape(key)) as error:
        run_train(tmp_path / "out", params({key: value}), stage_outputs / "splits")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nesterov_without_momentum_raises_an_error(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match="nesterov: true needs a momentum above 0"):
        run_train(
            tmp_path,
            params({"train.optimizer": "sgd", "train.momentum": 0.0, "train.nesterov": True}),
            stage_outputs / "splits",
        )


def test_missing_splits_are_named_with_the_command_that_writes_them(tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=r"about\.json: missing; run `dvc repro preprocess`"):
        run_train(tmp_path, params(), tmp_path / "missing")
