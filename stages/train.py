"""Splits in; trained weights, the history of the training, a report and the record of the machine out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from stages.core.command import echo, run_stage
from stages.core.device import environment_record, prepare_device
from stages.core.errors import StageError
from stages.core.files import write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import Split, SplitsInfo, read_images, read_labels, read_splits_info
from stages.network.models import Classifier, ModelName, build_model, whiten_stem
from stages.network.weights import WeightsHeader, parameter_count, write_weights
from stages.training.augmentation import random_affine, random_shift
from stages.training.batches import Batches
from stages.training.calibration import fit_temperature
from stages.training.checkpoint import Checkpoint, fingerprint, lock_folder
from stages.training.distributed import ProcessGroup, distributed_context, launch_workers
from stages.training.history import COLUMNS, History
from stages.training.optimizers import Optimizer, OptimizerName, ScheduleName, lr_factor, make_optimizer
from stages.training.trace import Trace

Beta = Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    model: ModelName
    width: int = Field(ge=1, le=4096)
    stem: Literal["learned", "whitened"]
    seed: int = Field(ge=0, lt=2**63)
    epochs: float = Field(ge=0, le=10_000)
    min_steps: int = Field(ge=1)
    batch: int = Field(ge=1, le=1_000_000)
    shuffle: bool
    normalize: Literal["dataset", "none"]
    optimizer: OptimizerName
    learning_rate: float = Field(gt=0)
    muon_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    betas: tuple[Beta, Beta] = Field(strict=False)
    weight_decay: float = Field(ge=0)
    schedule: ScheduleName
    warmup: float = Field(ge=0, le=1)
    label_smoothing: float = Field(ge=0, lt=1)
    shift: int = Field(ge=0)
    rotate: float = Field(ge=0, le=180)
    zoom: float = Field(ge=0, lt=1)
    precision: Literal["float32", "bfloat16"]
    monitor: Literal["validation", "test", "none"]
    keep: Literal["last", "best"]
    calibrate: Literal["validation", "train", "none"]
    points: int = Field(ge=1, le=10_000)
    processes: int = Field(ge=1, le=4096)

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
    trace: Path,
    report: Path,
    environment: Path,
    checkpoints: Path,
    checkpoint_seconds: float = 5.0,
) -> None:
    """Fit `train.model` to SPLITS; a killed training goes on from its checkpoint, and ends with the same bytes."""
    arguments = dict(locals())
    section, machine = read_section(params, "train", Train), read_section(params, "machine", Machine)
    about = read_splits_info(splits)
    check_splits(section, about)
    if launch_workers("stages.train", arguments, section.processes):
        return
    device = prepare_device(machine)
    with (
        distributed_context(device, section.processes) as ranks,
        ranks.output_paths(weights, history, trace, report, environment, checkpoints) as places,
        lock_folder(places[-1]),
    ):
        weights, history, trace, report, environment, checkpoints = places
        made_on = environment_record(machine, device)
        images, labels = load(splits, "train", device)
        network = make_network(section, about, images[:3000]).to(memory_format=torch.channels_last).to(device)
        batches = Batches(images, labels, section.batch, section.shuffle, section.seed, ranks)
        steps = max(section.min_steps, round(section.epochs * batches.per_epoch))
        rows = History(history, steps, section.points, batches.per_epoch, ranks)
        work = {"params": section.model_dump(), "made_on": made_on}
        checkpoint = Checkpoint(checkpoints, fingerprint(work, list(splits.iterdir())), checkpoint_seconds)
        monitored = None if section.monitor == "none" else load(splits, section.monitor, device)
        traced = Trace(network, steps)
        started = time.perf_counter()
        fit(section, network, batches, monitored, rows, traced, checkpoint, ranks)
        seconds = time.perf_counter() - started
        if section.calibrate != "none":
            calibrate(network, *load(splits, section.calibrate, device))
        write_weights(weights, network, WeightsHeader.of(section.model, section.width, about, section.model_dump()))
        traced.write(trace)
        write_json(report, summary(section, network, rows))
        write_json(environment, made_on)
        checkpoint.remove()
    size, temperature = f"{parameter_count(network)} parameters", f"temperature {float(network.temperature):.3f}"
    took = f"{steps} steps in {seconds:.2f} s on {device.type}"
    echo(f"{section.model}: {size}, {took}, {temperature}; weights in {weights}")


def fit(
    section: Train,
    network: Classifier,
    batches: Batches,
    monitored: tuple[Tensor, Tensor] | None,
    history: History,
    trace: Trace,
    checkpoint: Checkpoint,
    ranks: ProcessGroup,
) -> None:
    """Run the steps that a checkpoint does not have; leaves the network with its last, or its best, weights."""
    optimizer = build_optimizer(section, network)
    done, best = resume(ranks.broadcast(checkpoint.load()), network, optimizer, history, trace)
    history.write()
    forward = ranks.wrap_ddp(network)
    for step in tqdm(range(done, history.steps), initial=done, total=history.steps, unit="step", disable=None):
        images, labels = batches.get(step)
        images = augment(section, images, batches.augmentation_rng(step))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=section.precision == "bfloat16"):
            logits = forward_pass(section, forward, images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=section.label_smoothing)
        network.zero_grad()
        loss.backward()
        now = lr_factor(section.schedule, section.warmup, step, history.steps)
        optimizer.step(now)
        history.record_step(step, now * section.learning_rate, loss, logits, labels)
        trace.record(step + 1)
        if history.row_due(step):
            ranks.sync_buffers(network)
            measured = measure(network, *monitored, section.label_smoothing) if monitored else None
            history.add_row(step, now * section.learning_rate, measured)
            if section.keep == "best" and measured and (best is None or measured[1] > best["accuracy"]):
                best = {"accuracy": measured[1], "weights": copy_weights(network)}
        if ranks.rank0_decides(checkpoint.due, step):
            state = {"network": network.state_dict(), "optimizer": optimizer.state(), "best": best}
            checkpoint.save({"steps": step + 1, "history": history.state(), "trace": trace.rows, **state})
    if best:
        network.load_state_dict(best["weights"])
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise StageError(f"the weights are not finite after step {history.steps}: lower train.learning_rate")


def check_splits(section: Train, about: SplitsInfo) -> None:
    if not about.counts["train"]:
        raise StageError("the training split is empty: lower preprocess.validation")
    for name in ("monitor", "calibrate"):
        if getattr(section, name) == "validation" and not about.counts["validation"]:
            other = "none" if name == "monitor" else "train or none"
            raise StageError(
                f"train.{name}: the validation split is empty: raise preprocess.validation, or set it to {other}"
            )


def make_network(section: Train, about: SplitsInfo, images: Tensor) -> Classifier:
    torch.manual_seed(section.seed)
    plain = [0.0] * about.channels, [1.0] * about.channels
    mean, std = (about.mean, about.std) if section.normalize == "dataset" else plain
    network = build_model(section.model, section.width, about.size, about.channels, len(about.classes), mean, std)
    if section.stem == "whitened":
        whiten_stem(network, images.cpu())
    return network


def load(splits: Path, split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """On a CPU the images stay on disk until they are touched; a GPU has them all before the first step."""
    return torch.from_numpy(read_images(splits, split)).to(device), torch.from_numpy(read_labels(splits, split)).to(
        device
    )


def build_optimizer(section: Train, network: Classifier) -> Optimizer:
    return make_optimizer(
        section.optimizer,
        network,
        rate=section.learning_rate,
        muon_rate=section.muon_rate,
        momentum=section.momentum,
        nesterov=section.nesterov,
        betas=section.betas,
        weight_decay=section.weight_decay,
    )


def resume(
    state: dict[str, Any] | None, network: Classifier, optimizer: Optimizer, history: History, trace: Trace
) -> tuple[int, dict[str, Any] | None]:
    """Bring everything to the state that was saved last; gives the steps done and the best weights so far."""
    if state is None:
        trace.record(0)
        return 0, None
    network.load_state_dict(state["network"])
    for tensor, saved in zip(optimizer.state(), state["optimizer"], strict=True):
        tensor.copy_(saved)
    history.restore(state["history"])
    trace.rows = state["trace"]
    echo(f"going on from step {state['steps']} of {history.steps}")
    return state["steps"], state["best"]


def augment(section: Train, images: Tensor, chance: torch.Generator) -> Tensor:
    if section.rotate or section.zoom:
        images = random_affine(images, section.rotate, section.zoom, chance)
    if section.shift:
        images = random_shift(images, section.shift, chance)
    return images


def forward_pass(section: Train, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    try:
        return network(images)
    except ValueError as error:  # batch norm asks for more than one number a channel
        raise StageError(f"train.batch: {len(images)} is too few for {section.model} at this size: {error}") from None


@torch.no_grad()
def measure(network: Classifier, images: Tensor, labels: Tensor, smoothing: float) -> tuple[float, float]:
    """Loss, smoothed as in training, and accuracy over a whole split."""
    network.eval()
    loss = hits = 0.0
    for some, theirs in zip(images.split(1000), labels.split(1000), strict=True):
        logits = network(some)
        loss += float(functional.cross_entropy(logits, theirs, reduction="sum", label_smoothing=smoothing))
        hits += int((logits.argmax(1) == theirs).sum())
    network.train()
    return loss / len(labels), hits / len(labels)


@torch.no_grad()
def calibrate(network: Classifier, images: Tensor, labels: Tensor) -> None:
    """Set the network's temperature by a split; which class is the likeliest does not change."""
    network.eval()
    logits = torch.cat([network(some) for some in images.split(1000)])
    network.temperature.fill_(fit_temperature(logits, labels))
    network.train()


def copy_weights(network: Classifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def summary(section: Train, network: Classifier, history: History) -> dict[str, Any]:
    """The numbers of the weights that were kept."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in history.rows]
    kept = max(rows, key=lambda row: row["monitor_accuracy"]) if section.keep == "best" else rows[-1]
    numbers: dict[str, Any] = {name: kept[name] for name in ("step", "epoch", "loss", "accuracy")}
    if section.monitor != "none":
        numbers[section.monitor] = {name: kept[f"monitor_{name}"] for name in ("loss", "accuracy")}
    return {**numbers, "parameters": parameter_count(network)}


if __name__ == "__main__":
    run_stage(train)
