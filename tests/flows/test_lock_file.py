"""DVC rewrites dvc.lock in place: no run of the flow truncates it, and one that `dvc repro` truncated is repaired."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repositories import command_environment, commit_all, run_command, run_dvc
from ruamel.yaml import YAML
from toys import create_toy_repository, read_trace, run_flow_module, wait_until_no_processes

from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile

CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
FILLERS = 400  # entries that make the writing of dvc.lock last about half a second
NOWHERE = "http://127.0.0.1:9/api"
CAUSE = "a DVC command was killed while it wrote it"


@pytest.fixture(scope="module")
def template_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy after its first `dvc repro`, committed. Copy it; do not change it."""
    toy_repository = create_toy_repository(tmp_path_factory.mktemp("ran") / "toy", CHAIN)
    run_dvc(toy_repository, "repro", "-q")
    commit_all(toy_repository)
    return toy_repository


@pytest.fixture
def finished_toy(template_toy: Path, tmp_path: Path) -> Path:
    toy_repository = Path(shutil.copytree(template_toy, tmp_path / "a toy", symlinks=True))
    (toy_repository / "trace").unlink()
    return toy_repository


@pytest.fixture
def large_toy(finished_toy: Path) -> Path:
    """The toy with a dvc.lock that takes long to write, committed; its last stage is stale."""
    text = (finished_toy / "dvc.lock").read_text()
    entry = text[text.index("  quick:") : text.index("  long:")]
    fillers = [entry.replace("quick:", f"filler{number}:", 1) for number in range(FILLERS)]
    (finished_toy / "dvc.lock").write_text("".join([text, *fillers]))
    commit_all(finished_toy)
    set_text(finished_toy, "long", "other")
    return finished_toy


def set_text(toy_repository: Path, stage: str, text: str) -> None:
    params = json.loads((toy_repository / "params.yaml").read_text())
    params[stage]["text"] = text
    (toy_repository / "params.yaml").write_text(json.dumps(params, indent=1))


