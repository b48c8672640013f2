"""dvc.lock, which DVC rewrites in place: no end of a run cuts it, and one that `dvc repro` left cut is mended."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repositories import commit, dvc, environment, run
from ruamel.yaml import YAML
from toys import flow, new_toy, trace, until_none_is_left

from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile

CHAIN: dict[str, list[str]] = {"quick": [], "long": ["quick"]}
FILLERS = 400  # entries that make the writing of dvc.lock last about half a second
NOWHERE = "http://127.0.0.1:9/api"
HOW = "a DVC command was killed while it wrote it"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy after its first `dvc repro`, committed. Copy it; do not change it."""
    toy = new_toy(tmp_path_factory.mktemp("ran") / "toy", CHAIN)
    dvc(toy, "repro", "-q")
    commit(toy)
    return toy


@pytest.fixture
def done(ran: Path, tmp_path: Path) -> Path:
    toy = Path(shutil.copytree(ran, tmp_path / "a toy", symlinks=True))
    (toy / "trace").unlink()
    return toy


@pytest.fixture
def large(done: Path) -> Path:
    """The toy with a dvc.lock that takes long to write, committed; its last stage is stale."""
    text = (done / "dvc.lock").read_text()
    entry = text[text.index("  quick:") : text.index("  long:")]
    fillers = [entry.replace("quick:", f"filler{number}:", 1) for number in range(FILLERS)]
    (done / "dvc.lock").write_text("".join([text, *fillers]))
    commit(done)
    set_text(done, "long", "other")
    return done


def set_text(toy: Path, stage: str, text: str) -> None:
    params = json.loads((toy / "params.yaml").read_text())
    params[stage]["text"] = text
    (toy / "params.yaml").write_text(json.dumps(params, indent=1))


def entries(toy: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(toy / "dvc.lock")["stages"]


def signal_while_it_is_written(process: subprocess.Popen[bytes], toy: Path, number: signal.Signals) -> None:
    """Send it once dvc.lock is shorter than it was."""
    whole = (toy / "dvc.lock").stat().st_size
    while (toy / "dvc.lock").stat().st_size == whole:
        assert process.poll() is None, "it has ended, and dvc.lock was never short"
    process.send_signal(number)


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
        signal_while_it_is_written(process, large, number)
        until_none_is_left(large, 20)
        process.wait(20)
    assert len(entries(large)) == FILLERS + len(CHAIN)
    assert entries(large)["long"]["params"]["params.yaml"]["long"]["text"] == "other"
    assert dvc(large, "status", "--json").stdout.strip() == "{}"
    assert "long              UpToDate" in flow(large, api=api).stdout


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_plain_repro_that_was_ended_left_is_mended_and_no_stage_runs_again(
    large: Path, api: str, number: signal.Signals
) -> None:
    with subprocess.Popen(["dvc", "repro", "-q"], cwd=large, env=environment(), stderr=subprocess.DEVNULL) as person:
        signal_while_it_is_written(person, large, number)
    left = (large / "dvc.lock").read_bytes()
    assert "long" in trace(large)
    (large / "trace").unlink()

    refused = flow(large, "--plan", api=NOWHERE, status=1)
    assert (refused.stdout, len(refused.stderr.splitlines())) == ("", 1)
    assert refused.stderr.startswith("pipeline: dvc.lock ")
    assert "run without --plan, which repairs it, or `git checkout dvc.lock`" in refused.stderr
    assert (large / "dvc.lock").read_bytes() == left

    mended = flow(large, api=api).stdout
    (line,) = [line for line in mended.splitlines() if HOW in line]
    assert line.startswith("dvc.lock is empty" if not left else "dvc.lock ends ")
    assert "From DVC's run cache: params long.text long -> other" in mended
    assert trace(large) == []
    assert len(entries(large)) == FILLERS + len(CHAIN)
    assert dvc(large, "status", "--json").stdout.strip() == "{}"


def mend(toy: Path) -> list[str]:
    said: list[str] = []
    asyncio.run(repair_lockfile(toy, read_dag(toy), said.append))
    return said


def test_a_lock_that_is_cut_anywhere_becomes_what_it_was(done: Path) -> None:
    whole = (done / "dvc.lock").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    between = whole.index(b"  long:")
    for length in sorted({*ends[:-1], *range(0, len(whole), 29)} - {between}):
        (done / "dvc.lock").write_bytes(whole[:length])
        said = mend(done)
        assert (done / "dvc.lock").read_bytes() == whole, f"cut after {length} bytes: {whole[:length][-80:]!r}"
        assert len(said) == 1, length
        assert ("entries before" in said[0]) == (length > between)


def test_a_whole_lock_is_left_as_it_is_also_one_that_a_person_changed(done: Path) -> None:
    lock, graph = done / "dvc.lock", done / "dvc.yaml"
    whole = lock.read_text()
    more = json.loads(graph.read_text())
    more["stages"]["long"]["outs"].append("more.txt")
    for case, (text, stages) in enumerate(
        [
            (whole, graph.read_text()),
            (whole, json.dumps(more)),
            (whole[: whole.index("  long:")], graph.read_text()),
            (
                whole.replace("  long:", "<<<<<<< HEAD\n  long:").replace("size: 1", "size: 1\n=======\n>>>>>>> x\n"),
                None,
            ),
        ]
    ):
        lock.write_text(text)
        graph.write_text(stages or graph.read_text())
        assert mend(done) == [], case
        assert lock.read_text() == text
    lock.unlink()
    assert mend(done) == []
    assert not lock.exists()


def test_the_entries_before_the_cut_are_kept_as_they_are(done: Path) -> None:
    set_text(done, "quick", "newer")
    dvc(done, "repro", "-q")
    text = (done / "dvc.lock").read_text()
    (done / "dvc.lock").write_text(text[:-100])
    assert mend(done) == [
        f"dvc.lock ends in the middle of long: {HOW}; repaired: kept the entries before, took the others from the "
        "last commit; DVC's run cache has what ran since"
    ]
    assert entries(done)["quick"]["params"]["params.yaml"]["quick"]["text"] == "newer"
    assert (done / "dvc.lock").read_text()[: text.index("  long:")] == text[: text.index("  long:")]
    dvc(done, "repro", "-q")
    assert (done / "dvc.lock").read_text() == text


def test_a_stage_that_dvc_lock_has_lost_as_a_whole_is_named_in_the_plan(done: Path) -> None:
    text = (done / "dvc.lock").read_text()
    (done / "dvc.lock").write_text(text[: text.index("  long:")])
    lines = flow(done, "--plan", api=NOWHERE).stdout.splitlines()
    assert lines == ["quick  up to date", "long   missing from dvc.lock, present in the last commit's"]


@pytest.mark.parametrize("git", [True, False])
def test_without_a_commit_that_has_it_one_line_says_how_and_that_works(done: Path, api: str, git: bool) -> None:
    if git:
        run(done, "git", "rm", "-q", "--cached", "dvc.lock")
        run(done, "git", "commit", "-qm", "without")
    else:
        shutil.rmtree(done / ".git")
        dvc(done, "config", "core.no_scm", "true")
    (done / "dvc.lock").write_text("")
    said = flow(done, api=api, status=1).stdout.strip()
    assert said == (
        f"dvc.lock is empty: {HOW}, and the last commit has no complete one: delete it and run again: "
        "DVC's run cache brings back what ran here"
    )
    assert (done / "dvc.lock").exists()
    (done / "dvc.lock").unlink()
    assert flow(done, api=api).stdout.count("Restored after") == 4  # each in its log and in the table
    assert trace(done) == []
