"""The networks, by name. Each takes uint8 pixels, normalizes them itself, and gives logits.

To add one, write a function that builds its layers up to flat features, as `compact` or `resnet` is, and add it to
`MODELS`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import StageError

# For whitening, in units of normalized pixels. Patches of a lower standard deviation are background and are left out.
MIN_PATCH_STD = 0.05
VARIANCE_OFFSET = 0.05  # added to the variance of each direction, so that directions of mere noise are not amplified


class Classifier(nn.Module):
    """Pixels to logits. Normalization is a part of the network, so that no consumer needs its own."""

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(self, body: nn.Module, head: nn.Linear, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.ones(()))  # logits are divided by it: temperature scaling

    def normalize(self, image: Tensor) -> Tensor:
        return (image.float() - 255 * self.mean) / (255 * self.std)

    def hidden(self, image: Tensor) -> Tensor:
        """The input of the last layer: (batch, features)."""
        features: Tensor = self.body(self.normalize(image))
        return features

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden) / self.temperature
        return logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(self.hidden(image))


def compact(channels: int, width: int) -> nn.Sequential:
    """The default: the first convolution halves height and width, so that the wider layers see few pixels."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2),
        nn.ReLU(inplace=True),
        *conv_block(width, 2 * width, pool=True),
        *conv_block(2 * width, 4 * width),
        ChannelsLastFlatten(),
    )


def deep(channels: int, width: int) -> nn.Sequential:
    """More accurate and slower: two convolutions for each of the later ones of `compact`."""
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
    """Convolution, batch norm (Ioffe and Szegedy, 2015, arXiv:1502.03167) and ReLU.

    Pooling comes before batch norm, which then sees a quarter of the pixels. The momentum is high, for trainings of a
    few hundred steps, and the scale is not trained.
    """
    yield nn.Conv2d(channels, width, 3, padding=padding, bias=False)
    if pool:
        yield nn.MaxPool2d(2)
    batch_norm = nn.BatchNorm2d(width, momentum=0.4)
    batch_norm.weight.requires_grad_(False)
    yield batch_norm
    yield nn.ReLU(inplace=True)


class ResNet(nn.Module):
    """Residual network (He et al., 2016, arXiv:1512.03385) for images of 32 to 96 pixels, with `depth` blocks a stage.

    Its tensors have torchvision's names; with width 64 and depth 2 they have the shapes of its resnet18.
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*residual_stage(before, after, depth, stride))
            for before, after, stride in zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
        )

    def forward(self, image: Tensor) -> Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        pooled: Tensor = features.mean((2, 3))
        return pooled


def residual_stage(channels: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
    yield ResidualBlock(channels, width, stride)
    for _ in range(depth - 1):
        yield ResidualBlock(width, width, 1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)  # a block begins as its shortcut: Goyal et al., 2017, arXiv:1706.02677
        self.downsample = None
        if stride > 1:
            shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        return functional.relu(residual + shortcut)


class ChannelsLastFlatten(nn.Module):
    """Flatten in the order (height, width, channels): a view, not a copy, of channels-last memory."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


def two_blocks(
    widths: tuple[int, int], kernels: tuple[int, int], paddings: tuple[int, int], *, pool_first: bool = False
) -> Callable[[int, int], nn.Sequential]:
    """Two blocks of convolution, ReLU and 2x2 max pooling, of fixed widths, as in the published reference networks."""

    def build(channels: int, _: int) -> nn.Sequential:
        modules: list[nn.Module] = []
        for in_channels, width, kernel, padding in zip((channels, widths[0]), widths, kernels, paddings, strict=True):
            activation = [nn.ReLU(), nn.MaxPool2d(2)]
            modules.append(nn.Conv2d(in_channels, width, kernel, padding=padding))
            modules += reversed(activation) if pool_first else activation
        return nn.Sequential(*modules, nn.Flatten())

    return build


class Architecture(NamedTuple):
    convolutions: Callable[..., nn.Module]  # from the image's channels, the width, and the depth if it has one
    linear_widths: tuple[int, ...] = ()  # of the linear layers between the convolutions and the last layer
    has_depth: bool = False


