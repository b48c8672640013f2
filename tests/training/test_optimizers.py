"""Our optimizers compared with those of PyTorch, and the learning rate as a function of the step."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from stages.train import Train, make_optimizers
from stages.training.optimizers import FlatAdamW, Optimizer, OptimizerName, lr_factor, newton_schulz, set_lr

NAMES = get_args(OptimizerName)


def optimizers_of(network: nn.Module, name: OptimizerName, **changes: Any) -> list[Optimizer]:
    settings = {"learning_rate": 0.01, "muon_rate": 0.1, "momentum": 0.0, "nesterov": False, "betas": (0.9, 0.999)}
    section = Train.model_construct(optimizer=name, **{**settings, "weight_decay": 0.0, **changes})
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    return make_optimizers(section, network, first)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 2))


def run_steps(network: nn.Module, optimizers: list[Optimizer], images: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        network.zero_grad()
        network(images).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def weight_after_steps(name: OptimizerName, steps: int = 2, factor: float = 1.0, **changes: Any) -> list[float]:
    """A weight of 1 after each step, its gradient always 0.5."""
    network = nn.ParameterList([nn.Parameter(torch.ones(1))])
    optimizer = optimizers_of(network, name, learning_rate=0.1, **changes)[-1]
    set_lr([optimizer], factor)
    weights = []
    for _ in range(steps):
        network[0].grad = torch.full((1,), 0.5)
        optimizer.step()
        weights.append(round(network[0].item(), 5))
    return weights


@pytest.mark.parametrize(
    ("name", "changes", "weights"),
    [
        ("sgd", {}, [0.95, 0.9]),
        ("sgd", {"momentum": 0.5}, [0.95, 0.875]),  # 0.5, then 0.5 + 0.25
        ("sgd", {"momentum": 0.5, "nesterov": True}, [0.925, 0.8375]),  # 0.5 + 0.25, then 0.5 + 0.375
        ("sgd", {"weight_decay": 0.1}, [0.94, 0.8806]),
        ("adam", {}, [0.9, 0.8]),  # a step of the learning rate, whatever the size of a constant gradient
        ("adam", {"weight_decay": 0.1}, [0.9, 0.8]),  # added to the gradient, of which only the sign counts here
        ("adamw", {}, [0.9, 0.8]),
        ("adamw", {"weight_decay": 0.1}, [0.89, 0.7811]),  # not added to the gradient: 1 x 0.99 - 0.1
        ("muon", {"weight_decay": 0.1}, [0.89, 0.7811]),  # AdamW, since the weight is not of a convolution
    ],
)
def test_each_param_has_its_effect_on_the_steps(
    name: OptimizerName, changes: dict[str, Any], weights: list[float]
) -> None:
    assert weight_after_steps(name, **changes) == pytest.approx(weights, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_fraction_of_the_learning_rate_gives_that_fraction_of_a_step(name: OptimizerName) -> None:
    tenth, full = weight_after_steps(name, steps=1, factor=0.1)[0], weight_after_steps(name, steps=1)[0]
    assert 1 - full == pytest.approx(10 * (1 - tenth), rel=1e-3)


def test_learning_rates_are_set_relative_to_their_initial_values() -> None:
    optimizers = optimizers_of(small_network(), "muon", learning_rate=0.01, muon_rate=0.2)
    for factor in (0.5, 0.25):
        set_lr(optimizers, factor)
        assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [
            0.2 * factor,
            0.01 * factor,
        ]


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0.5, [1, 1, 1, 1, 1]),
        ("one-cycle", 0.4, [0.5, 1, 0.67, 0.34, 0.01]),
        ("one-cycle", 0.0, [1, 0.7525, 0.505, 0.2575, 0.01]),
        ("one-cycle", 1.0, [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_the_learning_rate_of_each_step_follows_the_schedule(
    schedule: str, warmup: float, factors: list[float]
) -> None:
    actual = [lr_factor(schedule, warmup, step, 5) for step in range(5)]  # type: ignore[arg-type]
    assert actual == pytest.approx(factors)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_few_steps_reaches_the_highest_learning_rate(schedule: str, warmup: float, steps: int) -> None:
    factors = [lr_factor(schedule, warmup, step, steps) for step in range(steps)]  # type: ignore[arg-type]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1


@pytest.mark.parametrize(
    ("name", "changes", "reference"),
    [
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True},
            lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True, foreach=False),
        ),
        (
            "adam",
            {"weight_decay": 0.1},
            lambda parameters: torch.optim.Adam(parameters, 0.01, weight_decay=0.1, foreach=False),
        ),
    ],
)
def test_fused_steps_in_channels_last_memory_equal_plain_steps(
    name: OptimizerName, changes: dict[str, Any], reference: Any
) -> None:
    network, plain = small_network().to(memory_format=torch.channels_last), small_network()
    images = torch.randn(8, 1, 6, 6)
    run_steps(network, optimizers_of(network, name, **changes), images, 20)
    run_steps(plain, [reference(plain.parameters())], images, 20)
    for actual, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_on_one_vector_equals_pytorchs(weight_decay: float) -> None:
    network, reference = small_network(), small_network()
    images = torch.randn(8, 1, 6, 6)
    run_steps(network, [FlatAdamW(list(network.parameters()), 0.01, (0.7, 0.9), weight_decay)], images, 20)
    adamw = torch.optim.AdamW(reference.parameters(), 0.01, (0.7, 0.9), weight_decay=weight_decay)
    run_steps(reference, [adamw], images, 20)
    for actual, expected in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_newton_schulz_keeps_singular_vectors_and_makes_singular_values_similar(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    result = newton_schulz(left @ torch.diag(torch.logspace(-0.5, 0.5, len(values))) @ right)
    assert result.shape == shape
    core = left.T @ result @ right.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-4, rtol=0)
    assert core.diagonal().min() > 0.4
    assert core.diagonal().max() < 1.3


def test_muon_updates_the_convolutions_after_the_first_and_adamw_all_other_parameters() -> None:
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    run_steps(network, optimizers_of(network, "muon", muon_rate=0.3), torch.randn(5, 1, 6, 6), 1)
    updates = {name: (tensor - before[name]) for name, tensor in network.state_dict().items()}
    for name in ("0.weight", "0.bias", "1.bias", "3.weight", "3.bias"):
        torch.testing.assert_close(updates[name].abs(), torch.full_like(updates[name], 0.01), atol=1e-4, rtol=0)
    scaled = before["1.weight"] * 6**0.5 / before["1.weight"].norm()
    singular_values = torch.linalg.svdvals((network[1].weight.detach() - scaled).flatten(1))  # type: ignore[index]
    assert singular_values.min() > 0.3 * 0.4
    assert singular_values.max() < 0.3 * 1.3


@pytest.mark.parametrize("name", NAMES)
def test_training_continues_from_a_saved_state_as_if_it_had_not_stopped(name: OptimizerName) -> None:
    images = torch.ones(5, 1, 6, 6)
    uninterrupted, resumed = small_network(), small_network()
    optimizers = optimizers_of(uninterrupted, name, momentum=0.5)
    run_steps(uninterrupted, optimizers, images, 3)
    states = [optimizer.state_dict() for optimizer in optimizers]
    saved = copy.deepcopy((uninterrupted.state_dict(), states))
    run_steps(uninterrupted, optimizers, images, 3)
    resumed.load_state_dict(saved[0])
    resumed_optimizers = optimizers_of(resumed, name, momentum=0.5)
    for optimizer, state in zip(resumed_optimizers, saved[1], strict=True):
        optimizer.load_state_dict(state)
    run_steps(resumed, resumed_optimizers, images, 3)
    for actual, expected in zip(resumed.parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(actual, expected)
