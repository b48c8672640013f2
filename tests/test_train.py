"""Splits in; weights, history, report and environment out: what train promises of each of them."""

import csv
import importlib.metadata
import json
import os
import re
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
from torch.nn import functional
from toys import until

from stages import train as module
from stages.core.errors import StageError
from stages.core.splits import read_images, read_labels, read_splits_info
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
PLAIN = {  # each variant below changes one thing of it
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


def paths(folder: Path) -> dict[str, Path]:
    return {name: folder / file for name, file in OUTPUTS.items()} | {"checkpoints": folder / "checkpoints"}


def trained(folder: Path, params: Path, splits: Path, seconds: float = 60) -> Path:
    train(params=params, splits=splits, checkpoint_seconds=seconds, **paths(folder))
    return folder


def command(folder: Path, params: Path, splits: Path, seconds: float = 60) -> list[str]:
    given = {"params": params, "splits": splits, **paths(folder), "checkpoint-seconds": seconds}
    flags = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "stages.train", *flags]


def contents(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in OUTPUTS.values()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "weights.safetensors")[0].state_dict()


def measured(folder: Path, splits: Path, split: Any) -> dict[str, float]:
    """Loss and accuracy of the stored weights on a split before they were calibrated, as the report has them."""
    network, _ = read_weights(folder / "weights.safetensors")
    network.temperature.fill_(1)
    images, labels = torch.from_numpy(read_images(splits, split)), torch.from_numpy(read_labels(splits, split))
    with torch.no_grad():
        logits = network(images)
    loss, accuracy = functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).double().mean()
    return {"loss": pytest.approx(float(loss), abs=2e-6), "accuracy": round(float(accuracy), 6)}


def write_splits(folder: Path, train: int = 40, validation: int = 10, test: int = 10, size: int = 28) -> Path:
    """Splits of noise, with three channels and two classes."""
    folder.mkdir()
    counts = {"train": train, "validation": validation, "test": test}
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        np.save(folder / f"{name}-images.npy", generator.integers(0, 256, (count, 3, size, size), dtype=np.uint8))
        np.save(folder / f"{name}-labels.npy", np.arange(count) % 2)
    about = {"dataset": "own", "origin": "made", "preparation": "resize", "classes": ["no", "yes"], "channels": 3}
    by_class = {name: [-(-count // 2), count // 2] for name, count in counts.items()}
    about |= {"size": size, "counts": counts, "counts_by_class": by_class, "mean": [0.5] * 3, "std": [0.3] * 3}
    (folder / "about.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def plain(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that PLAIN gives."""
    folder = tmp_path_factory.mktemp("plain")
    content = json.loads((made / "params.yaml").read_text())
    for key, value in PLAIN.items():
        content["train"][key.removeprefix("train.")] = value
    (folder / "params.yaml").write_text(json.dumps(content))
    return tensors(trained(folder, folder / "params.yaml", made / "splits"))


def test_it_learns_the_small_data_set(made: Path) -> None:
    numbers = json.loads((made / "train.json").read_text())
    assert numbers["validation"]["accuracy"] > 0.9
    assert numbers["accuracy"] > 0.9
    assert numbers["parameters"] == 8490


def test_the_history_has_its_columns_and_as_many_rows_as_points_the_last_at_the_last_step(made: Path) -> None:
    found = rows(made)
    assert list(found[0]) == COLUMNS
    assert [row["step"] for row in found] == ["9", "18", "27", "36", "44"]
    assert [row["epoch"] for row in found] == ["0.8182", "1.6364", "2.4545", "3.2727", "4.0"]
    assert float(found[-1]["loss"]) < float(found[0]["loss"])


def test_more_points_than_steps_give_a_row_for_each_step(made: Path, tmp_path: Path, params: Any) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 0, "train.min_steps": 3, "train.points": 50}), made / "splits")
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3"]


def test_the_history_grows_whole_row_by_whole_row_while_it_trains(made: Path, tmp_path: Path, params: Any) -> None:
    seen: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if (tmp_path / "history.csv").exists():
                seen.add((tmp_path / "history.csv").read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    trained(tmp_path, params({"train.epochs": 6, "train.points": 12}), made / "splits")
    done.set()
    watcher.join()
    final = (tmp_path / "history.csv").read_bytes()
    assert len(seen) > 3
    assert all(content.endswith(b"\n") and final.startswith(content) for content in seen)


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
        {"train.precision": "bfloat16"},
        {"train.batch": 20},
        {"train.seed": 1},
    ],
    ids=lambda change: "-".join(str(value) for value in change.values()),
)
def test_every_setting_trains_and_makes_a_difference(
    change: dict[str, Any], made: Path, tmp_path: Path, params: Any, plain: dict[str, torch.Tensor]
) -> None:
    trained(tmp_path, params({**PLAIN, **change}), made / "splits")
    losses = [float(row["loss"]) for row in rows(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(tensors(tmp_path)["head.weight"], plain["head.weight"])


def test_nesterov_is_not_plain_momentum(made: Path, tmp_path: Path, params: Any) -> None:
    sgd = {**PLAIN, "train.epochs": 1, "train.optimizer": "sgd", "train.momentum": 0.9}
    both = [
        tensors(trained(tmp_path / str(nesterov), params({**sgd, "train.nesterov": nesterov}), made / "splits"))
        for nesterov in (False, True)
    ]
    assert not torch.equal(both[0]["head.weight"], both[1]["head.weight"])


@pytest.mark.parametrize("model", ["compact", "deep", "reference_a", "reference_b", "reference_c", "reference_e"])
def test_every_network_trains_on_colour_too(model: str, tmp_path: Path, params: Any) -> None:
    splits = write_splits(tmp_path / "splits")
    trained(tmp_path, params({**PLAIN, "train.model": model, "train.batch": 20}), splits)
    network, header = read_weights(tmp_path / "weights.safetensors")
    assert (header.architecture, header.channels, header.classes) == (model, 3, ["no", "yes"])
    assert network(torch.from_numpy(read_images(splits, "test"))).shape == (10, 2)


def test_a_constant_schedule_keeps_its_rate(made: Path, tmp_path: Path, params: Any) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 1}), made / "splits")
    assert {row["learning_rate"] for row in rows(tmp_path)} == {"0.002"}


