"""Makes the batch of a training step, and the random numbers of its augmentation, from the seed and the step alone."""

import hashlib

import torch
from torch import Generator, Tensor

from stages.core.errors import StageError
from stages.training.distributed import ProcessGroup


class Batches:
    """Batches of at most `batch_size` images, of sizes that differ by at most one; processes divide each among them.

    DistributedDataParallel gives all processes the same weight, also if one has an image less in a batch.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool, seed: int, process_group: ProcessGroup
    ) -> None:
        self.images, self.labels = images, labels
        self.per_epoch = -(-len(self.images) // batch_size)
        self.shuffle, self.seed, self.process_group = shuffle, seed, process_group
        if len(images) // self.per_epoch < process_group.world_size:
            reason = f"its {len(images) // self.per_epoch} images are too few for {process_group.world_size} processes"
            raise StageError(f"train.batch: {batch_size} gives a batch that is too small: {reason}")
        self.last_permutation: tuple[int, Tensor] | None = None  # the epoch and its order

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's images and labels of a step, on the device of the data."""
        epoch, index = divmod(step, self.per_epoch)
        start, stop = (len(self.images) * bound // self.per_epoch for bound in (index, index + 1))
        positions = slice(start + self.process_group.rank, stop, self.process_group.world_size)
        if not self.shuffle:
            return self.images[positions], self.labels[positions]
        indices = self.permutation(epoch)[positions]
        images = self.images.flatten(1).index_select(0, indices)  # by row 0.01 ms, by pixel 0.16 ms
        return images.view(-1, *self.images.shape[1:]), self.labels[indices]

    def permutation(self, epoch: int) -> Tensor:
        """The order of the images in an epoch."""
        if self.last_permutation is None or self.last_permutation[0] != epoch:
            generator = seeded_generator(self.seed, "order", epoch)
            permutation = torch.randperm(len(self.images), generator=generator).to(self.images.device)
            self.last_permutation = epoch, permutation
        return self.last_permutation[1]

    def augmentation_rng(self, step: int) -> Generator:
        """The generator of the random numbers for this step's augmentation in this process."""
        return seeded_generator(self.seed, "augmentation", step, self.process_group.rank)


def seeded_generator(*key: int | str) -> Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))
