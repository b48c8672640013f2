"""The fitted temperature: correct where it is known, of the lowest loss, and finite without wrong predictions."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.nn import functional

from stages.training.calibration import fit_temperature


def sample_logits(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits multiplied by the temperature, and labels sampled from the probabilities before."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_known_probabilities_is_found(temperature: float) -> None:
    assert fit_temperature(*sample_logits(temperature)) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, labels = sample_logits(2.0)
    temperature = fit_temperature(logits, labels)
    losses = {
        factor: functional.cross_entropy(logits / (temperature * factor), labels)
        for factor in (0.9, 0.97, 1, 1.03, 1.1)
    }
    assert min(losses, key=lambda factor: float(losses[factor])) == 1


def test_correct_predictions_alone_give_a_finite_temperature() -> None:
    logits = torch.eye(5) * 4
    assert 0.1 < fit_temperature(logits, torch.arange(5)) < 4


def test_the_committed_model_is_calibrated() -> None:
    report = json.loads((Path(ROOT) / "data" / "reports" / "evaluate.json").read_text())
    assert report["calibration_error"] <= 0.005