def entries(toy_repository: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(toy_repository / "dvc.lock")["stages"]


def signal_while_it_is_written(process: subprocess.Popen[bytes], toy_repository: Path, number: signal.Signals) -> None:
    """Send it once dvc.lock is shorter than it was."""
    complete = (toy_repository / "dvc.lock").stat().st_size
    while (toy_repository / "dvc.lock").stat().st_size == complete:
        assert process.poll() is None, "it has ended, and dvc.lock was never short"
    process.send_signal(number)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_dvc_writes_leaves_a_complete_dvc_lock(
    large_toy: Path, prefect_api_url: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=large_toy,
        env={**command_environment(), "PREFECT_API_URL": prefect_api_url, "no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as process:
        signal_while_it_is_written(process, large_toy, number)
        wait_until_no_processes(large_toy, 20)
        process.wait(20)
    assert len(entries(large_toy)) == FILLERS + len(CHAIN)
    assert entries(large_toy)["long"]["params"]["params.yaml"]["long"]["text"] == "other"
    assert run_dvc(large_toy, "status", "--json").stdout.strip() == "{}"
    assert "long              UpToDate" in run_flow_module(large_toy, prefect_api_url=prefect_api_url).stdout


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lock_that_dvc_repro_truncated_is_repaired_and_no_stage_runs_again(
    large_toy: Path, prefect_api_url: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        ["dvc", "repro", "-q"], cwd=large_toy, env=command_environment(), stderr=subprocess.DEVNULL
    ) as other_repro:
        signal_while_it_is_written(other_repro, large_toy, number)
    truncated = (large_toy / "dvc.lock").read_bytes()
    assert "long" in read_trace(large_toy)
    (large_toy / "trace").unlink()

    plan = run_flow_module(large_toy, "--plan", prefect_api_url=NOWHERE, status=1)
    assert (plan.stdout, len(plan.stderr.splitlines())) == ("", 1)
    assert plan.stderr.startswith("pipeline: dvc.lock ")
    assert "run without --plan, which repairs it, or `git checkout dvc.lock`" in plan.stderr
    assert (large_toy / "dvc.lock").read_bytes() == truncated

    output = run_flow_module(large_toy, prefect_api_url=prefect_api_url).stdout
    (line,) = [line for line in output.splitlines() if CAUSE in line]
    assert line.startswith("dvc.lock is empty" if not truncated else "dvc.lock ends ")
    assert "From DVC's run cache: params long.text long -> other" in output
    assert read_trace(large_toy) == []
    assert len(entries(large_toy)) == FILLERS + len(CHAIN)
    assert run_dvc(large_toy, "status", "--json").stdout.strip() == "{}"


def repair(toy_repository: Path) -> list[str]:
    messages: list[str] = []
    asyncio.run(repair_lockfile(toy_repository, read_dag(toy_repository), messages.append))
    return messages


def test_a_lock_truncated_at_any_byte_is_restored(finished_toy: Path) -> None:
    complete = (finished_toy / "dvc.lock").read_bytes()
    ends = [place + 1 for place, byte in enumerate(complete) if byte == ord("\n")]
    between = complete.index(b"  long:")
    for length in sorted({*ends[:-1], *range(0, len(complete), 29)} - {between}):
        (finished_toy / "dvc.lock").write_bytes(complete[:length])
        messages = repair(finished_toy)
        assert (finished_toy / "dvc.lock").read_bytes() == complete, (
            f"cut after {length} bytes: {complete[:length][-80:]!r}"
        )
        assert len(messages) == 1, length
        assert ("complete entries" in messages[0]) == (length > between)


def test_a_complete_lock_is_not_changed_even_if_it_differs_from_the_commit(finished_toy: Path) -> None:
    lock, graph = finished_toy / "dvc.lock", finished_toy / "dvc.yaml"
    complete = lock.read_text()
    more = json.loads(graph.read_text())
    more["stages"]["long"]["outs"].append("more.txt")
    for number, (text, stages) in enumerate(
        [
            (complete, graph.read_text()),
            (complete, json.dumps(more)),
            (complete[: complete.index("  long:")], graph.read_text()),
            (
                complete.replace("  long:", "<<<<<<< HEAD\n  long:").replace(
                    "size: 1", "size: 1\n=======\n>>>>>>> x\n"
                ),
                None,
            ),
        ]
    ):
        lock.write_text(text)
        graph.write_text(stages or graph.read_text())
        assert repair(finished_toy) == [], number
        assert lock.read_text() == text
    lock.unlink()
    assert repair(finished_toy) == []
    assert not lock.exists()


def test_complete_entries_before_the_truncated_one_are_kept(finished_toy: Path) -> None:
    set_text(finished_toy, "quick", "newer")
    run_dvc(finished_toy, "repro", "-q")
    text = (finished_toy / "dvc.lock").read_text()
    (finished_toy / "dvc.lock").write_text(text[:-100])
    assert repair(finished_toy) == [
        f"dvc.lock ends in the middle of long: {CAUSE}. Repaired: the complete entries are kept, the others are now as "
        "in the last commit. DVC's run cache has what ran since"
    ]
    assert entries(finished_toy)["quick"]["params"]["params.yaml"]["quick"]["text"] == "newer"
    assert (finished_toy / "dvc.lock").read_text()[: text.index("  long:")] == text[: text.index("  long:")]
    run_dvc(finished_toy, "repro", "-q")
    assert (finished_toy / "dvc.lock").read_text() == text


def test_the_plan_names_a_stage_that_is_only_in_the_committed_lock(finished_toy: Path) -> None:
    text = (finished_toy / "dvc.lock").read_text()
    (finished_toy / "dvc.lock").write_text(text[: text.index("  long:")])
    lines = run_flow_module(finished_toy, "--plan", prefect_api_url=NOWHERE).stdout.splitlines()
    assert lines == ["quick  up to date", "long   missing from dvc.lock, present in the last commit's"]


@pytest.mark.parametrize("git", [True, False])
def test_without_a_committed_lock_one_line_says_what_to_do(finished_toy: Path, prefect_api_url: str, git: bool) -> None:
    if git:
        run_command(finished_toy, "git", "rm", "-q", "--cached", "dvc.lock")
        run_command(finished_toy, "git", "commit", "-qm", "without")
    else:
        shutil.rmtree(finished_toy / ".git")
        run_dvc(finished_toy, "config", "core.no_scm", "true")
    (finished_toy / "dvc.lock").write_text("")
    expected = run_flow_module(finished_toy, prefect_api_url=prefect_api_url, status=1).stdout.strip()
    assert expected == (
        f"dvc.lock is empty: {CAUSE}, and the last commit has no complete one. Delete it and run again: DVC's "
        "run cache restores what has run here"
    )
    assert (finished_toy / "dvc.lock").exists()
    (finished_toy / "dvc.lock").unlink()
    assert (
        run_flow_module(finished_toy, prefect_api_url=prefect_api_url).stdout.count("Restored after") == 4
    )  # each in its log and in the table
    assert read_trace(finished_toy) == []
