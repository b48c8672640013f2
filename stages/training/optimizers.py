"""Muon, the AdamW for the parameters that Muon does not update, and the learning rate as a function of the step.

They do not subclass torch.optim.Optimizer, which imports torch's compiler when the first optimizer is made: 0.9 s.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "adamw", "sgd", "muon"]
ScheduleName = Literal["constant", "one-cycle"]
EPSILON = 1e-8  # Adam's
NEWTON_SCHULZ_STEPS = 3


class BaseOptimizer:
    """The interface of torch.optim.Optimizer that the training loop uses; subclasses update `state` in place."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, state: list[Tensor]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr}]
        self.state = state

    def step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for tensor, saved in zip(self.state, state_dict["state"], strict=True):
            tensor.copy_(saved)


Optimizer = torch.optim.Optimizer | BaseOptimizer


class FlatAdamW(BaseOptimizer):
    """AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) on all parameters as one vector: few operations a step."""

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.betas, self.weight_decay = betas, weight_decay
        self.sizes = [parameter.numel() for parameter in parameters]
        moment = torch.zeros(sum(self.sizes), device=parameters[0].device)
        super().__init__(parameters, lr, [torch.zeros(()), moment, moment.clone()])  # step, exp_avg, exp_avg_sq

    @torch.no_grad()
    def step(self) -> None:
        parameters, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        (beta1, beta2), (step, exp_avg, exp_avg_sq) = self.betas, self.state
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
        step += 1
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Tensor.sqrt() calls MKL, whose last bit depends on the CPU's maker; rsqrt() does not.
        denominator = exp_avg_sq.rsqrt().reciprocal_().div_((1 - beta2 ** int(step)) ** 0.5).add_(EPSILON)
        update = denominator.reciprocal_().mul_(exp_avg).mul_(-lr / (1 - beta1 ** int(step)))
        for parameter, change in zip(parameters, update.split(self.sizes), strict=True):
            if self.weight_decay:
                parameter.mul_(1 - lr * self.weight_decay)
            parameter.add_(change.view_as(parameter))


class Muon(BaseOptimizer):
    """Orthogonalized momentum for weights of convolutions (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    Each step first scales a weight to a constant norm, as github.com/KellerJordan/cifar10-airbench does.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, momentum: float, nesterov: bool) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(weights, lr, [torch.zeros_like(weight) for weight in weights])

    @torch.no_grad()
    def step(self) -> None:
        weights, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        for weight, buffer in zip(weights, self.state, strict=True):
            buffer.mul_(self.momentum).add_(weight.grad)
            update = weight.grad.add(buffer, alpha=self.momentum) if self.nesterov else buffer
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            channels_last = weight.permute(0, 2, 3, 1)  # a view in the order of memory: nothing is copied
            direction = newton_schulz(update.permute(0, 2, 3, 1).flatten(1))
            channels_last.add_(direction.view_as(channels_last), alpha=-lr)


def newton_schulz(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values near 1, by Newton-Schulz iteration (coefficients of Jordan et al., 2024).

    The iteration runs on the product of the matrix with its transpose, which is smaller than the matrix.
    """
    if len(matrix) > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    scaled = matrix / (matrix.norm() + 1e-7)
    gram, factor = scaled @ scaled.T, None
    for _ in range(NEWTON_SCHULZ_STEPS):
        polynomial = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        polynomial.diagonal().add_(3.4445)
        factor = polynomial if factor is None else polynomial @ factor
        gram = polynomial @ gram @ polynomial
    assert factor is not None
    result: Tensor = factor @ scaled
    return result


def lr_factor(schedule: ScheduleName, warmup: float, step: int, steps: int) -> float:
    """The learning rate of a step as a fraction of the highest.

    `one-cycle` (after Smith, 2018, arXiv:1803.09820) is linear: it rises over the fraction `warmup` of the steps, then
    falls to a hundredth.
    """
    if schedule == "constant":
        return 1.0
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1 - 0.99 * (step + 1 - warmup_steps) / max(1, steps - warmup_steps)


def set_lr(optimizers: list[Optimizer], factor: float) -> None:
    """Set every learning rate to a fraction of its initial value, as torch.optim.lr_scheduler.LambdaLR does."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
