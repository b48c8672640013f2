"""The reproducibility alarm rings when a byte differs, and knows when the machine is another."""

import json
import os
from pathlib import Path

import pytest
from repositories import commit, dvc
from toys import ask, flow, last_run, new_toy

pytestmark = [pytest.mark.slow, pytest.mark.ci]
# Its bytes depend on where it runs, and if told so on when.
MAKE = """import json, os, sys, time
from pathlib import Path
if __name__ == "__main__":
    machine = os.environ.get("TOY_MACHINE", "AVX512")
    text = machine + (str(time.time_ns()) if "TOY_CHANCE" in os.environ else "") + os.environ.get("TOY_TEXT", "")
    Path("make.txt").write_text(text)
    Path("environment.json").write_text(json.dumps({"instruction_set": machine, "threads": 1, "libraries": {}}))
    accuracy = 0.9 + float(os.environ.get("TOY_GAIN", "0"))
    Path("score.json").write_text(json.dumps({"accuracy": accuracy, "images": 10}))
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A toy whose first stage records where it ran, after its committed run."""
    toy = new_toy(tmp_path / "a toy", {"make": [], "left": ["make"]})
    (toy / "stages" / "make.py").write_text(MAKE)
    content = json.loads((toy / "dvc.yaml").read_text())
    content["stages"]["make"]["outs"] += [{"environment.json": {"cache": False}}]
    content["stages"]["make"]["metrics"] = [{"score.json": {"cache": False}}]
    (toy / "dvc.yaml").write_text(json.dumps(content))
    dvc(toy, "repro")
    commit(toy)
    return toy


def audit(toy: Path, api: str, status: int, *words: str, **told: str) -> tuple[str, str]:
    """The name and message of the audit's state, where the stages are told so."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        print(flow(toy, *words, api=api, status=status, module="flows.audit").stdout)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    state = last_run(api)["state"]
    return state["name"], state["message"]


def test_the_same_bytes_pass_and_the_tree_and_cache_are_left_alone(recorded: Path, api: str) -> None:
    cached = sorted((recorded / ".dvc" / "cache").rglob("*"))
    (recorded / "left.txt").write_text("a person is at it")
    assert audit(recorded, api, 0) == ("Reproduced", "All 4 outputs are those of dvc.lock to the last byte")
    assert sorted((recorded / ".dvc" / "cache").rglob("*")) == cached
    assert (recorded / "left.txt").read_text() == "a person is at it"
    (report,) = ask(api, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-audit"]}})
    assert "| left.txt | " in report["data"]


def test_another_byte_on_the_same_machine_fails_and_is_named(recorded: Path, api: str) -> None:
    name, message = audit(recorded, api, 1, TOY_TEXT="!")
    assert name == "Failed"
    assert message == "Bytes differ from those of dvc.lock: make.txt, left.txt"


def test_on_another_machine_two_runs_must_be_equal_and_the_metrics_near(recorded: Path, api: str) -> None:
    name, message = audit(recorded, api, 0, TOY_MACHINE="NEON", TOY_GAIN="0.001")
    assert name == "Reproduced"
    assert "Two runs are equal to the last byte, and metrics within 0.005" in message
    assert "(instruction_set AVX512 -> NEON)" in message

    name, message = audit(recorded, api, 1, "--tolerance", "0.0001", TOY_MACHINE="NEON", TOY_GAIN="0.001")
    assert (name, message.split(", on")[0]) == ("Failed", "Metrics are more than 0.0001 away")
    assert message.endswith("score.accuracy 0.9 -> 0.901")

    name, message = audit(recorded, api, 1, TOY_MACHINE="NEON", TOY_CHANCE="1")
    assert name == "Failed"
    assert message.startswith("Two runs differ from each other")
    assert message.endswith("make.txt, left.txt")


def test_a_stage_that_fails_in_the_audit_is_no_difference_but_a_failure(recorded: Path, api: str) -> None:
    name, message = audit(recorded, api, 1, TOY_GAIN="no number")
    assert name == "Failed"
    assert message.startswith("A stage failed, so nothing was compared: make failed")
