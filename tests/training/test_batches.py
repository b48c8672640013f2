"""Batches by step: each image once an epoch, random numbers that depend on the seed and the step alone."""

from typing import Any

import pytest
import torch

from stages.core.errors import StageError
from stages.training.batches import Batches
from stages.training.distributed import ProcessGroup

SINGLE_PROCESS = ProcessGroup()


def make_batches(
    count: int, size: int, *, shuffle: bool = True, seed: int = 0, process_group: ProcessGroup = SINGLE_PROCESS
) -> Batches:
    """Images whose pixels, and labels, are all equal to the index of the image."""
    labels = torch.arange(count)
    images = labels[:, None, None, None].expand(count, 1, 4, 4).to(torch.uint8)
    return Batches(images, labels, size, shuffle, seed, process_group)


@pytest.mark.parametrize(("count", "size"), [(100, 32), (100, 7), (100, 100), (100, 1000), (3, 2), (5, 1)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_gives_every_image_once_in_batches_equal_to_within_one(count: int, size: int, shuffle: bool) -> None:
    data = make_batches(count, size, shuffle=shuffle)
    for epoch in range(2):
        steps = range(epoch * data.per_epoch, (epoch + 1) * data.per_epoch)
        labels = [data.batch(step)[1] for step in steps]
        sizes = [len(batch_labels) for batch_labels in labels]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert sorted(torch.cat(labels).tolist()) == list(range(count))


def test_a_batch_with_fewer_images_than_processes_is_one_line() -> None:
    with pytest.raises(StageError, match=r"train\.batch: 4 gives .*: its 2 images are too few for 3 processes"):
        make_batches(5, 4, process_group=ProcessGroup(0, 3))
    make_batches(6, 3, process_group=ProcessGroup(0, 3))


@pytest.mark.parametrize("shuffle", [True, False])
def test_images_match_their_labels_and_are_uint8(shuffle: bool) -> None:
    images, labels = make_batches(100, 30, shuffle=shuffle).batch(5)
    assert images.dtype == torch.uint8
    assert torch.equal(images, labels[:, None, None, None].expand_as(images).to(torch.uint8))


def test_without_shuffling_batches_are_in_the_order_of_the_data() -> None:
    data = make_batches(10, 4, shuffle=False)
    assert [data.batch(step)[1].tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_shuffling_gives_each_epoch_another_order() -> None:
    data = make_batches(100, 100)
    assert data.batch(0)[1].tolist() != data.batch(1)[1].tolist()
    assert data.batch(0)[1].tolist() != list(range(100))


def test_a_batch_depends_on_the_seed_and_the_step_alone() -> None:
    sequential = make_batches(100, 30)
    expected = [sequential.batch(step)[1].tolist() for step in range(12)]
    for step in (11, 3, 7, 0):
        assert make_batches(100, 30).batch(step)[1].tolist() == expected[step]
    assert make_batches(100, 30, seed=1).batch(3)[1].tolist() != expected[3]


def test_the_random_numbers_of_a_step_depend_on_the_seed_and_the_step_alone() -> None:
    def random_numbers(seed: int, step: int) -> list[float]:
        return torch.rand(4, generator=make_batches(10, 5, seed=seed).augmentation_rng(step)).tolist()

    torch.manual_seed(1)
    first = random_numbers(0, 3)
    torch.manual_seed(2)
    assert random_numbers(0, 3) == first
    assert random_numbers(0, 4) != first
    assert random_numbers(1, 3) != first


def test_images_are_not_indexed_one_by_one() -> None:
    class CountingTensor(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
            CountingTensor.calls += 1
            return super().__torch_function__(*args, **kwargs)

    images = torch.zeros(1000, 1, 4, 4, dtype=torch.uint8).as_subclass(CountingTensor)
    Batches(images, torch.zeros(1000).long(), 500, True, 0, SINGLE_PROCESS).batch(0)
    assert 0 < CountingTensor.calls < 20


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_divide_each_batch_among_them(shuffle: bool) -> None:
    undivided = make_batches(100, 30, shuffle=shuffle)
    divided = [make_batches(100, 30, shuffle=shuffle, process_group=ProcessGroup(rank, 3)) for rank in range(3)]
    for step in range(8):
        labels = [part.batch(step)[1].tolist() for part in divided]
        assert sorted(label for part in labels for label in part) == sorted(undivided.batch(step)[1].tolist())
        assert max(map(len, labels)) - min(map(len, labels)) <= 1
    assert not torch.equal(*(torch.rand(3, generator=part.augmentation_rng(0)) for part in divided[:2]))
