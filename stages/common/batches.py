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
        if self.shuffle:
            members = self.shuffled(epoch).tensor_split(self.per_epoch)[index]
            images, labels = self.images[members], self.labels[members]
        else:
            images, labels = (part.tensor_split(self.per_epoch)[index] for part in (self.images, self.labels))
        return images.to(self.device), labels.to(self.device)

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
