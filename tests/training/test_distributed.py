"""Two processes that learn together: as well as one, with the same weights, and an end when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, Params
from toys import free_port, until

from stages.core.errors import StageError
from stages.training.distributed import launch_workers

OUTPUTS = ("weights", "history", "trace", "report", "environment", "checkpoints")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Each process keeps what it would have written.
APART = """
import os, sys
from contextlib import contextmanager
from pathlib import Path
from stages import train
from stages.core.command import run_stage
from stages.training.distributed import ProcessGroup

@contextmanager
def output_paths(self, *paths):
    yield [path.parent / str(self.rank) / path.name for path in paths]

ProcessGroup.output_paths = output_paths
run_stage(train.train)
"""


def flags(folder: Path, params: Path, splits: Path) -> list[str]:
    paths = {"params": params, "splits": splits, **{name: folder / name for name in OUTPUTS}}
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def command(folder: Path, params: Path, splits: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "stages.train", *flags(folder, params, splits), *words]


def train(folder: Path, params: Path, splits: Path, *words: str) -> None:
    """A training that hangs fails here, and leaves nobody."""
    process = subprocess.Popen(command(folder, params, splits, *words), cwd=ROOT, env=ENVIRONMENT)
    try:
        assert process.wait(300) == 0
    finally:
        process.kill()


@contextmanager
def endless(folder: Path, params: Params, splits: Path) -> Iterator[subprocess.Popen[str]]:
    """A training by two processes that has written its first row."""
    forever = params({"train.processes": 2, "train.epochs": 10_000})
    words = command(folder, forever, splits)
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: (folder / "history").exists() and (folder / "history").read_text().count("\n") > 0, 120)
        yield process
    finally:
        process.kill()


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report").read_text())
    return found


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A program that `python -m` finds here; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)

    def make(text: str) -> str:
        (tmp_path / "program.py").write_text(f"import os, sys, time\nrank = os.environ['RANK']\n{text}\n")
        return "program"

    return make


def test_each_process_is_told_what_the_first_was_told_and_its_place(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    name = module("open(rank, 'w').write(' '.join([*sys.argv[1:], os.environ['WORLD_SIZE']]))")
    assert not launch_workers(name, {}, 1)
    assert not (tmp_path / "0").exists()
    assert launch_workers(name, {"some_path": Path("here")}, 3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["--some-path here 3"] * 3


@pytest.mark.parametrize(("rank", "said"), [("1", ": out of paper"), ("0", ", see above")])
def test_one_that_ends_badly_is_named_with_its_last_words(
    rank: str, said: str, module: Callable[[str], str], tmp_path: Path
) -> None:
    name = module(f"sys.exit('a warning\\nout of paper') if rank == '{rank}' else time.sleep(100)")
    with pytest.raises(StageError) as caught:  # at once: the other one does not end by itself
        launch_workers(name, {}, 2)
    assert str(caught.value) == f"process {rank} of 2 ended with status 1{said}"


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_learn_as_well_as_one_and_give_the_same_bytes_again(
    made: Path, tmp_path: Path, params: Params
) -> None:
    train(tmp_path / "alone", params({"train.shift": 1}), made / "splits")
    together = params({"train.shift": 1, "train.processes": 2})
    for folder in ("once", "twice"):
        train(tmp_path / folder, together, made / "splits")
    alone, once = report(tmp_path / "alone"), report(tmp_path / "once")
    assert (once["step"], once["epoch"]) == (alone["step"], alone["epoch"])
    assert once["accuracy"] > alone["accuracy"] - 0.03
    assert once["validation"]["accuracy"] > alone["validation"]["accuracy"] - 0.05
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == sorted(OUTPUTS)
    for name in ("weights", "history", "report"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_all_processes_end_with_the_same_weights_also_when_another_program_starts_them(
    made: Path, tmp_path: Path, params: Params
) -> None:
    together = params({"train.processes": 2, "train.shift": 1, "train.model": "compact", "train.width": 4})
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", APART, *flags(tmp_path, together, made / "splits")],
            cwd=ROOT,
            env={**ENVIRONMENT, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in running] == [0, 0]
    for name in ("weights", "history", "report"):  # the history counts what both saw
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_whose_clocks_differ_save_at_the_same_steps_and_go_on_from_there(
    made: Path, tmp_path: Path, params: Params
) -> None:
    together = params({"train.processes": 2, "train.epochs": 30})
    train(tmp_path / "often", together, made / "splits", "--checkpoint-seconds", "0.02")
    killed = tmp_path / "killed"
    words = command(killed, together, made / "splits", "--checkpoint-seconds", "0")
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT)
    until(lambda: list(killed.glob("checkpoints/*.pt")), 120)
    everyone = [*psutil.Process(process.pid).children(), process]
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone[:-1], 10)
    process.wait()
    assert not (killed / "weights").exists()
    train(killed, together, made / "splits")
    for name in ("weights", "history", "report"):
        assert (killed / name).read_bytes() == (tmp_path / "often" / name).read_bytes()


def assert_ended(processes: list[psutil.Process]) -> None:
    time.sleep(0.5)
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.ci
def test_when_one_process_dies_the_training_ends_and_says_so(made: Path, tmp_path: Path, params: Params) -> None:
    with endless(tmp_path, params, made / "splits") as process:
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        os.kill(children[1].pid, signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"ended with status {-signal.SIGKILL}" in error
    assert "Traceback" not in error.splitlines()[-1]
    assert_ended(children)


@pytest.mark.slow
@pytest.mark.ci
def test_an_interruption_of_the_first_process_alone_ends_all(made: Path, tmp_path: Path, params: Params) -> None:
    with endless(tmp_path, params, made / "splits") as process:
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error.splitlines()[-1] == "train: interrupted"
    assert_ended(children)


def test_torchrun_must_start_as_many_as_the_params_say(made: Path, tmp_path: Path, params: Params) -> None:
    env = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2"}
    words = command(tmp_path, params(), made / "splits")
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ("train: train.processes is 1, but torchrun has started 2; set the one to the other\n")