def test_one_cycle_rises_over_the_warmup_and_falls_to_a_hundredth(made: Path, tmp_path: Path, params: Any) -> None:
    cycle = {"train.schedule": "one-cycle", "train.warmup": 0.4, "train.learning_rate": 0.01}
    steps = {"train.epochs": 0, "train.min_steps": 10, "train.points": 10}
    trained(tmp_path, params({**PLAIN, **cycle, **steps}), made / "splits")
    rates = [float(row["learning_rate"]) for row in rows(tmp_path)]
    assert rates[:4] == [0.0025, 0.005, 0.0075, 0.01]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == 0.0001


@pytest.mark.parametrize(
    ("epochs", "min_steps", "steps"), [(1, 1, 11), (0.5, 1, 6), (2.25, 1, 25), (0, 3, 3), (1, 15, 15), (0.01, 1, 1)]
)
def test_epochs_may_be_a_fraction_and_min_steps_is_their_floor(
    epochs: float, min_steps: int, steps: int, made: Path, tmp_path: Path, params: Any
) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": epochs, "train.min_steps": min_steps}), made / "splits")
    assert report(tmp_path)["step"] == steps
    assert rows(tmp_path)[-1]["step"] == str(steps)


@pytest.mark.parametrize(("normalize", "own"), [("dataset", True), ("none", False)])
def test_normalisation_is_in_the_weights(normalize: str, own: bool, made: Path, tmp_path: Path, params: Any) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 0, "train.normalize": normalize}), made / "splits")
    about, found = read_splits_info(made / "splits"), tensors(tmp_path)
    mean, std = (about.mean[0], about.std[0]) if own else (0.0, 1.0)
    assert float(found["mean"]) == pytest.approx(mean)
    assert float(found["std"]) == pytest.approx(std)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_monitored_split_is_in_history_and_report_as_the_weights_measure(
    split: str, made: Path, tmp_path: Path, params: Any
) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 1, "train.monitor": split}), made / "splits")
    last, wanted = rows(tmp_path)[-1], measured(tmp_path, made / "splits", split)
    assert report(tmp_path)[split] == wanted
    assert {"loss": float(last["monitor_loss"]), "accuracy": float(last["monitor_accuracy"])} == wanted


def test_monitor_none_measures_nothing(made: Path, tmp_path: Path, params: Any) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 1}), made / "splits")
    assert {row["monitor_loss"] + row["monitor_accuracy"] for row in rows(tmp_path)} == {""}
    assert list(report(tmp_path)) == ["step", "epoch", "loss", "accuracy", "parameters"]


@pytest.fixture
def spoilt(made: Path, tmp_path: Path) -> Path:
    """Splits whose later training images all say class 0: a training in order gets better, then worse."""
    splits = tmp_path / "spoilt"
    splits.mkdir()
    for file in (made / "splits").iterdir():
        (splits / file.name).write_bytes(file.read_bytes())
    labels = np.load(splits / "train-labels.npy")
    labels[300:] = 0
    np.save(splits / "train-labels.npy", labels)
    return splits


