"""Weights to start a training from: a safetensors file in, its matching tensors copied into the network."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stages.core.command import echo
from stages.core.errors import StageError
from stages.network.models import Classifier
from stages.network.weights import parse_header

OWN_BUFFERS = ("mean", "std", "temperature")  # train.normalize and train.calibrate set them
LEAST_SHARE = 0.5  # of the body's weights: a file that fits less is of another network


@torch.no_grad()
def load_pretrained(network: Classifier, path: Path, classes: list[str]) -> Path:
    """Copy each tensor of the same name and shape into the network; returns the path.

    The file was written by the stage train, or its tensors have torchvision's names (`layer1.0.conv1.weight`).
    The last layer is taken only from a file of the stage train for the same classes; otherwise it stays new.
    """
    tensors, trained_classes = read_tensors(path)
    target = network.state_dict()
    wanted = {name: tensor for name, tensor in target.items() if name not in OWN_BUFFERS}
    if trained_classes != classes:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("head.")}
    matching = [name for name, tensor in wanted.items() if name in tensors and tensors[name].shape == tensor.shape]
    body = {name: tensor.numel() for name, tensor in target.items() if name.startswith("body.")}
    if sum(body.get(name, 0) for name in matching) < LEAST_SHARE * sum(body.values()):
        example = next(iter(body), "none").removeprefix("body.")
        raise StageError(
            f"train.start_from: {path}: {len(matching)} of its {len(tensors)} tensors fit the network, too few; it "
            f"needs names such as {example}, and the same train.model, train.width and train.depth"
        )
    for name in matching:
        target[name].copy_(tensors[name])
    new = [name for name in target if name not in matching and name not in OWN_BUFFERS]
    echo(f"{path}: {len(matching)} tensors taken; new: {', '.join(new) or 'none'}")
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors by our names, and the classes, which only a file of the stage train names."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            header = parse_header(file.metadata())
    except FileNotFoundError:
        raise StageError(f"train.start_from: {path}: missing; put the file there, or set it to ''") from None
    except (SafetensorError, OSError) as error:
        raise StageError(f"train.start_from: {path}: not a complete safetensors file ({error})") from None
    if header:
        return tensors, header.classes
    return {f"body.{name}": tensor for name, tensor in tensors.items()}, None
