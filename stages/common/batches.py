"""Training data as one tensor, given out by step: a batch and its random numbers depend on seed and step alone."""

import hashlib

import torch
from torch import Generator, Tensor


class Batches:
    """An epoch is cut into batches of at most `size` images, equal to within one image."""

    def __init__(
        self, images: Tensor, labels: Tensor, *, size: int, shuffle: bool, seed: int, device: torch.device
    ) -> None:
        self.images, self.labels, self.device = images, labels, device
        self.per_epoch = -(-len(images) // size)
        self.shuffle, self.seed = shuffle, seed
        self.order: tuple[int, Tensor] | None = None

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The images and labels of a step, on the device."""
        epoch, index = divmod(step, self.per_epoch)
        start, stop = (len(self.images) * part // self.per_epoch for part in (index, index + 1))
        members = self.shuffled(epoch)[start:stop] if self.shuffle else slice(start, stop)
        return self.images[members].to(self.device), self.labels[members].to(self.device)

    def shuffled(self, epoch: int) -> Tensor:
        if self.order is None or self.order[0] != epoch:
            generator = seeded(torch.device("cpu"), self.seed, "order", epoch)
            self.order = epoch, torch.randperm(len(self.images), generator=generator)
        return self.order[1]

    def chance(self, step: int) -> Generator:
        """The random numbers of a step's augmentation, on the device."""
        return seeded(self.device, self.seed, "augmentation", step)


def seeded(device: torch.device, *parts: int | str) -> Generator:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
