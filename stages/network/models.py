"""The zoo: networks by name, each built for a size, a number of channels and of classes, taking uint8 pixels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import StageError

FLAT = 0.05  # patches and directions that vary by less, in units of the pixels' standard deviation, are left alone

ModelName = Literal["compact", "deep", "reference_a", "reference_b", "reference_c", "reference_e"]


class Classifier(nn.Module):
    """Pixels to logits. Normalisation is a part of the network, so that no consumer has its own."""

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(self, body: nn.Sequential, head: nn.Linear, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.ones(()))  # that the logits are divided by, so as to be calibrated

    def hidden(self, image: Tensor) -> Tensor:
        """What the last layer decides by: (batch, features)."""
        features: Tensor = self.body((image.float() - 255 * self.mean) / (255 * self.std))
        return features

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden) / self.temperature
        return logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(self.hidden(image))


def compact(channels: int, width: int) -> nn.Sequential:
    """Ours: the first convolution halves the picture, so that the wide layers see few pixels."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2),
        nn.ReLU(inplace=True),
        *conv_block(width, 2 * width, pool=True),
        *conv_block(2 * width, 4 * width),
        ChannelsLastFlatten(),
    )


def deep(channels: int, width: int) -> nn.Sequential:
    """Ours, for the last tenths: `compact` with two convolutions where that has one."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2),
        nn.ReLU(inplace=True),
        *conv_block(width, 2 * width, padding=1),
        *conv_block(2 * width, 2 * width, pool=True),
        *conv_block(2 * width, 4 * width, padding=1),
        *conv_block(4 * width, 4 * width),
        ChannelsLastFlatten(),
    )


def conv_block(channels: int, width: int, padding: int = 0, pool: bool = False) -> Iterator[nn.Module]:
    """A convolution, halved before it is centred: a quarter of the numbers is left to centre."""
    yield nn.Conv2d(channels, width, 3, padding=padding, bias=False)
    if pool:
        yield nn.MaxPool2d(2)
    yield FixedScaleBatchNorm(width)
    yield nn.ReLU(inplace=True)


class ChannelsLastFlatten(nn.Module):
    """Features position by position, the order in which channels-last memory has them: nothing is copied."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class FixedScaleBatchNorm(nn.BatchNorm2d):
    """Batch norm for short trainings: statistics that follow quickly, a learnt shift, and no learnt scale."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)


def reference_a(channels: int, _: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def reference_b(channels: int, _: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def reference_c(channels: int, _: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def reference_e(channels: int, _: int) -> nn.Sequential:
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
MODELS: dict[ModelName, tuple[Callable[[int, int], nn.Sequential], tuple[int, ...]]] = {
    "compact": (compact, ()),
    "deep": (deep, ()),
    "reference_a": (reference_a, ()),
    "reference_b": (reference_b, (512, 128)),
    "reference_c": (reference_c, (120, 84)),
    "reference_e": (reference_e, ()),
}


def build_model(
    name: ModelName, width: int, size: int, channels: int, classes: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """The named network, its fresh weights drawn from torch's global generator; references have their own widths."""
    convolutions, hidden = MODELS[name]
    body = convolutions(channels, width)
    features = feature_count(name, body, size, channels)
    for wide in hidden:
        body.extend([nn.Linear(features, wide), nn.ReLU()])
        features = wide
    return Classifier(body, nn.Linear(features, classes), mean, std)


@torch.no_grad()
def whiten_stem(network: Classifier, images: Tensor) -> None:
    """Give the first convolution the principal directions of the images' patches, to equal strength, and freeze it.

    Each direction is there with both signs, since a ReLU lets but one through. A filter for which there is no direction
    keeps its random weights.
    """
    stem = next(layer for layer in network.body if isinstance(layer, nn.Conv2d))
    pixels = (images.float() - 255 * network.mean) / (255 * network.std)
    patches = functional.unfold(pixels, stem.kernel_size, stride=3).transpose(1, 2).flatten(0, 1)
    patches = patches[patches.std(1) > FLAT]
    strengths, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    half = min(len(stem.weight) // 2, len(strengths))
    filters = (directions * (strengths + FLAT).rsqrt()).T.flip(0)[:half]
    stem.weight[: 2 * half] = torch.cat([filters, -filters]).view_as(stem.weight[: 2 * half])
    if stem.bias is not None:
        stem.bias.zero_()
    stem.requires_grad_(False)


def feature_count(name: ModelName, body: nn.Sequential, size: int, channels: int) -> int:
    """How many features the convolutions leave of one image."""
    try:
        with torch.no_grad():
            features: Tensor = body.eval()(torch.zeros(1, channels, size, size))
        body.train()
    except RuntimeError:
        raise StageError(
            f"the network {name!r} is too deep for images of {size} x {size}: raise preprocess.size"
        ) from None
    return features.shape[1]
