"""Portable arithmetic is set before libraries load; where it is impossible or contradicted, one line says so."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from stages.core import arithmetic
from stages.core.arithmetic import PORTABLE_ENV, is_stage_command, set_arithmetic_env, why_cpu_not_portable

TRAIN_PATHS = {
    "weights": "w",
    "history": "h",
    "trace": "t",
    "report": "r",
    "environment": "e.json",
    "checkpoints": "c",
    "pretrained": "p",
}
Params = Callable[..., Path]


def train(
    folder: Path, params: Path, splits: Path, *before: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m stages.train` in an environment that has none of the variables, but for these."""
    flags = [word for name, file in TRAIN_PATHS.items() for word in (f"--{name}", str(folder / file))]
    clean = {name: value for name, value in os.environ.items() if name not in PORTABLE_ENV}
    command = [
        *(before or [sys.executable]),
        "-m",
        "stages.train",
        f"--params={params}",
        "--splits",
        str(splits),
        *flags,
    ]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False)


def read_record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "e.json").read_text())
    return content


SHORT = {"train.epochs": 0, "train.min_steps": 1, "train.points": 1}
needs_portable = pytest.mark.skipif(bool(arithmetic.why_cpu_not_portable()), reason="not on this CPU")


@needs_portable
def test_a_stage_by_hand_and_by_torchrun_computes_portably(stage_outputs: Path, tmp_path: Path, params: Params) -> None:
    assert train(tmp_path, params(SHORT), stage_outputs / "splits").returncode == 0
    first = (tmp_path / "w").read_bytes()
    assert read_record(tmp_path).keys() == {"arithmetic", "device", "threads", "libraries"}
    assert read_record(tmp_path)["arithmetic"] == "portable"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    result = train(tmp_path, params(SHORT), stage_outputs / "splits", *torchrun)
    assert result.returncode == 0, result.stderr
    assert read_record(tmp_path)["arithmetic"] == "portable"
    assert (tmp_path / "w").read_bytes() == first


def test_native_arithmetic_records_the_cpu(stage_outputs: Path, tmp_path: Path, params: Params) -> None:
    result = train(
        tmp_path, params({**SHORT, "machine.arithmetic": "native"}), stage_outputs / "splits", OPENBLAS_CORETYPE="Zen"
    )
    assert result.returncode == 0, result.stderr
    record = read_record(tmp_path)
    assert record["arithmetic"] == "native"
    assert record["cpu"] == arithmetic.describe_cpu() != ""
    assert record["instruction_set"]
    assert "not_portable" not in record


@needs_portable
@pytest.mark.parametrize("name", PORTABLE_ENV)
def test_a_contradicting_variable_is_one_line(name: str, stage_outputs: Path, tmp_path: Path, params: Params) -> None:
    result = train(tmp_path, params(SHORT), stage_outputs / "splits", **{name: "default"})
    assert result.returncode == 1
    assert result.stderr == (
        f"train: machine.arithmetic: portable needs {name}={PORTABLE_ENV[name]}, but the environment sets it to "
        "default: unset it, or set machine.arithmetic to native\n"
    )
    assert not (tmp_path / "w").exists()


@needs_portable
def test_variables_that_the_user_has_set_stay() -> None:
    environment = {"MKL_CBWR": "compatible", "GOMP_SPINCOUNT": "7"}
    set_arithmetic_env(["python", "-m", "stages.train", "--params", str(ROOT / "params.yaml")], environment)
    assert environment == {**PORTABLE_ENV, "MKL_CBWR": "compatible", "GOMP_SPINCOUNT": "7"}


