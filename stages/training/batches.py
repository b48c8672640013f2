"""Training data as one tensor, given out by step: a batch and its random numbers depend on seed and step alone."""

import hashlib

import torch
from torch import Generator, Tensor

from stages.training.distributed import ProcessGroup


class Batches:
    """An epoch is cut into batches of at most `size` images, equal to within one image; ranks share each of them."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        size: int,
        shuffle: bool,
        seed: int,
        ranks: ProcessGroup = ProcessGroup(),  # noqa: B008, frozen
    ) -> None:
        self.images, self.labels = images, labels
        self.per_epoch = -(-len(self.images) // size)
        self.shuffle, self.seed, self.ranks = shuffle, seed, ranks
        self.order: tuple[int, Tensor] | None = None

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        """The images and labels of a step, or this process's share of them, where the data are."""
        epoch, index = divmod(step, self.per_epoch)
        start, stop = (len(self.images) * part // self.per_epoch for part in (index, index + 1))
        part = slice(start + self.ranks.rank, stop, self.ranks.world_size)
        members = self.epoch_order(epoch)[part] if self.shuffle else part
        if isinstance(members, slice):
            return self.images[members], self.labels[members]
        images = self.images.flatten(1).index_select(0, members)  # whole rows: many times as fast as by pixel
        return images.view(-1, *self.images.shape[1:]), self.labels[members]

    def epoch_order(self, epoch: int) -> Tensor:
        if self.order is None or self.order[0] != epoch:
            generator = seeded_generator(self.seed, "order", epoch)
            self.order = epoch, torch.randperm(len(self.images), generator=generator).to(self.images.device)
        return self.order[1]

    def augmentation_rng(self, step: int) -> Generator:
        """The random numbers of a step's augmentation."""
        return seeded_generator(self.seed, "augmentation", step, self.ranks.rank)


def seeded_generator(*parts: int | str) -> Generator:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))
