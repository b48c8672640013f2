"""Optimizers by name, and the learning rate as a function of the step."""

from collections.abc import Iterable
from typing import Literal

import torch

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "one-cycle"]


def build_optimizer(
    name: Optimizer, parameters: Iterable[torch.nn.Parameter], *, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.Optimizer:
    """Its learning rate is set before each step."""
    match name:
        case "adam":
            return torch.optim.Adam(parameters, weight_decay=weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                parameters, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
            )


def learning_rate(schedule: Schedule, peak: float, warmup: float, step: int, steps: int) -> float:
    """One-cycle rises in a straight line over the share `warmup` of the steps and falls in one to a hundredth."""
    if schedule == "constant":
        return peak
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 - 0.99 * (step + 1 - rise) / max(1, steps - rise))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
