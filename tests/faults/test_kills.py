"""After SIGKILL and SIGTERM at any moment a plain `dvc repro` gives the results of a run without them: see kills.py."""

from pathlib import Path

import pytest
from counts import fraction, record
from kills import run_campaign

# Kills of `make test-faults`, by what runs the stage and how many processes train together.
KILLS = {("dvc", 1): 130, ("flow", 1): 60, ("dvc", 2): 30, ("deployment", 1): 20}


@pytest.mark.slow
@pytest.mark.ci
def test_some_kills_change_no_result_and_leave_nothing(tmp_path: Path) -> None:
    counts = run_campaign(tmp_path, "dvc", kills=8, processes=1, seed=1)
    assert not counts["failures"], "\n".join(counts["failures"])
    assert counts["kills"] == 8


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("runner", "processes"), KILLS)
def test_many_kills_change_no_result_and_leave_nothing(runner: str, processes: int, tmp_path: Path) -> None:
    kills = max(1, round(KILLS[runner, processes] * fraction()))
    counts = run_campaign(tmp_path, runner, kills, processes, seed=2)
    together = f", train by {processes} processes" if processes > 1 else ""
    record("kill", target=f"under {runner}{together}", **counts)
    assert not counts["failures"], "\n".join(counts["failures"])
    assert counts["kills"] == kills
