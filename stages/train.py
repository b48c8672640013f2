"""Trains the network on the training split. Writes its weights, and the history, trace and report of the training."""

import time
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from stages.core.command import echo, run_stage
from stages.core.device import environment_record, prepare_device
from stages.core.errors import StageError
from stages.core.files import write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import Split, SplitsInfo, read_images, read_labels, read_splits_info
from stages.network.models import Classifier, ModelName, build_model, find_stem, whiten_stem
from stages.network.pretrained import load_pretrained
from stages.network.weights import WeightsHeader, parameter_count, write_weights
from stages.training.augmentation import (
    random_affine,
    random_color,
    random_crop,
    random_erasing,
    random_flip,
    random_shift,
)
from stages.training.batches import Batches
from stages.training.calibration import fit_temperature
from stages.training.checkpoint import Checkpoint, TrainingState, fingerprint, lock_folder
from stages.training.distributed import ProcessGroup, distributed_context, is_worker, launch_workers
from stages.training.history import COLUMNS, History
from stages.training.optimizers import FlatAdamW, Muon, Optimizer, OptimizerName, ScheduleName, lr_factor, set_lr
from stages.training.progress import report_progress
from stages.training.trace import Trace

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and std, of torchvision's pretrained weights
Beta = Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    # Params at these values do nothing, and the weights file does not name them: it stays the same to the byte.
    inactive: ClassVar[dict[str, Any]] = {
        "depth": 2,
        "start_from": "",
        "class_weights": "none",
        "crop": 1.0,
        "flip": False,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "erase": 0.0,
    }

    model: ModelName
    width: int = Field(ge=1, le=4096)
    depth: int = Field(ge=1, le=64)
    start_from: str | None
    stem: Literal["learned", "whitened"]
    seed: int = Field(ge=0, lt=2**63)
    epochs: float = Field(ge=0, le=10_000)
    min_steps: int = Field(ge=1)
    batch: int = Field(ge=1, le=1_000_000)
    shuffle: bool
    normalize: Literal["dataset", "imagenet", "none"]
    class_weights: Literal["none", "balanced"]
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
    crop: float = Field(gt=0, le=1)
    flip: bool
    brightness: float = Field(ge=0, le=1)
    contrast: float = Field(ge=0, le=1)
    saturation: float = Field(ge=0, le=1)
    erase: float = Field(ge=0, le=1)
    precision: Literal["float32", "bfloat16"]
    monitor: Literal["validation", "test", "none"]
    keep: Literal["last", "best"]
    calibrate: Literal["validation", "train", "none"]
    points: int = Field(ge=1, le=10_000)
    processes: int = Field(ge=1, le=4096)

    @model_validator(mode="after")
    def check_consistency(self) -> "Train":
        if self.keep == "best" and self.monitor != "validation":
            raise ValueError(f"keep: best selects by the validation split, but monitor is {self.monitor}")
        if self.optimizer in ("sgd", "muon") and self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        if self.start_from and Path(self.start_from).name != self.start_from:
            raise ValueError("train.start_from is the name of a file of pretrained weights, without its folder")
        if self.start_from and self.stem == "whitened":
            raise ValueError("train.start_from brings its own first convolution: set train.stem to learned")
        return self

    def active_params(self) -> dict[str, Any]:
        return {key: value for key, value in self.model_dump().items() if self.inactive.get(key, ...) != value}


def train(
    *,
    params: Path,
    splits: Path,
    pretrained: Path,
    weights: Path,
    history: Path,
    trace: Path,
    report: Path,
    environment: Path,
    checkpoints: Path,
    checkpoint_seconds: float = 5.0,
) -> None:
    """Train `train.model` on the splits; after a kill, training resumes from its checkpoint to the same bytes.

    Args:
        params: The params file; its sections `train` and `machine` are read.
        splits: Folder of splits, written by the stage preprocess.
        pretrained: Folder of a person's pretrained weights, in which `train.start_from` names a file.
        weights: Output file of the trained weights, safetensors.
        history: Output table of losses and accuracies, CSV; it grows during the training.
        trace: Output table of checksums of every tensor, CSV.
        report: Output file of the metrics of the weights, JSON.
        environment: Output file of what decides the bytes: arithmetic, device, threads, libraries; JSON.
        checkpoints: Folder of the checkpoint of an unfinished training.
        checkpoint_seconds: Time between two checkpoints.
    """
    arguments = dict(locals())
    section, machine = read_section(params, "train", Train), read_section(params, "machine", Machine)
    info = read_splits_info(splits)
    check_splits(section, info)
    if section.processes > 1 and not is_worker():
        launch_workers("stages.train", arguments, section.processes)
        return
    device = prepare_device(machine)
    with (
        distributed_context(device, section.processes) as process_group,
        process_group.output_paths(weights, history, trace, report, environment, checkpoints) as paths,
        lock_folder(paths[-1]),
    ):
        weights, history, trace, report, environment, checkpoints = paths
        machine_record = environment_record(machine, device)
        images, labels = load_split(splits, "train", device)
        network = make_network(section, info, images[:3000])
        stem = find_stem(network, images)
        start = [load_pretrained(network, pretrained / section.start_from, info.classes)] if section.start_from else []
        network = network.to(memory_format=torch.channels_last).to(device)
        batches = Batches(images, labels, section.batch, section.shuffle, section.seed, process_group)
        steps = count_steps(section, batches)
        rows = History(history, steps, section.points, batches.per_epoch, process_group)
        state = TrainingState(network, make_optimizers(section, network, stem), rows, Trace(network, steps))
        description = {"params": section.model_dump(), "environment": machine_record}
        checkpoint = Checkpoint(checkpoints, fingerprint(description, [*splits.iterdir(), *start]), checkpoint_seconds)
        monitored = None if section.monitor == "none" else load_split(splits, section.monitor, device)
        started = time.perf_counter()
        fit(section, state, batches, monitored, checkpoint, process_group)
        seconds = time.perf_counter() - started
        if section.calibrate != "none":
            images, labels = load_split(splits, section.calibrate, device)
            network.temperature.fill_(fit_temperature(predict(network, images), labels))
        header = WeightsHeader.of(section.model, section.width, info, section.active_params(), section.depth)
        write_weights(weights, network, header)
        state.trace.write(trace)
        write_json(report, make_report(section, network, rows))
        write_json(environment, machine_record)
        checkpoint.remove()
    size, temperature = f"{parameter_count(network)} parameters", f"temperature {float(network.temperature):.3f}"
    duration = f"{steps} steps in {seconds:.2f} s on {device.type}"
    echo(f"{section.model}: {size}, {duration}, {temperature}; weights in {weights}")