MODELS = {
    "compact": Architecture(compact),
    "deep": Architecture(deep),
    "resnet": Architecture(ResNet, has_depth=True),
    "reference_a": Architecture(two_blocks((16, 32), (5, 5), (2, 2))),
    "reference_b": Architecture(two_blocks((16, 32), (3, 3), (1, 1)), linear_widths=(512, 128)),
    "reference_c": Architecture(two_blocks((6, 16), (3, 5), (2, 0)), linear_widths=(120, 84)),
    "reference_e": Architecture(two_blocks((10, 20), (5, 5), (0, 0), pool_first=True)),
}


def check_model_name(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"input should be one of {', '.join(MODELS)}")
    return name


ModelName = Annotated[str, AfterValidator(check_model_name)]


def build_model(
    name: ModelName,
    width: int,
    size: int,
    channels: int,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    depth: int = 1,
) -> Classifier:
    """The named network, its initial weights drawn from torch's global generator.

    Reference networks ignore `width`; networks without `has_depth` ignore `depth`.
    """
    convolutions, linear_widths, has_depth = MODELS[name]
    body = convolutions(channels, width, depth) if has_depth else convolutions(channels, width)
    subsample_before_pointwise(body)
    try:
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, channels, size, size)).shape[1]
    except RuntimeError:
        raise StageError(
            f"the network {name!r} is too deep for images of {size} x {size}: raise preprocess.size"
        ) from None
    for linear_width in linear_widths:
        body = nn.Sequential(*body.children(), nn.Linear(features, linear_width), nn.ReLU())
        features = linear_width
    return Classifier(body.train(), nn.Linear(features, classes), mean, std)


def subsample_before_pointwise(body: nn.Module) -> None:
    """Let each 1x1 convolution with a stride take every second pixel first, and then run without a stride.

    The result is the same. With the stride, oneDNN's AVX-512 kernel for the gradient of the weights writes beyond its
    buffer (torch 2.14.1: Conv2d(8, 16, 1, stride=2), channels-last, two threads, a batch of 63), and the process dies.
    """
    for conv in body.modules():
        if (
            isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (1, 1)
            and conv.stride != (1, 1)
            and not any(conv.padding)
        ):
            conv.register_forward_pre_hook(partial(subsample, stride=conv.stride))
            conv.stride = (1, 1)


def subsample(_: nn.Module, inputs: tuple[Tensor], stride: tuple[int, ...]) -> tuple[Tensor]:
    return (inputs[0][:, :, :: stride[0], :: stride[1]],)


@torch.no_grad()
def find_stem(network: Classifier, images: Tensor) -> nn.Conv2d | None:
    """The first convolution that runs, wherever in the network it is; None if there is none."""
    order: list[nn.Conv2d] = []
    handles = [
        module.register_forward_hook(lambda conv, *_: order.append(conv))
        for module in network.body.modules()
        if isinstance(module, nn.Conv2d)
    ]
    was_training = network.training
    network.eval()(images[:1].to(network.mean.device))
    network.train(was_training)
    for handle in handles:
        handle.remove()
    return order[0] if order else None


@torch.no_grad()
def whiten_stem(network: Classifier, images: Tensor) -> None:
    """Set the first convolution to whiten the patches of the images, and freeze it.

    Its filters are the principal directions of the patches, scaled to equal variance (Coates and Ng, 2012, "Learning
    feature representations with k-means"); as a frozen first layer they shorten training (Page, 2019, "How to train
    your ResNet 8: Bag of tricks"; Jordan, 2024, arXiv:2404.00498). Each direction is used with both signs, since ReLU
    passes only one. Filters beyond twice the number of directions keep their random weights.
    """
    stem = find_stem(network, images)
    if stem is None:
        raise StageError("train.stem: whitened needs a network with a convolution; set it to learned")
    if stem.in_channels != images.shape[1] or stem.groups != 1:
        raise StageError("train.stem: whitened needs a first convolution that sees the image itself; set it to learned")
    patches = functional.unfold(network.normalize(images), stem.kernel_size, stride=3).transpose(1, 2).flatten(0, 1)
    patches = patches[patches.std(1) > MIN_PATCH_STD]
    if not len(patches):
        raise StageError("train.stem: whitened needs images with contrast, and these have none; set it to learned")
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    count = min(len(stem.weight) // 2, len(variances))
    filters = (directions * (variances + VARIANCE_OFFSET).rsqrt()).T.flip(0)[:count]
    stem.weight[: 2 * count] = torch.cat([filters, -filters]).view_as(stem.weight[: 2 * count])
    if stem.bias is not None:
        stem.bias.zero_()
    stem.requires_grad_(False)
