"""The same bytes on every x86-64 CPU with AVX2: small runs of all recipes, held against a committed table of hashes."""

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
from stages.core.arithmetic import PORTABLE, cpu_obstacle

RUNS = ROOT / "tests" / "portable_runs.py"
TABLE: dict[str, dict[str, str]] = json.loads((ROOT / "tests" / "portable.json").read_text())
QEMU = ["qemu-x86_64", "-cpu"]
pytestmark = pytest.mark.skipif(bool(cpu_obstacle()), reason=cpu_obstacle() or "possible here")


def plain_environment() -> dict[str, str]:
    """Without what this process has set for itself."""
    threads = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"}
    return {name: value for name, value in os.environ.items() if name not in {*PORTABLE, *threads}}


def run_all(*before: str) -> dict[str, dict[str, str]]:
    """The hashes of each run, in a process started by the words BEFORE; a run that kills its process has none."""
    found: dict[str, dict[str, str]] = {}
    waiting = list(TABLE)
    while waiting:
        done = subprocess.run(
            [*before, sys.executable, str(RUNS), *waiting],
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found |= dict(lines)
        waiting = waiting[len(lines) :]
        if done.returncode == 0:
            assert not waiting, f"no such runs: {waiting}"
        elif waiting:
            print(f"{waiting[0]}: {done.stderr.strip().splitlines()[-1:]}, status {done.returncode}")
            waiting = waiting[1:]
    return found


def differences(found: dict[str, dict[str, str]]) -> dict[str, Any]:
    """By run: the files whose hashes are not the table's."""
    return {
        name: [file for file in {**of, **found.get(name, {})} if of.get(file) != found.get(name, {}).get(file)]
        for name, of in TABLE.items()
        if of != found.get(name)
    }


def test_this_cpu_gives_the_bytes_of_the_table() -> None:
    assert differences(run_all()) == {}, "if the code changed on purpose: python tests/portable_runs.py --write"


def test_the_table_has_every_experiment_network_and_optimizer() -> None:
    listing = (
        "import sys, json; sys.path[:0] = ['tests']; import portable_runs as all; print(json.dumps([*all.runs()]))"
    )
    done = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(TABLE)
    experiments = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
    assert {name for name, changes in experiments.items() if [*changes] != ["machine.arithmetic"]} <= TABLE.keys()


@pytest.mark.emulated
@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("cpu", ["Haswell", "EPYC-Rome"])
def test_an_emulated_cpu_gives_the_bytes_of_the_table(cpu: str) -> None:
    assert differences(run_all(*QEMU, cpu)) == {}


@pytest.mark.emulated
@pytest.mark.timeout(14_400)
def test_an_emulated_cpu_runs_the_whole_pipeline_on_the_digits_to_the_same_bytes(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run_pipeline(here)
    run_pipeline(there, *QEMU, "Haswell")
    files = [path.relative_to(here) for path in sorted((here / "data").rglob("*")) if path.is_file()]
    kept = [path for path in files if path.parts[1] not in ("checkpoints", "measured")]
    assert len(kept) > 20
    assert [path for path in kept if (here / path).read_bytes() != (there / path).read_bytes()] == []


def run_pipeline(folder: Path, *before: str) -> None:
    """Every stage's command of dvc.yaml on the embedded digits. (All 600 steps would take an emulated CPU an hour.)"""
    shutil.copytree(ROOT / "stages", folder / "stages")
    (folder / "data" / "own").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    changes = {"download.dataset": "digits", "train.min_steps": 60, "train.epochs": 0, "evaluate.min_accuracy": 0.5}
    for name, value in changes.items():
        set_param(folder / "params.yaml", name, value)
    for stage in YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"].values():
        python, *words = shlex.split(stage["cmd"])
        assert python == "python"
        command = [*before, sys.executable, *words]
        done = subprocess.run(command, cwd=folder, env=plain_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