@needs_portable
def test_a_program_without_the_variables_is_told_which_to_set(
    stage_outputs: Path, tmp_path: Path, params: Params
) -> None:
    program = f"""
from pathlib import Path
from stages.core.device import prepare_device
from stages.core.params import Machine, read_section
prepare_device(read_section(Path({str(params(SHORT))!r}), "machine", Machine))
"""
    clean = {name: value for name, value in os.environ.items() if name not in PORTABLE_ENV}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )
    assert "needs ATEN_CPU_CAPABILITY=avx2 before torch is imported: run the stage as a command" in result.stderr


def test_where_it_is_impossible_the_stage_says_so_records_it_and_goes_on(
    stage_outputs: Path,
    tmp_path: Path,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from stages.train import train as stage

    monkeypatch.setattr(arithmetic, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("vendor_id : OldMaker\nmodel name : Old One\nflags : fpu sse2\n\nvendor_id : x\n")
    arithmetic.cpu_fields.cache_clear()
    monkeypatch.delenv("MKL_CBWR", raising=False)
    paths = {name: tmp_path / file for name, file in TRAIN_PATHS.items()}
    try:
        stage(params=params(SHORT), splits=stage_outputs / "splits", **paths)
    finally:
        arithmetic.cpu_fields.cache_clear()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "portable" in line]
    assert line.startswith("machine.arithmetic: portable is not possible here, since the CPU has no AVX2")
    record = read_record(tmp_path)
    assert (record["arithmetic"], record["not_portable"]) == ("native", "the CPU has no AVX2")
    assert record["cpu"].startswith("OldMaker, Old One, features ")


def test_on_a_gpu_or_mps_it_is_impossible() -> None:
    import torch

    from stages.core.device import environment_record, why_not_portable
    from stages.core.params import Machine

    machine = Machine(arithmetic="portable", device="auto", threads=1)
    assert why_not_portable(machine, torch.device("cpu")) == arithmetic.why_cpu_not_portable()
    obstacle = arithmetic.why_cpu_not_portable() or "the device is mps"
    assert why_not_portable(machine, torch.device("mps")) == obstacle
    record = environment_record(machine, torch.device("mps"))
    assert (record["arithmetic"], record["device"], record["not_portable"]) == ("native", "mps", obstacle)
    assert record["cpu"] == arithmetic.describe_cpu()


def test_a_cpu_of_arm_is_described_by_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "CPUINFO", tmp_path / "cpuinfo")
    described = []
    for part in ("0xd0c", "0xd40"):
        text = f"processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
        (tmp_path / "cpuinfo").write_text(text)
        arithmetic.cpu_fields.cache_clear()
        described.append(arithmetic.describe_cpu())
    arithmetic.cpu_fields.cache_clear()
    assert described[0].startswith("CPU implementer 0x41, CPU part 0xd0c, features ")
    assert described[0] != described[1]


def test_native_arithmetic_sets_only_how_threads_wait(params: Params) -> None:
    environment: dict[str, str] = {}
    set_arithmetic_env(
        ["python", "-m", "stages.train", f"--params={params({'machine.arithmetic': 'native'})}"], environment
    )
    assert environment == arithmetic.OPENMP_SPIN


@pytest.mark.parametrize(
    ("system", "machine", "flags", "obstacle"),
    [
        ("Linux", "x86_64", "fpu avx avx2 fma", ""),
        ("Linux", "x86_64", "fpu avx", "the CPU has no AVX2"),
        ("Linux", "aarch64", "", "the CPU is aarch64, not x86-64"),
        ("Darwin", "arm64", "", "the system is Darwin, not Linux"),
    ],
)
def test_portable_is_for_linux_on_x86_64_with_avx2(
    system: str, machine: str, flags: str, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(arithmetic, "cpu_fields", lambda: {"flags": flags})
    assert why_cpu_not_portable() == obstacle


def test_only_the_command_of_a_stage_is_configured() -> None:
    assert is_stage_command(["python", "-u", "-m", "stages.train", "--params", "p"])
    assert not is_stage_command(["python", "-m", "pytest", "stages.train"])
    assert not is_stage_command(["python", "-c", "import stages.train"])
