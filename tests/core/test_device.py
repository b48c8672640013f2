"""machine.threads governs every library that computes, loaded before or after; and what they compute with."""

import subprocess
import sys

from conftest import ROOT


def test_threads_govern_libraries_that_are_loaded_later_too() -> None:
    program = """
from stages.core.device import prepare_device
from stages.core.params import Machine
prepare_device(Machine(arithmetic="native", device="cpu", threads=1))
import sklearn.manifold, scipy.linalg, torch, threadpoolctl
pools = threadpoolctl.threadpool_info()
assert {pool["user_api"] for pool in pools} >= {"openmp", "blas"}, pools
assert {pool["num_threads"] for pool in pools} == {1}, pools
assert torch.get_num_threads() == 1
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_numbers_too_small_to_be_fast_with_are_zero_in_every_thread() -> None:
    program = """
import torch
from stages.core.device import prepare_device
from stages.core.params import Machine
prepare_device(Machine(arithmetic="native", device="cpu", threads=2))
small = torch.full((1_000_000,), 2e-38)
assert small.count_nonzero() == len(small)
assert (small * 0.1).count_nonzero() == 0
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
