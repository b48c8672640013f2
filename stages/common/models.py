"""The zoo: networks by name, each built for a size, a number of channels and of classes, taking uint8 pixels."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stages.common.problem import Problem

Name = Literal["compact", "reference_a", "reference_b", "reference_c", "reference_e"]


class Classifier(nn.Module):
    """Pixels to logits. Normalisation is a part of the network, so that no consumer has its own."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Sequential, head: nn.Linear, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def hidden(self, image: Tensor) -> Tensor:
        """What the last layer decides by: (batch, features)."""
        features: Tensor = self.body((image.float() / 255 - self.mean) / self.std)
        return features

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(image))
        return logits


def compact(channels: int) -> nn.Sequential:
    """Ours: the first convolution halves the picture, so that the wide layers see few pixels."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Flatten(),
    )


def reference_a(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def reference_b(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def reference_c(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def reference_e(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )


# The convolutions, and the widths of the linear layers between them and the output.
ZOO: dict[Name, tuple[Callable[[int], nn.Sequential], tuple[int, ...]]] = {
    "compact": (compact, ()),
    "reference_a": (reference_a, ()),
    "reference_b": (reference_b, (512, 128)),
    "reference_c": (reference_c, (120, 84)),
    "reference_e": (reference_e, ()),
}


def build(
    name: Name, size: int, channels: int, classes: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """The named network with fresh weights, drawn from torch's global generator."""
    convolutions, widths = ZOO[name]
    body = convolutions(channels)
    width = flat(name, body, size, channels)
    for wide in widths:
        body.extend([nn.Linear(width, wide), nn.ReLU()])
        width = wide
    return Classifier(body, nn.Linear(width, classes), mean, std)


def flat(name: Name, body: nn.Sequential, size: int, channels: int) -> int:
    """How many features the convolutions leave of one image."""
    try:
        with torch.no_grad():
            features: Tensor = body.eval()(torch.zeros(1, channels, size, size))
        body.train()
    except RuntimeError:
        raise Problem(
            f"the network {name!r} is too deep for images of {size} x {size}: raise preprocess.size"
        ) from None
    return features.shape[1]
