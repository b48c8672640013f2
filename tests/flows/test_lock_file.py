"""dvc.lock, which DVC rewrites in place, is whole whatever ends a run; one that a plain `dvc repro` left cut is mended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from repositories import commit, dvc, environment
from ruamel.yaml import YAML
from toys import flow, new_toy, until_none_is_left

CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
FILLERS = 400  # entries that make the writing of dvc.lock last about half a second
slow = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A toy after `dvc repro`, committed, whose dvc.lock takes long to write, and whose last stage is stale."""
    toy = new_toy(tmp_path / "a toy", CHAIN)
    dvc(toy, "repro", "-q")
    text = (toy / "dvc.lock").read_text()
    entry = text[text.index("  quick:") : text.index("  long:")]
    fillers = [entry.replace("quick:", f"filler{number}:", 1) for number in range(FILLERS)]
    (toy / "dvc.lock").write_text("".join([text, *fillers]))
    commit(toy)
    set_text(toy, "other")
    return toy


def set_text(toy: Path, text: str) -> None:
    params = json.loads((toy / "params.yaml").read_text())
    params["long"]["text"] = text
    (toy / "params.yaml").write_text(json.dumps(params, indent=1))


def entries(toy: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(toy / "dvc.lock")["stages"]


def signal_in_the_middle_of_a_write(process: subprocess.Popen[bytes], toy: Path, number: signal.Signals) -> int:
    """Send it once dvc.lock is shorter than it was; its length at that moment."""
    whole = (toy / "dvc.lock").stat().st_size
    while process.poll() is None:
        if (now := (toy / "dvc.lock").stat().st_size) < whole:
            process.send_signal(number)
            return now
    raise AssertionError("dvc.lock was never short")


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_ends_while_dvc_writes_leaves_dvc_lock_whole(large: Path, api: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=large,
        env={**environment(), "PREFECT_API_URL": api, "no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as process:
        signal_in_the_middle_of_a_write(process, large, number)
        until_none_is_left(large, 20)
        process.wait(20)
    assert len(entries(large)) == FILLERS + len(CHAIN)
    assert entries(large)["long"]["params"]["params.yaml"]["long"]["text"] == "other"
    assert dvc(large, "status", "--json").stdout.strip() == "{}"
    assert "long              UpToDate" in flow(large, api=api).stdout
