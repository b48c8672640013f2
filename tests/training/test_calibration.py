"""One temperature: found where it is known, the best there is, and finite where no label is wrong."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.nn import functional

from stages.training.calibration import fit_temperature


def drawn(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too large or too small by this factor, and labels drawn from the probabilities that they mean."""
    generator = torch.Generator().manual_seed(0)
    true = 3 * torch.randn(count, 10, generator=generator)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    return true * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_it_finds_the_temperature_that_the_labels_were_drawn_with(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, labels = drawn(2.0)
    found = fit_temperature(logits, labels)
    losses = {
        factor: functional.cross_entropy(logits / (found * factor), labels) for factor in (0.9, 0.97, 1, 1.03, 1.1)
    }
    assert min(losses, key=lambda factor: float(losses[factor])) == 1


def test_labels_without_a_mistake_leave_it_finite() -> None:
    logits = torch.eye(5) * 4
    assert 0.1 < fit_temperature(logits, torch.arange(5)) < 4


def test_the_committed_model_is_calibrated() -> None:
    report = json.loads((Path(ROOT) / "data" / "reports" / "evaluate.json").read_text())
    assert report["calibration_error"] <= 0.005