BEST = {**PLAIN, "train.epochs": 1, "train.points": 11, "train.shuffle": False, "train.learning_rate": 0.01,
        "train.monitor": "validation", "train.keep": "best"}  # fmt: skip


def test_keep_best_stores_the_weights_that_measured_best(spoilt: Path, tmp_path: Path, params: Any) -> None:
    trained(tmp_path, params(BEST), spoilt)
    accuracies = [float(row["monitor_accuracy"]) for row in rows(tmp_path)]
    best = accuracies.index(max(accuracies))
    assert accuracies[-1] < max(accuracies)
    assert report(tmp_path)["step"] == best + 1
    assert report(tmp_path)["validation"] == measured(tmp_path, spoilt, "validation")
    assert report(tmp_path)["validation"]["accuracy"] == max(accuracies)


@pytest.mark.parametrize("monitor", ["test", "none"])
def test_keep_best_may_choose_by_the_validation_split_only(
    monitor: str, made: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=f"keep: best chooses by the validation split, but monitor is {monitor}"):
        trained(tmp_path, params({"train.keep": "best", "train.monitor": monitor}), made / "splits")


def test_the_same_bytes_come_again_in_any_folder(made: Path, tmp_path: Path, params: Any) -> None:
    choices = params({"train.epochs": 1, "train.rotate": 10, "train.keep": "best"})
    first = contents(trained(tmp_path / "here", choices, made / "splits"))
    assert contents(trained(tmp_path / "here", choices, made / "splits")) == first
    assert contents(trained(tmp_path / "elsewhere" / "deep", choices, made / "splits")) == first


def test_another_seed_gives_other_weights_and_another_history(made: Path, tmp_path: Path, params: Any) -> None:
    first, second = (
        contents(
            trained(tmp_path / str(seed), params({**PLAIN, "train.epochs": 1, "train.seed": seed}), made / "splits")
        )
        for seed in (0, 1)
    )
    assert first["weights.safetensors"] != second["weights.safetensors"]
    assert first["history.csv"] != second["history.csv"]
    assert first["environment.json"] == second["environment.json"]


@pytest.mark.parametrize("split", ["validation", "train"])
def test_one_temperature_makes_the_probabilities_true_and_changes_no_label(
    split: str, made: Path, tmp_path: Path, params: Any
) -> None:
    smoothed = {"train.label_smoothing": 0.3, "train.epochs": 6}
    trained(tmp_path, params({**PLAIN, **smoothed, "train.calibrate": split}), made / "splits")
    network, _ = read_weights(tmp_path / "weights.safetensors")
    images, labels = (torch.from_numpy(read(made / "splits", "test")) for read in (read_images, read_labels))
    with torch.no_grad():
        calibrated = network(images)
        fitted = float(network.temperature.clone())
        network.temperature.fill_(1)
        plain = network(images)
    assert 0.01 < fitted < 0.9, "smoothed labels make a network say less than it knows"
    assert torch.equal(calibrated.argmax(1), plain.argmax(1))
    assert functional.cross_entropy(calibrated, labels) < functional.cross_entropy(plain, labels)


