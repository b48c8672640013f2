"""`python -m stages` holds a whole params file against the stages, before any of them starts."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT, Params


def check(params: Path, *names: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "stages", "--params", str(params), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.replace(f"{params}: ", "").splitlines()


def test_what_is_right_is_passed_in_silence() -> None:
    assert check(ROOT / "params.yaml") == (0, [])


def test_every_wrong_section_is_a_line_that_names_its_keys(params: Params) -> None:
    file = params({"train.epochs": "many", "machine.threads": 0, "export_onnx.opset": 3})
    status, lines = check(file)
    assert status == 1
    assert lines == [
        "machine.threads: input should be greater than or equal to 1, not 0",
        "export_onnx.opset: input should be 18, 19, 20 or 21, not 3",
        "train.epochs: input should be a valid number, not 'many'",
    ]


def test_the_stages_to_ask_can_be_named_and_a_stage_that_is_no_module_has_nothing_to_say(params: Params) -> None:
    file = params({"train.epochs": "many"})
    assert check(file, "download", "preprocess", "made_up") == (0, [])
    assert check(file, "train")[0] == 1
