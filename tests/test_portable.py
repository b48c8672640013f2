"""The same bytes on every x86-64 CPU with AVX2: small runs of all recipes compared with a committed table of hashes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from flows.dvc.params_file import set_param
from stages.core.arithmetic import PORTABLE_ENV, why_cpu_not_portable

RUNS = ROOT / "tests" / "portable_runs.py"
TABLE: dict[str, dict[str, str]] = json.loads((ROOT / "tests" / "portable.json").read_text())
QEMU = ["qemu-x86_64", "-cpu"]
pytestmark = pytest.mark.skipif(bool(why_cpu_not_portable()), reason=why_cpu_not_portable() or "the CPU supports it")


def plain_environment() -> dict[str, str]:
    """The environment without the variables that this process has set."""
    threads = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"}
    return {name: value for name, value in os.environ.items() if name not in {*PORTABLE_ENV, *threads}}


def run_all(*launcher: str) -> dict[str, dict[str, str]]:
    """The hashes of each run in a process started by LAUNCHER; a run that crashes the process has none."""
    hashes: dict[str, dict[str, str]] = {}
    remaining = list(TABLE)
    while remaining:
        completed = subprocess.run(
            [*launcher, sys.executable, str(RUNS), *remaining],
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in completed.stdout.splitlines()]
        hashes |= dict(lines)
        remaining = remaining[len(lines) :]
        if completed.returncode == 0:
            assert not remaining, f"no such runs: {remaining}"
        elif remaining:
            print(f"{remaining[0]}: {completed.stderr.strip().splitlines()[-1:]}, status {completed.returncode}")
            remaining = remaining[1:]
    return hashes


def find_differences(hashes: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The files of each run whose hashes differ from the table."""
    return {
        run: [
            file for file in {**expected, **hashes.get(run, {})} if expected.get(file) != hashes.get(run, {}).get(file)
        ]
        for run, expected in TABLE.items()
        if expected != hashes.get(run)
    }


def test_this_cpu_gives_the_bytes_of_the_table() -> None:
    assert find_differences(run_all()) == {}, "if the change is intended: python tests/portable_runs.py --write"


def test_the_table_has_every_experiment_network_and_optimizer() -> None:
    listing = (
        "import sys, json; sys.path[:0] = ['tests']; import portable_runs; print(json.dumps([*portable_runs.runs()]))"
    )
    completed = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(completed.stdout) == list(TABLE), "add the missing runs: python tests/portable_runs.py --write"
    experiments = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
    assert {name for name, changes in experiments.items() if [*changes] != ["machine.arithmetic"]} <= TABLE.keys()


@pytest.mark.emulated
@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("cpu", ["Haswell", "EPYC-Rome"])
def test_an_emulated_cpu_gives_the_bytes_of_the_table(cpu: str) -> None:
    assert find_differences(run_all(*QEMU, cpu)) == {}


@pytest.mark.emulated
@pytest.mark.timeout(14_400)
def test_an_emulated_cpu_runs_the_whole_pipeline_on_the_digits_to_the_same_bytes(tmp_path: Path) -> None:
    real, emulated = tmp_path / "real", tmp_path / "emulated"
    run_pipeline(real)
    run_pipeline(emulated, *QEMU, "Haswell")
    files = [path.relative_to(real) for path in sorted((real / "data").rglob("*")) if path.is_file()]
    portable = [path for path in files if path.parts[1] not in ("checkpoints", "measured")]
    assert len(portable) > 20
    assert [path for path in portable if (real / path).read_bytes() != (emulated / path).read_bytes()] == []


def run_pipeline(folder: Path, *launcher: str) -> None:
    """Run every command of dvc.yaml on the embedded digits, with 60 steps: 600 take an hour on an emulated CPU."""
    shutil.copytree(ROOT / "stages", folder / "stages")
    (folder / "data" / "own").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    changes = {"download.dataset": "digits", "train.min_steps": 60, "train.epochs": 0, "evaluate.min_accuracy": 0.5}
    for name, value in changes.items():
        set_param(folder / "params.yaml", name, value)
    for stage in YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"].values():
        python, *words = shlex.split(stage["cmd"])
        assert python == "python"
        command = [*launcher, sys.executable, *words]
        completed = subprocess.run(
            command, cwd=folder, env=plain_environment(), capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
