"""Optimizers by name, and the learning rate as a function of the step."""

from typing import get_args

import pytest
import torch

from stages.common.optimizers import Optimizer, build_optimizer, learning_rate, set_learning_rate


def stepped(name: Optimizer, rate: float, steps: int = 2, **settings: float) -> list[float]:
    """A weight of 1 after each step, its gradient always 0.5."""
    weight = torch.nn.Parameter(torch.ones(1))
    given = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **settings}
    optimizer = build_optimizer(name, [weight], **given)  # type: ignore[arg-type]
    seen = []
    for _ in range(steps):
        set_learning_rate(optimizer, rate)
        weight.grad = torch.full((1,), 0.5)
        optimizer.step()
        seen.append(round(weight.item(), 5))
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
def test_an_optimizer_steps_as_its_rule_says(name: Optimizer, settings: dict[str, float], weights: list[float]) -> None:
    assert stepped(name, 0.1, **settings) == pytest.approx(weights, abs=1e-3)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_the_rate_that_was_set_is_the_one_it_steps_by(name: Optimizer) -> None:
    slow, fast = stepped(name, 0.01, steps=1)[0], stepped(name, 0.1, steps=1)[0]
    assert 1 - fast == pytest.approx(10 * (1 - slow), rel=1e-3)


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
    found = [learning_rate(schedule, 3.0, warmup, step, 5) for step in range(5)]  # type: ignore[arg-type]
    assert found == pytest.approx([3.0 * rate for rate in rates])


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_training_has_rates_too(schedule: str, warmup: float, steps: int) -> None:
    rates = [learning_rate(schedule, 2.0, warmup, step, steps) for step in range(steps)]  # type: ignore[arg-type]
    assert all(0 < rate <= 2 for rate in rates)
    assert max(rates) == 2
