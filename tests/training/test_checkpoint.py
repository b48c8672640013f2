"""Checkpoints: only the same training loads them, and one process at a time uses their folder."""

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


def test_loading_gives_the_state_that_was_saved(tmp_path: Path) -> None:
    state = {"steps": 7, "network": {"weight": torch.arange(3.0)}, "best": None, "history": {"rows": [[1, 0.5, ""]]}}
    Checkpoint(tmp_path, "fingerprint", 1).save(state)
    loaded = Checkpoint(tmp_path, "fingerprint", 1).load()
    assert loaded is not None
    assert torch.equal(loaded.pop("network")["weight"], state.pop("network")["weight"])  # type: ignore[index]
    assert loaded == state


def test_there_is_nothing_to_load_before_the_first_save_and_after_removal(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "fingerprint", 1)
    assert checkpoint.load() is None
    checkpoint.save({"steps": 1})
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_of_another_training_is_deleted(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "other", 1).save({"steps": 1})
    assert Checkpoint(tmp_path, "fingerprint", 1).load() is None
    assert not list(tmp_path.iterdir())


def test_partial_files_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".other.pt.partial").write_bytes(b"half")
    (tmp_path / ".fingerprint.pt.partial").write_bytes(b"half")
    assert Checkpoint(tmp_path, "fingerprint", 1).load() is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_ignored(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "fingerprint", 1).save({"network": torch.zeros(1000)})
    content = (tmp_path / "fingerprint.pt").read_bytes()
    (tmp_path / "fingerprint.pt").write_bytes(content[: len(content) // 2])
    assert Checkpoint(tmp_path, "fingerprint", 1).load() is None


def test_a_save_is_due_when_the_interval_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path, "fingerprint", 5)
    now = 104.9
    assert not checkpoint.is_due()
    now = 105.0
    assert checkpoint.is_due()
    checkpoint.save({"steps": 1})
    assert not checkpoint.is_due()


def test_the_fingerprint_depends_on_description_and_data_alone(tmp_path: Path) -> None:
    description = {"params": {"seed": 0, "epochs": 4}, "environment": {"device": "cpu"}}
    data = [tmp_path / "images", tmp_path / "labels"]
    for path in data:
        path.write_bytes(path.name.encode())
    first = fingerprint(description, data)
    assert fingerprint(json.loads(json.dumps(description)), list(reversed(data))) == first
    assert fingerprint({**description, "params": {"seed": 1, "epochs": 4}}, data) != first
    assert fingerprint({**description, "environment": {"device": "cuda"}}, data) != first
    data[1].write_bytes(b"others")
    assert fingerprint(description, data) != first


def test_the_fingerprint_depends_on_the_loaded_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    monkeypatch.setattr(module, "loaded_source_files", lambda: {source})
    first = fingerprint({}, [])
    source.write_text("2")
    assert fingerprint({}, []) != first


def test_the_loaded_source_files_are_those_of_the_stages() -> None:
    files = module.loaded_source_files()
    assert ROOT / "stages" / "training" / "checkpoint.py" in files
    assert all({ROOT / "stages", ROOT / "lockstep"} & {*file.parents} for file in files)


def test_one_process_at_a_time_holds_the_lock_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    waiting = threading.Event()

    def record_line(line: str) -> None:
        events.append(line)
        waiting.set()

    def lock_second() -> None:
        with lock_folder(tmp_path):
            events.append("second")

    monkeypatch.setattr(module, "echo", record_line)
    with lock_folder(tmp_path):
        assert not events
        other = threading.Thread(target=lock_second)
        other.start()
        assert waiting.wait(60)
        events.append("first")
    other.join()
    assert events == [f"another training uses {tmp_path}: waiting for it to end", "first", "second"]


def test_a_killed_process_releases_its_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
