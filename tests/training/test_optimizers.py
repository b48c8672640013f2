"""Optimizers by name, held against PyTorch's own, and the share of the rate as a function of the step."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from stages.training.optimizers import Optimizer, OptimizerName, lr_factor, make_optimizer, newton_schulz


def optimizer(name: OptimizerName, network: nn.Module, rate: float, **settings: Any) -> Optimizer:
    given = {"muon_rate": 0.1, "momentum": 0.0, "nesterov": False, "betas": (0.9, 0.999), "weight_decay": 0.0}
    return make_optimizer(name, network, rate=rate, **{**given, **settings})


def stepped(name: OptimizerName, rate: float, steps: int = 2, share: float = 1.0, **settings: Any) -> list[float]:
    """A weight of 1 after each step, its gradient always 0.5."""
    network = nn.ParameterList([nn.Parameter(torch.ones(1))])
    moving = optimizer(name, network, rate, **settings)
    seen = []
    for _ in range(steps):
        network[0].grad = torch.full((1,), 0.5)
        moving.step(share)
        seen.append(round(network[0].item(), 5))
    return seen


@pytest.mark.parametrize(
    ("name", "settings", "weights"),
    [
        ("sgd", {}, [0.95, 0.9]),
        ("sgd", {"momentum": 0.5}, [0.95, 0.875]),  # 0.5, then 0.5 + 0.25
        ("sgd", {"momentum": 0.5, "nesterov": True}, [0.925, 0.8375]),  # 0.5 + 0.25, then 0.5 + 0.375
        ("sgd", {"weight_decay": 0.1}, [0.94, 0.8806]),
        ("adam", {}, [0.9, 0.8]),  # a step of the learning rate, whatever the size of a steady gradient
        ("adam", {"weight_decay": 0.1}, [0.9, 0.8]),  # in the gradient: only its sign counts here
        ("adamw", {}, [0.9, 0.8]),
        ("adamw", {"weight_decay": 0.1}, [0.89, 0.7811]),  # beside the gradient: 1 x 0.99 - 0.1
    ],
)
def test_an_optimizer_steps_as_its_rule_says(
    name: OptimizerName, settings: dict[str, float], weights: list[float]
) -> None:
    assert stepped(name, 0.1, **settings) == pytest.approx(weights, abs=1e-3)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_a_share_of_the_rate_is_that_much_of_a_step(name: OptimizerName) -> None:
    part, whole = stepped(name, 0.1, steps=1, share=0.1)[0], stepped(name, 0.1, steps=1)[0]
    assert 1 - whole == pytest.approx(10 * (1 - part), rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0.5, [1, 1, 1, 1, 1]),
        ("one-cycle", 0.4, [0.5, 1, 0.67, 0.34, 0.01]),
        ("one-cycle", 0.0, [1, 0.7525, 0.505, 0.2575, 0.01]),
        ("one-cycle", 1.0, [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_the_rate_of_each_step_is_that_of_the_schedule(schedule: str, warmup: float, rates: list[float]) -> None:
    found = [lr_factor(schedule, warmup, step, 5) for step in range(5)]  # type: ignore[arg-type]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_training_has_rates_too(schedule: str, warmup: float, steps: int) -> None:
    rates = [lr_factor(schedule, warmup, step, steps) for step in range(steps)]  # type: ignore[arg-type]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1


@pytest.mark.parametrize(
    ("name", "settings", "theirs"),
    [
        ("sgd", {"weight_decay": 0.01}, lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.01)),
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
        ),
        ("sgd", {"momentum": 0.5}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.5)),
        ("adam", {"weight_decay": 0.1}, lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
        (
            "adamw",
            {"weight_decay": 0.1, "betas": (0.7, 0.9)},
            lambda p: torch.optim.AdamW(p, 0.01, (0.7, 0.9), weight_decay=0.1),
        ),
    ],
)
def test_it_goes_where_pytorchs_own_goes(name: OptimizerName, settings: dict[str, Any], theirs: Any) -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 4))
    second = copy.deepcopy(first)
    images = torch.randn(8, 1, 6, 6)
    mine, reference = optimizer(name, first, 0.01, **settings), theirs(second.parameters())
    for _ in range(20):
        for network, step in ((first, lambda: mine.step(1.0)), (second, reference.step)):
            network.zero_grad()
            network(images).square().mean().backward()
            step()
    for ours, its in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, its, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_an_orthogonal_change_has_the_directions_of_the_matrix_and_no_weak_ones(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, strengths, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    found = newton_schulz(left @ torch.diag(torch.logspace(-0.5, 0.5, len(strengths))) @ right)
    assert found.shape == shape
    inside = left.T @ found @ right.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-4, rtol=0)
    assert inside.diagonal().min() > 0.4
    assert inside.diagonal().max() < 1.3


def test_muon_moves_the_inner_convolutions_at_their_own_rate_and_adamw_all_else() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 2))
    before = copy.deepcopy(network.state_dict())
    network(torch.randn(5, 1, 6, 6)).square().mean().backward()
    optimizer("muon", network, 0.01, muon_rate=0.3).step(1.0)
    moved = {name: (tensor - before[name]) for name, tensor in network.state_dict().items()}
    for name in ("0.weight", "0.bias", "1.bias", "3.weight", "3.bias"):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 0.01), atol=1e-4, rtol=0)
    scaled = before["1.weight"] * 6**0.5 / before["1.weight"].norm()
    strengths = torch.linalg.svdvals((network[1].weight.detach() - scaled).flatten(1))
    assert strengths.min() > 0.3 * 0.4
    assert strengths.max() < 0.3 * 1.3


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_a_state_that_is_copied_back_goes_on_as_if_never_left(name: OptimizerName) -> None:
    def start() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 2))
        return network, optimizer(name, network, 0.01, momentum=0.5)

    def go(network: nn.Module, moving: Optimizer, steps: int) -> None:
        for _ in range(steps):
            network.zero_grad()
            network(torch.ones(5, 1, 6, 6)).square().mean().backward()
            moving.step(1.0)

    unbroken, its = start()
    go(unbroken, its, 3)
    saved = copy.deepcopy((unbroken.state_dict(), its.state()))
    go(unbroken, its, 3)
    resumed, again = start()
    resumed.load_state_dict(saved[0])
    for tensor, old in zip(again.state(), saved[1], strict=True):
        tensor.copy_(old)
    go(resumed, again, 3)
    assert all(torch.equal(one, two) for one, two in zip(unbroken.parameters(), resumed.parameters(), strict=True))
