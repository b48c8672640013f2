"""Batches: whole batches by step, each image once an epoch, random numbers from seed and step alone."""

from typing import Any

import pytest
import torch

from stages.training.batches import Batches
from stages.training.distributed import ProcessGroup

ALONE = ProcessGroup()


def batches(count: int, size: int, *, shuffle: bool = True, seed: int = 0, ranks: ProcessGroup = ALONE) -> Batches:
    """Images that say their own index in every pixel, and so do the labels."""
    labels = torch.arange(count)
    images = labels[:, None, None, None].expand(count, 1, 4, 4).to(torch.uint8)
    return Batches(images, labels, size, shuffle, seed, ranks)


@pytest.mark.parametrize(("count", "size"), [(100, 32), (100, 7), (100, 100), (100, 1000), (3, 2), (5, 1)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_gives_every_image_once_in_batches_equal_to_within_one(count: int, size: int, shuffle: bool) -> None:
    data = batches(count, size, shuffle=shuffle)
    for epoch in range(2):
        steps = range(epoch * data.per_epoch, (epoch + 1) * data.per_epoch)
        labels = [data.get(step)[1] for step in steps]
        sizes = [len(some) for some in labels]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert sorted(torch.cat(labels).tolist()) == list(range(count))


@pytest.mark.parametrize("shuffle", [True, False])
def test_images_stay_with_their_labels_and_stay_uint8(shuffle: bool) -> None:
    images, labels = batches(100, 30, shuffle=shuffle).get(5)
    assert images.dtype == torch.uint8
    assert torch.equal(images, labels[:, None, None, None].expand_as(images).to(torch.uint8))


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    data = batches(10, 4, shuffle=False)
    assert [data.get(step)[1].tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_shuffling_gives_each_epoch_its_own_order() -> None:
    data = batches(100, 100)
    assert data.get(0)[1].tolist() != data.get(1)[1].tolist()
    assert data.get(0)[1].tolist() != list(range(100))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    walked = batches(100, 30)
    in_turn = [walked.get(step)[1].tolist() for step in range(12)]
    for step in (11, 3, 7, 0):
        assert batches(100, 30).get(step)[1].tolist() == in_turn[step]
    assert batches(100, 30, seed=1).get(3)[1].tolist() != in_turn[3]


def test_the_chance_of_a_step_depends_on_seed_and_step_alone() -> None:
    def drawn(seed: int, step: int) -> list[float]:
        return torch.rand(4, generator=batches(10, 5, seed=seed).augmentation_rng(step)).tolist()

    torch.manual_seed(1)
    first = drawn(0, 3)
    torch.manual_seed(2)
    assert drawn(0, 3) == first
    assert drawn(0, 4) != first
    assert drawn(1, 3) != first


def test_no_image_is_touched_one_by_one() -> None:
    class Counted(torch.Tensor):
        looks = 0

        @classmethod
        def __torch_function__(cls, *arguments: Any, **named: Any) -> Any:
            Counted.looks += 1
            return super().__torch_function__(*arguments, **named)

    images = torch.zeros(1000, 1, 4, 4, dtype=torch.uint8).as_subclass(Counted)
    Batches(images, torch.zeros(1000).long(), 500, True, 0).get(0)
    assert 0 < Counted.looks < 20


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_each_batch_among_them(shuffle: bool) -> None:
    whole = batches(100, 30, shuffle=shuffle)
    parts = [batches(100, 30, shuffle=shuffle, ranks=ProcessGroup(rank, 3)) for rank in range(3)]
    for step in range(8):
        shares = [part.get(step)[1].tolist() for part in parts]
        assert sorted(label for share in shares for label in share) == sorted(whole.get(step)[1].tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert not torch.equal(*(torch.rand(3, generator=part.augmentation_rng(0)) for part in parts[:2]))
