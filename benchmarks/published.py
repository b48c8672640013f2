"""The published recipes as their authors run them: a DataLoader that loads image by image, and a plain loop."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


@dataclass(frozen=True)
class Recipe:
    network: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batch: int
    epochs: int
    shuffle: bool = True
    normalize: bool = False
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    decay: float = 1.0  # factor of the learning rate after each epoch


def train_published(
    recipe: Recipe, root: Path, seed: int, *, epochs: int, at_least: int = 0, until: float = 2.0
) -> list[tuple[float, float]]:
    """After each epoch: the seconds in training loops so far, and the test accuracy.

    Training ends after EPOCHS, or as soon as it has AT_LEAST epochs and the accuracy UNTIL.
    """
    torch.manual_seed(seed)
    preparation = [transforms.ToTensor(), *([transforms.Normalize((0.1307,), (0.3081,))] if recipe.normalize else [])]
    train_set, test_set = [
        datasets.MNIST(root, train=train, transform=transforms.Compose(preparation)) for train in (True, False)
    ]
    loader = DataLoader(train_set, recipe.batch, shuffle=recipe.shuffle)
    network = recipe.network()
    optimizer = recipe.optimizer(network)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, recipe.decay)
    seconds, results = 0.0, []
    for _ in range(epochs):
        start = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            recipe.loss(network(images), labels).backward()
            optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        results.append((seconds, accuracy(network, test_set)))
        if len(results) >= at_least and max(value for _, value in results) >= until:
            break
    return results


@torch.no_grad()
def accuracy(network: nn.Module, data: datasets.MNIST) -> float:
    network.eval()
    correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in DataLoader(data, 1000))
    network.train()
    return correct / len(data)


def two_convolutions(widths: tuple[int, int], kernels: tuple[int, int], pads: tuple[int, int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels, width, kernel, padding in zip((1, widths[0]), widths, kernels, pads, strict=True):
        layers += [nn.Conv2d(channels, width, kernel, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
    return [*layers, nn.Flatten()]


def linear_layers(*widths: int) -> list[nn.Module]:
    """Linear layers of these widths, with ReLU between them."""
    layers: list[nn.Module] = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return layers[:-1]


def network_a() -> nn.Module:
    return nn.Sequential(*two_convolutions((16, 32), (5, 5), (2, 2)), *linear_layers(1568, 10))


def network_b() -> nn.Module:
    return nn.Sequential(*two_convolutions((16, 32), (3, 3), (1, 1)), *linear_layers(1568, 512, 128, 10), nn.Softmax(1))


def network_c() -> nn.Module:
    return nn.Sequential(*two_convolutions((6, 16), (3, 5), (2, 0)), *linear_layers(400, 120, 84, 10))


def network_e() -> nn.Module:
    return nn.Sequential(*two_convolutions((10, 20), (5, 5), (0, 0)), *linear_layers(320, 10))


def network_examples() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10), nn.LogSoftmax(1),
    )  # fmt: skip


def adam(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=0.001)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.5)


def adadelta(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(network.parameters(), lr=1.0)


PUBLISHED_RECIPES = {
    "reference_a": Recipe(network_a, adam, batch=64, epochs=3),
    "reference_b": Recipe(network_b, adam, batch=100, epochs=2, shuffle=False),
    "reference_c": Recipe(network_c, adam, batch=100, epochs=5),
    "reference_d": Recipe(network_a, adam, batch=50, epochs=1),
    "reference_e": Recipe(network_e, sgd, batch=64, epochs=10, normalize=True),
    "pytorch_examples": Recipe(
        network_examples, adadelta, batch=64, epochs=14, normalize=True, loss=functional.nll_loss, decay=0.7
    ),
}