def test_a_trace_has_a_checksum_of_each_tensor_before_every_few_and_after_all_steps(
    made: Path, tmp_path: Path, params: Any
) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 0, "train.min_steps": 25}), made / "splits")
    with (tmp_path / "trace.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["step"] for row in found] == ["0", "10", "20", "25", "final"]
    assert list(found[0]) == ["step", *tensors(tmp_path)]
    last = {name: f"{zlib.crc32(tensor.numpy().tobytes()):08x}" for name, tensor in tensors(tmp_path).items()}
    assert found[-2] == {"step": "25", **last}
    assert found[-1] == {"step": "final", **last}, "there is nothing to calibrate"
    moved = [name for name in last if found[0][name] != found[1][name]]
    assert moved == [name for name in last if name not in ("mean", "std", "temperature")]


def test_a_full_disk_is_one_line(made: Path, tmp_path: Path, params: Any) -> None:
    """As far as it can be had without a disk: no file may grow beyond 20 kB."""
    run = command(tmp_path / "out", params({**PLAIN, "train.epochs": 1}), made / "splits", seconds=0)
    limited = ["bash", "-c", 'ulimit -f 20; "$@"', "bash", *run]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train: ")
    assert last.endswith(": cannot be written: File too large")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_three_kills_leave_the_bytes_of_an_unbroken_training_and_no_checkpoint(
    made: Path, tmp_path: Path, params: Any
) -> None:
    choices = params({"train.min_steps": 500, "train.points": 20, "train.batch": 20, "train.shift": 2,
                      "train.keep": "best"})  # fmt: skip
    unbroken = contents(trained(tmp_path / "unbroken", choices, made / "splits"))
    killed = tmp_path / "killed"
    run = command(killed, choices, made / "splits", seconds=0.05)
    starts = [int(killed_after_checkpoints(run, killed, wait)) for wait in (1, 2, 2)]
    assert 0 == starts[0] < starts[1] < starts[2]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(re.search(r"going on from step (\d+) of 500", done.stdout).group(1)) > starts[2]  # type: ignore[union-attr]
    assert contents(killed) == unbroken
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["lock"]


def killed_after_checkpoints(run: list[str], folder: Path, number: int) -> str:
    """Start the command and kill it once it has saved `number` checkpoints; gives the step that it went on from."""
    log = folder.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(run, cwd=ROOT, stdout=output, stderr=output)
    saved = {state.stat().st_mtime_ns for state in (folder / "checkpoints").glob("*.pt")}
    wanted = len(saved) + number
    while len(saved) < wanted:
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
    found = re.search(r"going on from step (\d+) of", log.read_text())
    return found.group(1) if found else "0"


@pytest.fixture
def broken_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path, Path], None]:
    """Start a training that saves a checkpoint after every step, and break it off at its second point."""

    def start(folder: Path, params: Path, splits: Path) -> None:
        left = iter([True])
        measure = module.measure

        def once(*given: Any) -> tuple[float, float]:
            if not next(left, False):
                raise KeyboardInterrupt
            return measure(*given)

        with monkeypatch.context() as patch:
            patch.setattr(module, "measure", once)
            with pytest.raises(KeyboardInterrupt):
                trained(folder, params, splits, seconds=0)
        assert list((folder / "checkpoints").glob("*.pt"))

    return start