def check_splits(section: Train, info: SplitsInfo) -> None:
    if not info.counts["train"]:
        raise StageError("the training split is empty: lower preprocess.validation_fraction")
    for param, alternative in (("monitor", "none"), ("calibrate", "train or none")):
        if getattr(section, param) == "validation" and not info.counts["validation"]:
            remedy = f"raise preprocess.validation_fraction, or set it to {alternative}"
            raise StageError(f"train.{param}: the validation split is empty: {remedy}")
    if section.normalize == "imagenet" and info.channels != 3:
        raise StageError("train.normalize: imagenet needs colour images: set preprocess.channels to 3")


def count_steps(section: Train, batches: Batches) -> int:
    """The steps of `train.epochs`, or `train.min_steps`; says how many epochs they are if that is what decides."""
    steps = max(1, round(section.epochs * batches.per_epoch))
    if steps >= section.min_steps:
        return steps
    if section.epochs:
        epochs = f"{section.min_steps / batches.per_epoch:.4g} epochs of {len(batches.images)} images"
        echo(f"train.min_steps: {section.min_steps} steps are {epochs}; train.epochs: {section.epochs:g} are {steps}")
    return section.min_steps


def load_split(splits: Path, split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels: on a CPU as memory maps, read when they are used; a GPU gets all of them at once."""
    images, labels = torch.from_numpy(read_images(splits, split)), torch.from_numpy(read_labels(splits, split))
    return images.to(device), labels.to(device)


def make_network(section: Train, info: SplitsInfo, images: Tensor) -> Classifier:
    torch.manual_seed(section.seed)
    identity = [0.0] * info.channels, [1.0] * info.channels
    mean, std = {"dataset": (info.mean, info.std), "imagenet": IMAGENET, "none": identity}[section.normalize]
    shape = info.size, info.channels, len(info.classes)
    network = build_model(section.model, section.width, *shape, mean, std, section.depth)
    if section.stem == "whitened":
        whiten_stem(network, images.cpu())
    return network


def make_optimizers(section: Train, network: nn.Module, stem: nn.Module | None) -> list[Optimizer]:
    """One optimizer, or with `muon` two: Muon for the convolutions but the stem, AdamW for all other parameters."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    lr, betas, decay = section.learning_rate, section.betas, section.weight_decay
    # Fused kernels use the CPU's square root instruction, which rounds alike on every CPU. The for-loop implementation
    # calls Tensor.sqrt(), which is MKL's: its last bit depends on the CPU's maker.
    match section.optimizer:
        case "adam":  # Kingma and Ba, 2014, arXiv:1412.6980
            return [torch.optim.Adam(parameters, lr, betas, weight_decay=decay, fused=True)]
        case "adamw":  # Loshchilov and Hutter, 2017, arXiv:1711.05101
            return [torch.optim.AdamW(parameters, lr, betas, weight_decay=decay, fused=True)]
        case "sgd":  # nesterov: as in Sutskever et al., 2013, "On the importance of initialization and momentum"
            momentum, nesterov = section.momentum, section.nesterov
            return [torch.optim.SGD(parameters, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=True)]
        case "muon":
            first = [] if stem is None else [id(parameter) for parameter in stem.parameters()]
            convolutions = [weight for weight in parameters if weight.ndim == 4 and id(weight) not in first]
            others = [parameter for parameter in parameters if all(parameter is not weight for weight in convolutions)]
            muon = Muon(convolutions, section.muon_rate, section.momentum, section.nesterov)
            return [muon, FlatAdamW(others, lr, betas, decay)]


def fit(
    section: Train,
    state: TrainingState,
    batches: Batches,
    monitored: tuple[Tensor, Tensor] | None,
    checkpoint: Checkpoint,
    process_group: ProcessGroup,
) -> None:
    """Run the steps that the checkpoint does not hold; leaves the network with its last weights, or its best ones."""
    network, history = state.network, state.history
    if saved := process_group.broadcast(checkpoint.load()):
        state.load_state_dict(saved)
        echo(f"resuming from step {state.steps_done} of {history.steps}")
    else:
        state.trace.record(0)
    history.write()
    ddp_network = process_group.wrap_ddp(network)
    class_weights = make_class_weights(section, network, batches.labels)
    for step in report_progress(range(state.steps_done, history.steps)):
        images, labels = batches.batch(step)
        images = augment(section, images, batches.augmentation_rng(step))
        factor = lr_factor(section.schedule, section.warmup, step, history.steps)
        set_lr(state.optimizers, factor)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=section.precision == "bfloat16"):
            loss, logits = forward(section, ddp_network, images, labels, class_weights)
        network.zero_grad()
        loss.backward()
        for optimizer in state.optimizers:
            optimizer.step()
        lr = factor * section.learning_rate
        history.record_step(step, lr, loss, logits, labels)
        state.trace.record(step + 1)
        state.steps_done = step + 1
        if history.row_due(step):
            process_group.sync_buffers(network)
            measured = measure(network, *monitored, section.label_smoothing) if monitored else None
            history.add_row(step, lr, measured)
            if section.keep == "best" and measured and measured[1] > state.best_accuracy:
                state.best_accuracy, state.best_weights = measured[1], deepcopy(network.state_dict())
        if process_group.rank0_decides(checkpoint.is_due, step):
            checkpoint.save(state.state_dict())
    if state.best_weights:
        network.load_state_dict(state.best_weights)
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise StageError(f"the weights are not finite after step {history.steps}: lower train.learning_rate")


