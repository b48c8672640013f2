"""Optimizers by name, and the share of the highest learning rate as a function of the step.

They are written here, on all parameters as one vector: a few operations a step, however many parameters there are, and
none of the second that torch takes to load its compiler when the first of torch.optim's is made.
"""

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "adamw", "sgd", "muon"]
ScheduleName = Literal["constant", "one-cycle"]
EPSILON = 1e-8  # Adam's
NEWTON_SCHULZ_STEPS = 3  # of Newton and Schulz, in Muon


class Optimizer(Protocol):
    def step(self, share: float) -> None:
        """Move the parameters along their gradients, at this share of the optimizer's rate."""

    def state(self) -> list[Tensor]:
        """What it remembers, to be saved, and to be copied into."""


class FlatParameters:
    """Some parameters as one vector."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parts = list(parameters)
        self.sizes = [part.numel() for part in self.parts]

    def zeros(self) -> Tensor:
        return torch.zeros(sum(self.sizes), device=self.parts[0].device)

    def gradient(self, weight_decay: float = 0.0) -> Tensor:
        gradient = torch.cat([part.grad.flatten() for part in self.parts if part.grad is not None])
        if weight_decay:
            gradient += weight_decay * torch.cat([part.flatten() for part in self.parts])
        return gradient

    def add(self, change: Tensor) -> None:
        for part, its in zip(self.parts, change.split(self.sizes), strict=True):
            part.add_(its.view_as(part))

    def scale(self, factor: float) -> None:
        for part in self.parts:
            part.mul_(factor)


class SGD:
    def __init__(
        self, parameters: FlatParameters, rate: float, *, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        self.parameters, self.rate, self.weight_decay = parameters, rate, weight_decay
        self.momentum, self.nesterov, self.velocity = momentum, nesterov, parameters.zeros()

    @torch.no_grad()
    def step(self, share: float) -> None:
        gradient = self.parameters.gradient(self.weight_decay)
        self.velocity.mul_(self.momentum).add_(gradient)
        change = gradient.add_(self.velocity, alpha=self.momentum) if self.nesterov else self.velocity
        self.parameters.add(-self.rate * share * change)

    def state(self) -> list[Tensor]:
        return [self.velocity]


class Adam:
    """`decoupled` decays the weights themselves, as AdamW does, and not by their gradients."""

    def __init__(
        self,
        parameters: FlatParameters,
        rate: float,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        self.parameters, self.rate, self.weight_decay, self.decoupled = parameters, rate, weight_decay, decoupled
        self.betas, self.first, self.second = betas, parameters.zeros(), parameters.zeros()
        self.done = torch.zeros(())  # a tensor, to be saved with the others

    @torch.no_grad()
    def step(self, share: float) -> None:
        rate, (beta1, beta2) = self.rate * share, self.betas
        gradient = self.parameters.gradient(0.0 if self.decoupled else self.weight_decay)
        self.done += 1
        steps = int(self.done)
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Tensor.sqrt() is MKL's, whose last bit depends on the CPU; rsqrt() is not.
        spread = self.second.rsqrt().reciprocal_().div_((1 - beta2**steps) ** 0.5).add_(EPSILON)
        if self.decoupled and self.weight_decay:
            self.parameters.scale(1 - rate * self.weight_decay)
        self.parameters.add(spread.reciprocal_().mul_(self.first).mul_(-rate / (1 - beta1**steps)))

    def state(self) -> list[Tensor]:
        return [self.done, self.first, self.second]


class Muon:
    """For convolutions: momentum whose directions are made to weigh alike, and weights that keep their length."""

    def __init__(self, weights: list[nn.Parameter], rate: float, *, momentum: float, nesterov: bool) -> None:
        self.weights, self.rate, self.momentum, self.nesterov = weights, rate, momentum, nesterov
        self.velocities = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, share: float) -> None:
        for weight, velocity in zip(self.weights, self.velocities, strict=True):
            assert weight.grad is not None
            velocity.mul_(self.momentum).add_(weight.grad)
            change = weight.grad.add(velocity, alpha=self.momentum) if self.nesterov else velocity
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            place = weight.permute(0, 2, 3, 1)  # as channels-last memory has it: nothing is copied
            direction = newton_schulz(change.permute(0, 2, 3, 1).flatten(1))
            place.add_(direction.view_as(place), alpha=-self.rate * share)

    def state(self) -> list[Tensor]:
        return self.velocities


class CombinedOptimizer:
    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers

    def step(self, share: float) -> None:
        for optimizer in self.optimizers:
            optimizer.step(share)

    def state(self) -> list[Tensor]:
        return [tensor for optimizer in self.optimizers for tensor in optimizer.state()]


def newton_schulz(matrix: Tensor) -> Tensor:
    """Near to the matrix with the same directions, and all its singular values near 1 (Newton and Schulz).

    The steps need no more of the matrix than its products with itself, which are smaller.
    """
    if len(matrix) > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    scaled = matrix / (matrix.norm() + 1e-7)
    products, factor = scaled @ scaled.T, None
    for _ in range(NEWTON_SCHULZ_STEPS):
        step = torch.addmm(products, products, products, beta=-4.775, alpha=2.0315)
        step.diagonal().add_(3.4445)
        factor = step if factor is None else step @ factor
        products = step @ products @ step
    assert factor is not None
    found: Tensor = factor @ scaled
    return found


def make_optimizer(
    rule: OptimizerName,
    network: nn.Module,
    *,
    rate: float,
    muon_rate: float,
    momentum: float,
    nesterov: bool,
    betas: tuple[float, float],
    weight_decay: float,
) -> Optimizer:
    """Muon is for the convolutions after the first, and AdamW beside it for all else."""
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decoupled = rule != "adam"
    match rule:
        case "sgd":
            return SGD(FlatParameters(learnt), rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        case "adam" | "adamw":
            return Adam(FlatParameters(learnt), rate, betas=betas, weight_decay=weight_decay, decoupled=decoupled)
        case "muon":
            inner = [weight for weight in network.parameters() if weight.ndim == 4][1:]
            others = FlatParameters(parameter for parameter in learnt if not any(parameter is one for one in inner))
            return CombinedOptimizer(
                Muon(inner, muon_rate, momentum=momentum, nesterov=nesterov),
                Adam(others, rate, betas=betas, weight_decay=weight_decay, decoupled=decoupled),
            )


def lr_factor(schedule: ScheduleName, warmup: float, step: int, steps: int) -> float:
    """Of the highest rate. One-cycle rises evenly over the share `warmup` of the steps, and falls to a hundredth."""
    if schedule == "constant":
        return 1.0
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 1 - 0.99 * (step + 1 - rise) / max(1, steps - rise)
