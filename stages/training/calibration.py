"""Temperature scaling (Guo et al., 2017, arXiv:1706.04599): one number that calibrates a network's probabilities."""

from torch import Tensor

LOWEST, HIGHEST = 0.01, 100.0
HALVINGS = 60


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the cross-entropy of logits / temperature.

    Labels are smoothed by one in n + 2, after Platt (1999), so that n labels without a mistake do not make it zero.
    The loss is convex in 1 / temperature; the zero of its derivative is found by bisection.
    """
    logits, labels = logits.cpu().double(), labels.cpu()  # MPS has no float64
    classes, count = logits.shape[1], len(labels)
    smoothing = 1 / (count + 2)
    true = logits.gather(1, labels[:, None])[:, 0]
    wanted = (1 - smoothing) * true + smoothing * (logits.sum(1) - true) / (classes - 1)
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        factor = (low + high) / 2
        expected = ((logits * factor).softmax(1) * logits).sum(1)
        if float((expected - wanted).mean()) > 0:
            high = factor
        else:
            low = factor
    return 2 / (low + high)
