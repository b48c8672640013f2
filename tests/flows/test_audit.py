"""The audit fails when a byte differs, and compares two runs when the machine is another."""

import json
import os
from pathlib import Path

import pytest
from repositories import DIGITS_PARAMS, commit_all, create_project, run_dvc
from toys import create_toy_repository, last_run, post_api, run_flow_module

pytestmark = [pytest.mark.slow, pytest.mark.ci]
# Its bytes depend on the environment variables TOY_*, and with TOY_CHANCE on the time.
MAKE = """import json, os, sys, time
from pathlib import Path
if __name__ == "__main__":
    machine = os.environ.get("TOY_MACHINE", "AVX512")
    text = machine + (str(time.time_ns()) if "TOY_CHANCE" in os.environ else "") + os.environ.get("TOY_TEXT", "")
    Path("make.txt").write_text(text)
    cpu = {"cpu": os.environ["TOY_CPU"]} if "TOY_CPU" in os.environ else {}
    record = {"instruction_set": machine, **cpu, "threads": 1, "libraries": {}}
    Path("environment.json").write_text(json.dumps(record))
    accuracy = 0.9 + float(os.environ.get("TOY_GAIN", "0"))
    Path("score.json").write_text(json.dumps({"accuracy": accuracy, "images": 10}))
"""


@pytest.fixture
def audited_toy(tmp_path: Path) -> Path:
    """A toy whose first stage records where it ran, after its committed run."""
    toy_repository = create_toy_repository(tmp_path / "a toy", {"make": [], "left": ["make"]})
    (toy_repository / "stages" / "make.py").write_text(MAKE)
    content = json.loads((toy_repository / "dvc.yaml").read_text())
    content["stages"]["make"]["outs"] += [{"environment.json": {"cache": False}}]
    content["stages"]["make"]["metrics"] = [{"score.json": {"cache": False}}]
    (toy_repository / "dvc.yaml").write_text(json.dumps(content))
    run_dvc(toy_repository, "repro")
    commit_all(toy_repository)
    return toy_repository


def run_audit(
    toy_repository: Path, prefect_api_url: str, status: int, *arguments: str, **variables: str
) -> tuple[str, str]:
    """Run the audit with these environment variables; the name and message of its state."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        print(
            run_flow_module(
                toy_repository, *arguments, prefect_api_url=prefect_api_url, status=status, module="flows.audit"
            ).stdout
        )
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    state = last_run(prefect_api_url)["state"]
    return state["name"], state["message"]


def test_the_same_bytes_pass_and_the_project_and_its_cache_are_unchanged(
    audited_toy: Path, prefect_api_url: str
) -> None:
    cache = sorted((audited_toy / ".dvc" / "cache").rglob("*"))
    (audited_toy / "left.txt").write_text("an uncommitted change")
    assert run_audit(audited_toy, prefect_api_url, 0) == ("Reproduced", "All 4 outputs have the same bytes as dvc.lock")
    assert sorted((audited_toy / ".dvc" / "cache").rglob("*")) == cache
    assert (audited_toy / "left.txt").read_text() == "an uncommitted change"
    (report,) = post_api(prefect_api_url, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-audit"]}})
    assert "| left.txt | " in report["data"]


def test_another_byte_on_the_same_machine_fails_and_is_named(audited_toy: Path, prefect_api_url: str) -> None:
    name, message = run_audit(audited_toy, prefect_api_url, 1, TOY_TEXT="!")
    assert name == "Failed"
    assert message == "Bytes differ from those of dvc.lock: make.txt, left.txt; it begins in make"


def test_on_another_machine_two_runs_must_be_equal_and_the_metrics_near(
    audited_toy: Path, prefect_api_url: str
) -> None:
    name, message = run_audit(audited_toy, prefect_api_url, 0, TOY_MACHINE="NEON", TOY_GAIN="0.001")
    assert name == "Reproduced"
    assert "Two runs gave the same bytes, and metrics within 0.005" in message
    assert "(instruction_set AVX512 -> NEON)" in message

    name, message = run_audit(
        audited_toy, prefect_api_url, 1, "--tolerance", "0.0001", TOY_MACHINE="NEON", TOY_GAIN="0.001"
    )
    assert (name, message.split(", on")[0]) == ("Failed", "Metrics differ by more than 0.0001 from the committed ones")
    assert message.endswith("score.accuracy 0.9 -> 0.901")

    name, message = run_audit(audited_toy, prefect_api_url, 1, TOY_MACHINE="NEON", TOY_CHANCE="1")
    assert name == "Failed"
    assert message.startswith("Two runs differ from each other")
    assert message.endswith("make.txt, left.txt; it begins in make")


def test_a_cpu_that_native_arithmetic_does_not_share_is_another_machine(
    audited_toy: Path, prefect_api_url: str
) -> None:
    name, message = run_audit(audited_toy, prefect_api_url, 0, TOY_CPU="OtherMaker", TOY_TEXT="!")
    assert name == "Reproduced"
    assert "(cpu nothing -> OtherMaker)" in message


def test_a_weight_that_changes_by_one_bit_in_step_300_is_located(tmp_path: Path, prefect_api_url: str) -> None:
    project = create_project(tmp_path / "project", {**DIGITS_PARAMS, "train.epochs": 0, "train.min_steps": 320})
    run_dvc(project, "repro")
    commit_all(project)
    source = project / "stages" / "train.py"
    after_step = "        lr = factor * section.learning_rate\n"
    change = """        if step + 1 == 300:
            bias = network.head.bias.data[:1]
            bias.copy_(torch.nextafter(bias, bias + 1))
"""
    assert source.read_text().count(after_step) == 1
    source.write_text(source.read_text().replace(after_step, change + after_step))
    commit_all(project)
    name, message = run_audit(project, prefect_api_url, 1)
    assert name == "Failed"
    assert message.startswith("Bytes differ from those of dvc.lock: data/model/weights.safetensors, ")
    assert message.endswith(
        "it begins in train, between step 290 and step 300; tensors that differ: 1 of 9, "
        "the first in the network head.bias"
    )


def test_a_failed_stage_fails_the_audit_without_a_comparison(audited_toy: Path, prefect_api_url: str) -> None:
    name, message = run_audit(audited_toy, prefect_api_url, 1, TOY_GAIN="no number")
    assert name == "Failed"
    assert message.startswith("A stage failed, so nothing was compared: make failed")
