"""The state of an unfinished training: found again by the same work only, and held by one process."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from stages.training import checkpoint as module
from stages.training.checkpoint import Checkpoint, fingerprint, lock_folder

ROOT = Path(__file__).parent.parent.parent


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = {"steps": 7, "network": {"weight": torch.arange(3.0)}, "best": None, "history": {"rows": [[1, 0.5, ""]]}}
    Checkpoint(tmp_path, "work", 1).save(state)
    found = Checkpoint(tmp_path, "work", 1).load()
    assert found is not None
    assert torch.equal(found.pop("network")["weight"], state.pop("network")["weight"])  # type: ignore[index]
    assert found == state


def test_there_is_no_state_before_the_first_and_after_the_removal(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "work", 1)
    assert checkpoint.load() is None
    checkpoint.save({"steps": 1})
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None
    assert not list(tmp_path.iterdir())


def test_the_state_of_other_work_is_dropped(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "other", 1).save({"steps": 1})
    assert Checkpoint(tmp_path, "work", 1).load() is None
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_of_a_half_saved_state_is_dropped(tmp_path: Path) -> None:
    (tmp_path / ".other.pt.partial").write_bytes(b"half")
    (tmp_path / ".work.pt.partial").write_bytes(b"half")
    assert Checkpoint(tmp_path, "work", 1).load() is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_is_dropped(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "work", 1).save({"network": torch.zeros(1000)})
    content = (tmp_path / "work.pt").read_bytes()
    (tmp_path / "work.pt").write_bytes(content[: len(content) // 2])
    assert Checkpoint(tmp_path, "work", 1).load() is None


def test_a_state_is_due_when_its_seconds_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path, "work", 5)
    now = 104.9
    assert not checkpoint.due()
    now = 105.0
    assert checkpoint.due()
    checkpoint.save({"steps": 1})
    assert not checkpoint.due()


def test_the_key_hangs_on_the_work_and_on_the_data_and_on_nothing_else(tmp_path: Path) -> None:
    work = {"params": {"seed": 0, "epochs": 4}, "made_on": {"device": "cpu"}}
    data = [tmp_path / "images", tmp_path / "labels"]
    for path in data:
        path.write_bytes(path.name.encode())
    first = fingerprint(work, data)
    assert fingerprint(json.loads(json.dumps(work)), list(reversed(data))) == first
    assert fingerprint({**work, "params": {"seed": 1, "epochs": 4}}, data) != first
    assert fingerprint({**work, "made_on": {"device": "cuda"}}, data) != first
    data[1].write_bytes(b"others")
    assert fingerprint(work, data) != first


def test_the_key_hangs_on_the_source_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    monkeypatch.setattr(module, "loaded_source_files", lambda: {source})
    first = fingerprint({}, [])
    source.write_text("2")
    assert fingerprint({}, []) != first


def test_the_source_that_runs_is_that_of_the_stages() -> None:
    files = module.loaded_source_files()
    assert ROOT / "stages" / "training" / "checkpoint.py" in files
    assert all(ROOT / "stages" in file.parents for file in files)


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def say(line: str) -> None:
        order.append(line)
        waiting.set()

    def second() -> None:
        with lock_folder(tmp_path):
            order.append("second")

    monkeypatch.setattr(module, "echo", say)
    with lock_folder(tmp_path):
        assert not order
        other = threading.Thread(target=second)
        other.start()
        assert waiting.wait(60)
        order.append("first")
    other.join()
    assert order == [f"another training works with {tmp_path}: waiting for it to end", "first", "second"]


def test_a_killed_holder_holds_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout as ready:
        ready.readline()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path):
        assert capsys.readouterr().out == ""
