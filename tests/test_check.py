"""`python -m stages` checks a whole params file before any stage runs."""

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, WriteParams

from stages.core.params import stage_names


def check(params: Path, *names: str, folder: Path = ROOT) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "stages", "--params", str(params), *names]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.stdout == ""
    return result.returncode, result.stderr.replace(f"{params}: ", "").splitlines()


def test_a_valid_file_prints_nothing() -> None:
    assert check(ROOT / "params.yaml") == (0, [])


def test_each_section_with_errors_is_a_line_that_names_its_keys(params: WriteParams) -> None:
    file = params({"train.epochs": "many", "machine.threads": 0, "export_onnx.opset": 3})
    status, lines = check(file)
    assert status == 1
    assert lines == [
        "machine.threads: input should be greater than or equal to 1, not 0",
        "export_onnx.opset: input should be 18, 19, 20 or 21, not 3",
        "train.epochs: input should be a valid number, not 'many'",
    ]


def test_stages_can_be_named_and_a_name_that_is_no_module_is_skipped(params: WriteParams) -> None:
    file = params({"train.epochs": "many"})
    assert check(file, "download", "preprocess", "made_up") == (0, [])
    assert check(file, "train")[0] == 1


def test_a_renamed_param_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text().replace("validation_fraction", "validation"))
    assert check(file, "preprocess") == (
        1,
        ["preprocess.validation is now called preprocess.validation_fraction: rename it"],
    )


def test_a_stage_without_params_needs_no_section(tmp_path: Path) -> None:
    for package in ("stages", "lockstep"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stages" / "announce.py").write_text(
        '"""Prints a line."""\n'
        "from stages.core.command import echo, run_stage\n\n\n"
        "def announce() -> None:\n"
        '    echo("no params")\n\n\n'
        'if __name__ == "__main__":\n'
        "    run_stage(announce)\n"
    )
    file = ROOT / "params.yaml"
    assert check(file, folder=tmp_path) == (0, [])
    assert check(file, "announce", "download", folder=tmp_path) == (0, [])
    command = [sys.executable, "-m", "stages.announce"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "no params\n", "")


def test_help_names_the_stages_and_describes_every_flag() -> None:
    command = [sys.executable, "-m", "stages", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "python -m stages --params params.yaml" in " ".join(text.split())
    for name in stage_names():
        assert name in text