def test_a_training_goes_on_from_its_checkpoint_with_its_best_weights(
    spoilt: Path, tmp_path: Path, params: Any, broken_off: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = params({**BEST, "train.points": 2})
    unbroken = contents(trained(tmp_path / "unbroken", choices, spoilt))
    broken_off(tmp_path / "broken", choices, spoilt)
    trained(tmp_path / "broken", choices, spoilt)
    assert "going on from step 10 of 11" in capsys.readouterr().out
    assert contents(tmp_path / "broken") == unbroken
    assert report(tmp_path / "broken")["step"] == 6
    assert not list((tmp_path / "broken" / "checkpoints").glob("*.pt"))


def test_the_checkpoint_of_other_params_is_not_used(
    made: Path, tmp_path: Path, params: Any, broken_off: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_off(tmp_path, params({"train.epochs": 1}), made / "splits")
    trained(tmp_path, params({"train.epochs": 1, "train.weight_decay": 0.5}), made / "splits")
    assert "going on" not in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_the_checkpoint_of_other_data_is_not_used(
    made: Path, spoilt: Path, tmp_path: Path, params: Any, broken_off: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = params({"train.epochs": 1})
    broken_off(tmp_path, choices, made / "splits")
    trained(tmp_path, choices, spoilt)
    assert "going on" not in capsys.readouterr().out


def test_a_second_training_waits_until_the_first_is_done(
    made: Path, tmp_path: Path, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices, fit = params({**PLAIN, "train.epochs": 1}), module.fit
    working: list[int] = []
    most: list[int] = []

    def counted(*given: Any) -> None:
        working.append(1)
        most.append(len(working))
        time.sleep(0.05)
        fit(*given)
        working.pop()

    lines: list[str] = []
    monkeypatch.setattr(module, "fit", counted)
    monkeypatch.setattr(checkpoint, "echo", lines.append)
    both = [threading.Thread(target=trained, args=(tmp_path, choices, made / "splits")) for _ in range(2)]
    with lock_folder(tmp_path / "checkpoints"):
        for each in both:
            each.start()
        until(lambda: len(lines) == 2, 60)
        assert all("waiting for it to end" in line for line in lines)
        assert not most
    for each in both:
        each.join()
    assert most == [1, 1]


@pytest.mark.parametrize("points", [1, 11])
def test_a_loss_that_is_not_finite_stops_it_naming_step_and_rate_and_keeps_the_former_weights(
    points: int, made: Path, tmp_path: Path, params: Any
) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"former")
    wild = {"train.optimizer": "sgd", "train.learning_rate": 1e30, "train.epochs": 1, "train.points": points}
    with pytest.raises(
        StageError, match=r"not finite at step 2 of 11, learning rate 1e\+30: lower train.learning_rate"
    ):
        trained(tmp_path, params({**PLAIN, **wild}), made / "splits")
    assert (tmp_path / "weights.safetensors").read_bytes() == b"former"
    assert not (tmp_path / "report.json").exists()


def test_weights_that_the_last_step_made_infinite_are_not_written(made: Path, tmp_path: Path, params: Any) -> None:
    wild = {"train.optimizer": "sgd", "train.learning_rate": 1e300, "train.epochs": 0, "train.min_steps": 1}
    with pytest.raises(StageError, match="finite"):
        trained(tmp_path, params({**PLAIN, **wild}), made / "splits")
    assert not (tmp_path / "weights.safetensors").exists()


def test_an_empty_training_split_is_refused(tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=r"training split is empty: lower preprocess\.validation"):
        trained(tmp_path, params(), write_splits(tmp_path / "splits", train=0))


def test_an_empty_validation_split_can_neither_be_monitored_nor_calibrated_by(tmp_path: Path, params: Any) -> None:
    splits = write_splits(tmp_path / "splits", validation=0)
    with pytest.raises(
        StageError, match=r"train\.calibrate: the validation split is empty: .* or set it to train or none"
    ):
        trained(tmp_path, params({"train.monitor": "none"}), splits)
    with pytest.raises(StageError, match=r"train\.monitor: the validation split is empty: .* or set it to none"):
        trained(tmp_path, params(), splits)
    trained(tmp_path, params({**PLAIN, "train.epochs": 1}), splits)
    assert report(tmp_path)["step"] == 1


@pytest.mark.parametrize("model", ["compact", "reference_c", "reference_e"])
def test_images_too_small_for_the_network_are_refused(model: str, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=rf"'{model}' is too deep for images of 6 x 6: raise preprocess\.size"):
        trained(tmp_path, params({"train.model": model}), write_splits(tmp_path / "splits", size=6))


def test_a_batch_of_one_image_trains_or_is_refused_in_one_line(tmp_path: Path, params: Any) -> None:
    """Where batch normalisation sees one pixel of one image, it has nothing to normalise by."""
    splits = write_splits(tmp_path / "splits", train=4, size=20)
    with pytest.raises(StageError, match=r"train\.batch"):
        trained(tmp_path, params({**PLAIN, "train.model": "compact", "train.batch": 1}), splits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_in_one_line(made: Path, tmp_path: Path, params: Any) -> None:
    run = command(tmp_path, params({"machine.device": "cuda"}), made / "splits")
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "train: machine.device: cuda is not available here; set it to auto or cpu\n"
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bytes_come_again_on_a_gpu(precision: str, made: Path, tmp_path: Path, params: Any) -> None:
    choices = params({"machine.device": "cuda", "train.rotate": 10, "train.precision": precision})
    first = contents(trained(tmp_path / "first", choices, made / "splits"))
    assert contents(trained(tmp_path / "second", choices, made / "splits")) == first
    assert json.loads(first["environment.json"])["device"] == torch.cuda.get_device_name()
    assert report(tmp_path / "first")["validation"]["accuracy"] > 0.9


@pytest.mark.parametrize("threads", [1, 2])
def test_the_environment_says_what_decides_the_bytes(threads: int, made: Path, tmp_path: Path, params: Any) -> None:
    trained(tmp_path, params({**PLAIN, "train.epochs": 0, "machine.threads": threads}), made / "splits")
    found = json.loads((tmp_path / "environment.json").read_text())
    libraries = found.pop("libraries")
    assert found == {
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
        ("train.model", "resnet"),
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
        ("train.points", 0),
        ("train.monitor", "train"),
        ("train.speed", 3),
        ("machine.device", "tpu"),
        ("machine.arithmetic", "exact"),
        ("machine.threads", 0),
    ],
)
def test_a_param_that_is_not_right_is_named_before_any_work(
    key: str, value: Any, made: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=re.escape(key)) as problem:
        trained(tmp_path / "out", params({key: value}), made / "splits")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "out").exists()


def test_nesterov_without_momentum_is_refused(made: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match="nesterov: true needs a momentum above 0"):
        trained(tmp_path, params({"train.momentum": 0.0, "train.nesterov": True}), made / "splits")


def test_missing_splits_are_named_with_the_command_that_makes_them(tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=r"about\.json: missing; run `dvc repro preprocess`"):
        trained(tmp_path, params(), tmp_path / "nowhere")
