"""Splits in; trained weights, the history of the training, a report and the record of the machine out."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from stages.common.augmentation import shifted, warped
from stages.common.batches import Batches
from stages.common.checkpoint import Checkpoint, held, key
from stages.common.command import run, say
from stages.common.device import prepare, record
from stages.common.history import COLUMNS, History
from stages.common.models import Classifier, Name, build
from stages.common.optimizers import Optimizer, Schedule, build_optimizer, learning_rate, set_learning_rate
from stages.common.params import Machine, Section, read_section
from stages.common.problem import Problem
from stages.common.splits import About, Split, read_about, read_images, read_labels
from stages.common.weights import Header, parameters, write_weights
from stages.common.whole import write_json


class Train(Section):
    model: Name
    seed: int = Field(ge=0)
    epochs: float = Field(ge=0, le=10_000)
    min_steps: int = Field(ge=1)
    batch: int = Field(ge=1, le=1_000_000)
    shuffle: bool
    normalize: Literal["dataset", "none"]
    optimizer: Optimizer
    learning_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    weight_decay: float = Field(ge=0)
    schedule: Schedule
    warmup: float = Field(ge=0, le=1)
    label_smoothing: float = Field(ge=0, lt=1)
    shift: int = Field(ge=0)
    rotate: float = Field(ge=0, le=180)
    zoom: float = Field(ge=0, lt=1)
    precision: Literal["float32", "bfloat16"]
    monitor: Literal["validation", "test", "none"]
    keep: Literal["last", "best"]
    points: int = Field(ge=1, le=10_000)

    @model_validator(mode="after")
    def consistent(self) -> "Train":
        if self.keep == "best" and self.monitor != "validation":
            raise ValueError(f"keep: best chooses by the validation split, but monitor is {self.monitor}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


def train(
    *,
    params: Path,
    splits: Path,
    weights: Path,
    history: Path,
    report: Path,
    environment: Path,
    checkpoints: Path,
    checkpoint_seconds: float = 5.0,
) -> None:
    """Fit `train.model` to SPLITS; a killed training goes on from its checkpoint, and ends with the same bytes."""
    section, machine = read_section(params, "train", Train), read_section(params, "machine", Machine)
    about = read_about(splits)
    check(section, about)
    with held(checkpoints):
        device = prepare(machine)
        made_on = record(device, machine.threads)
        network = fresh(section, about).to(device)
        batches = Batches(
            *load(splits, "train"), size=section.batch, shuffle=section.shuffle, seed=section.seed, device=device
        )
        steps = max(section.min_steps, round(section.epochs * batches.per_epoch))
        rows = History(history, steps=steps, points=section.points, per_epoch=batches.per_epoch)
        work = {"params": section.model_dump(), "made_on": made_on}
        checkpoint = Checkpoint(checkpoints, key(work, list(splits.iterdir())), checkpoint_seconds)
        fit(
            section,
            network,
            batches,
            None if section.monitor == "none" else load(splits, section.monitor),
            rows,
            checkpoint,
        )
        write_weights(weights, network, Header.of(section.model, about, section.model_dump()))
        write_json(report, summary(section, network, rows))
        write_json(environment, made_on)
        checkpoint.remove()
    say(f"{section.model}: {parameters(network)} parameters, {steps} steps on {device.type}; weights in {weights}")


def fit(
    section: Train,
    network: Classifier,
    batches: Batches,
    monitored: tuple[Tensor, Tensor] | None,
    history: History,
    checkpoint: Checkpoint,
) -> None:
    """Run the steps that a checkpoint does not have; leaves the network with its last, or its best, weights."""
    optimizer = build_optimizer(
        section.optimizer,
        network.parameters(),
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
    )
    done, best = resume(checkpoint, network, optimizer, history)
    history.write()
    for step in tqdm(range(done, history.steps), initial=done, total=history.steps, unit="step", disable=None):
        rate = learning_rate(section.schedule, section.learning_rate, section.warmup, step, history.steps)
        set_learning_rate(optimizer, rate)
        images, labels = batches.at(step)
        images = augmented(section, images, batches.chance(step))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=section.precision == "bfloat16"):
            logits = answer(section, network, images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=section.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.note(step, rate, loss, logits, labels)
        if history.due(step):
            measured = measure(network, *monitored, section.label_smoothing) if monitored else None
            history.add(step, rate, measured)
            if section.keep == "best" and measured and (best is None or measured[1] > best["accuracy"]):
                best = {"accuracy": measured[1], "weights": copied(network)}
        if checkpoint.due():
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
            checkpoint.save({"steps": step + 1, "history": history.state(), **state})
    if best:
        network.load_state_dict(best["weights"])
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise Problem(f"the weights are not finite after step {history.steps}: lower train.learning_rate")


def check(section: Train, about: About) -> None:
    if not about.counts["train"]:
        raise Problem("the training split is empty: lower preprocess.validation")
    if section.monitor == "validation" and not about.counts["validation"]:
        raise Problem(
            "train.monitor is validation, but that split is empty: raise preprocess.validation, or set it to none"
        )


def fresh(section: Train, about: About) -> Classifier:
    torch.manual_seed(section.seed)
    plain = [0.0] * about.channels, [1.0] * about.channels
    mean, std = (about.mean, about.std) if section.normalize == "dataset" else plain
    return build(section.model, about.size, about.channels, len(about.classes), mean, std)


def load(splits: Path, split: Split) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(read_images(splits, split)), torch.from_numpy(read_labels(splits, split))


def resume(
    checkpoint: Checkpoint, network: Classifier, optimizer: torch.optim.Optimizer, history: History
) -> tuple[int, dict[str, Any] | None]:
    """Bring everything to the state that was saved last; gives the steps done and the best weights so far."""
    state = checkpoint.load()
    if state is None:
        return 0, None
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    history.restore(state["history"])
    say(f"going on from step {state['steps']} of {history.steps}")
    return state["steps"], state["best"]


def augmented(section: Train, images: Tensor, chance: torch.Generator) -> Tensor:
    if section.rotate or section.zoom:
        images = warped(images, section.rotate, section.zoom, chance)
    if section.shift:
        images = shifted(images, section.shift, chance)
    return images


def answer(section: Train, network: Classifier, images: Tensor) -> Tensor:
    try:
        logits: Tensor = network(images)
    except ValueError as error:  # batch norm asks for more than one number a channel
        raise Problem(f"train.batch: {len(images)} is too few for {section.model} at this size: {error}") from None
    return logits


@torch.no_grad()
def measure(network: Classifier, images: Tensor, labels: Tensor, smoothing: float) -> tuple[float, float]:
    """Loss, smoothed as in training, and accuracy over a whole split."""
    network.eval()
    loss = hits = 0.0
    for some, theirs in zip(images.split(1000), labels.split(1000), strict=True):
        logits, wanted = network(some.to(network.mean.device)), theirs.to(network.mean.device)
        loss += float(functional.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing))
        hits += int((logits.argmax(1) == wanted).sum())
    network.train()
    return loss / len(labels), hits / len(labels)


def copied(network: Classifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def summary(section: Train, network: Classifier, history: History) -> dict[str, Any]:
    """The numbers of the weights that were kept."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in history.rows]
    kept = max(rows, key=lambda row: row["monitor_accuracy"]) if section.keep == "best" else rows[-1]
    numbers: dict[str, Any] = {name: kept[name] for name in ("step", "epoch", "loss", "accuracy")}
    if section.monitor != "none":
        numbers[section.monitor] = {name: kept[f"monitor_{name}"] for name in ("loss", "accuracy")}
    return {**numbers, "parameters": parameters(network)}


if __name__ == "__main__":
    run(train)
