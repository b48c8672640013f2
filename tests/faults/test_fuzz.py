"""Damaged inputs of every kind end in a result or in one line of the project's own errors: see fuzz.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from counts import fraction, record

FOLDER = Path(__file__).parent
# Inputs of `make test-faults`. A target that needs more time for each has fewer.
INPUTS = {
    "certificate": 12_000,
    "checkpoint": 5_000,
    "dag": 8_000,
    "golden": 8_000,
    "http": 12_000,
    "http_bytes": 5_000,
    "idx": 10_000,
    "image_folder": 4_000,
    "lock_file": 2_000,
    "metadata": 20_000,
    "model_file": 3_000,
    "overrides": 5_000,
    "params": 6_000,
    "picture": 30_000,
    "raw_folder": 6_000,
    "splits": 4_000,
    "statements": 6_000,
    "weights": 4_000,
}
SLOW = ("checkpoint", "http_bytes", "params", "weights")  # they import torch, or start a service


def fuzz(target: str, inputs: int, seed: int) -> dict[str, Any]:
    """The counts of one run of the program, in a process of its own: an input may crash it."""
    path = os.pathsep.join(map(str, (ROOT, FOLDER.parent, FOLDER)))
    command = [sys.executable, str(FOLDER / "fuzz.py"), target, "--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts["outcomes"].values()) == inputs
    assert not counts["failures"], json.dumps(counts["failures"], indent=1)
    return counts


@pytest.mark.parametrize("target", [target for target in INPUTS if target not in SLOW])
def test_damaged_inputs_end_in_a_result_or_in_one_line(target: str) -> None:
    counts = fuzz(target, INPUTS[target] // 50, seed=1)
    assert counts["outcomes"].keys() - {"result"} or target.startswith("http"), "no input was refused"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("target", SLOW)
def test_damaged_inputs_of_slow_targets_end_in_a_result_or_in_one_line(target: str) -> None:
    fuzz(target, INPUTS[target] // 10, seed=1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("target", INPUTS)
def test_many_damaged_inputs(target: str) -> None:
    counts = fuzz(target, max(1, round(INPUTS[target] * fraction())), seed=2)
    record("damaged input", target=target, **{key: value for key, value in counts.items() if key != "target"})
