"""Fits the temperature that calibrates the probabilities (Guo et al., 2017, arXiv:1706.04599)."""

from torch import Tensor

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
BISECTION_STEPS = 60


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimizes the cross-entropy of logits / temperature.

    Labels are smoothed by 1 / (n + 2), as Platt (1999) does, so that n correct predictions do not give a temperature of
    zero. The loss is convex in 1 / temperature; bisection finds the zero of its derivative.
    """
    logits, labels = logits.cpu().double(), labels.cpu()  # MPS has no float64
    classes, count = logits.shape[1], len(labels)
    smoothing = 1 / (count + 2)
    true_logit = logits.gather(1, labels[:, None])[:, 0]
    target = (1 - smoothing) * true_logit + smoothing * (logits.sum(1) - true_logit) / (classes - 1)
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        expected = ((logits * middle).softmax(1) * logits).sum(1)
        if float((expected - target).mean()) > 0:
            high = middle
        else:
            low = middle
    return 2 / (low + high)