def augment(section: Train, images: Tensor, generator: torch.Generator) -> Tensor:
    if section.rotate or section.zoom:
        images = random_affine(images, section.rotate, section.zoom, generator)
    if section.shift:
        images = random_shift(images, section.shift, generator)
    if section.crop < 1:
        images = random_crop(images, section.crop, generator)
    if section.flip:
        images = random_flip(images, generator)
    if section.brightness or section.contrast or section.saturation:
        images = random_color(images, section.brightness, section.contrast, section.saturation, generator)
    if section.erase:
        images = random_erasing(images, section.erase, generator)
    return images


def make_class_weights(section: Train, network: Classifier, labels: Tensor) -> Tensor | None:
    """With `balanced`, the weight of a class in the loss is inverse to its number of images; 1 in the mean of them."""
    if section.class_weights == "none":
        return None
    counts = torch.bincount(labels.cpu(), minlength=network.head.out_features)
    return (len(labels) / (len(counts) * counts.clamp(min=1))).to(network.mean.device)


def forward(
    section: Train, network: nn.Module, images: Tensor, labels: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss and the logits of one batch."""
    try:
        logits = network(images)
    except ValueError as error:  # batch norm needs more than one value per channel
        reason = f"{len(images)} is too few for {section.model} at this size: {error}"
        raise StageError(f"train.batch: {reason}") from None
    # Label smoothing: Szegedy et al., 2015, arXiv:1512.00567.
    smoothing = section.label_smoothing
    return functional.cross_entropy(logits, labels, class_weights, label_smoothing=smoothing), logits


def measure(network: Classifier, images: Tensor, labels: Tensor, label_smoothing: float) -> tuple[float, float]:
    """Loss, smoothed as in training, and accuracy on a whole split."""
    logits = predict(network, images)
    loss = 0.0
    for logit_batch, label_batch in zip(logits.split(1000), labels.split(1000), strict=True):
        loss += float(
            functional.cross_entropy(logit_batch, label_batch, reduction="sum", label_smoothing=label_smoothing)
        )
    return loss / len(labels), int((logits.argmax(1) == labels).sum()) / len(labels)


@torch.no_grad()
def predict(network: Classifier, images: Tensor) -> Tensor:
    """The logits of all images, in evaluation mode."""
    network.eval()
    logits = torch.cat([network(image_batch) for image_batch in images.split(1000)])
    network.train()
    return logits


def make_report(section: Train, network: Classifier, history: History) -> dict[str, Any]:
    """The last row of the history, or the best one with `keep: best`, and the number of parameters.

    The loss is from before the calibration of the probabilities.
    """
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in history.rows]
    row = max(rows, key=lambda row: row["monitor_accuracy"]) if section.keep == "best" else rows[-1]
    metrics: dict[str, Any] = {name: row[name] for name in ("step", "epoch", "loss", "accuracy")}
    if section.monitor != "none":
        metrics[section.monitor] = {name: row[f"monitor_{name}"] for name in ("loss", "accuracy")}
    return {**metrics, "parameters": parameter_count(network)}


if __name__ == "__main__":
    run_stage(train)
