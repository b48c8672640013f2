"""Training by two processes: as accurate as by one, equal weights in both, and both end when one of them dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, WriteParams
from toys import free_port, wait_until

OUTPUTS = ("weights", "history", "trace", "report", "environment", "checkpoints")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# A train command in which every rank writes its outputs, into a folder named after the rank.
TRAIN_WITH_ALL_OUTPUTS = """
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


def train_flags(folder: Path, params: Path, splits: Path) -> list[str]:
    paths = {"params": params, "splits": splits, "pretrained": splits, **{name: folder / name for name in OUTPUTS}}
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def train_command(folder: Path, params: Path, splits: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "stages.train", *train_flags(folder, params, splits), *flags]


def train(folder: Path, params: Path, splits: Path, *flags: str) -> None:
    """Train in a subprocess, which is killed if it does not end."""
    process = subprocess.Popen(train_command(folder, params, splits, *flags), cwd=ROOT, env=ENVIRONMENT)
    try:
        assert process.wait(300) == 0
    finally:
        process.kill()


@contextmanager
def running_training(folder: Path, params: WriteParams, splits: Path) -> Iterator[subprocess.Popen[str]]:
    """A training by two processes that does not end by itself and has written its first row."""
    endless_params = params({"train.processes": 2, "train.epochs": 10_000})
    command = train_command(folder, endless_params, splits)
    (folder / "tmp").mkdir()
    environment = {**ENVIRONMENT, "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (folder / "history").exists() and (folder / "history").read_text().count("\n") > 0, 120)
        yield process
    finally:
        process.kill()


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report").read_text())
    return report


def launch(folder: Path, program: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run launch_workers with a module of this text, in a process of its own."""
    (folder / "program.py").write_text(f"import os, sys, time\nrank = os.environ['RANK']\n{program}\n")
    script = f"""
from stages.core.errors import StageError
from stages.training.distributed import launch_workers
try:
    launch_workers("program", {{"some_path": "folder"}}, {processes})
except StageError as error:
    print("StageError:", error)
"""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "RANK"}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        timeout=60,
        capture_output=True,
        text=True,
        check=True,
    )


def test_each_process_gets_the_same_flags_and_its_own_rank(tmp_path: Path) -> None:
    program = "print(rank); open(rank, 'w').write(' '.join([*sys.argv[1:], os.environ['WORLD_SIZE']]))"
    completed = launch(tmp_path, program, 3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["--some-path folder 3"] * 3
    assert (completed.stdout, completed.stderr) == ("0\n", ""), "rank 0 alone prints, the launcher does not"


@pytest.mark.parametrize(("rank", "reason"), [("1", ": out of paper"), ("0", ", see above")])
def test_a_process_that_fails_is_named_with_its_last_error_line(rank: str, reason: str, tmp_path: Path) -> None:
    # The other process would run for longer than the test may take.
    program = f"sys.exit('a warning\\nout of paper') if rank == '{rank}' else time.sleep(100)"
    completed = launch(tmp_path, program, 2)
    assert completed.stdout == f"StageError: process {rank} of 2 ended with status 1{reason}\n"
    assert completed.stderr == ("" if rank == "1" else "a warning\nout of paper\n")


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_are_as_accurate_as_one_and_give_the_same_bytes_again(
    stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    train(tmp_path / "single", params({"train.shift": 1}), stage_outputs / "splits")
    two_processes = params({"train.shift": 1, "train.processes": 2})
    for folder in ("first", "second"):
        train(tmp_path / folder, two_processes, stage_outputs / "splits")
    single, first = read_report(tmp_path / "single"), read_report(tmp_path / "first")
    assert (first["step"], first["epoch"]) == (single["step"], single["epoch"])
    assert first["accuracy"] > single["accuracy"] - 0.03
    assert first["validation"]["accuracy"] > single["validation"]["accuracy"] - 0.05
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(OUTPUTS)
    for name in ("weights", "history", "report"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_processes_that_another_program_starts_end_with_equal_weights(
    stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    choices = params({"train.processes": 2, "train.shift": 1, "train.model": "compact", "train.width": 4})
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN_WITH_ALL_OUTPUTS, *train_flags(tmp_path, choices, stage_outputs / "splits")],
            cwd=ROOT,
            env={**ENVIRONMENT, **rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    for name in ("weights", "history", "report"):  # the history has the sums over both processes
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_torchrun_starts_the_stage_too(stage_outputs: Path, tmp_path: Path, params: WriteParams) -> None:
    choices = params({"train.processes": 2, "train.epochs": 1})
    train(tmp_path / "stage", choices, stage_outputs / "splits")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "stages.train", *train_flags(tmp_path / "torchrun", choices, stage_outputs / "splits")]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, timeout=300, check=True)
    weights = [(tmp_path / folder / "weights").read_bytes() for folder in ("stage", "torchrun")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.ci
def test_two_hosts_that_meet_at_an_address_give_the_bytes_of_one_host_with_two_processes(
    stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    """Each host has the code and the splits in a folder of its own; both are this machine, at a loopback address."""
    two_processes = params({"train.processes": 2})
    train(tmp_path / "one-host", two_processes, stage_outputs / "splits")
    endpoint, hosts = f"127.0.0.1:{free_port()}", []
    for rank in (0, 1):
        host = tmp_path / f"host{rank}"
        shutil.copytree(ROOT / "stages", host / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(stage_outputs / "splits", host / "splits")
        rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--local-addr=127.0.0.1", "-m"]
        command = [*torchrun, "stages.train", *train_flags(host / "out", two_processes, host / "splits")]
        hosts.append(subprocess.Popen(command, cwd=host, env=ENVIRONMENT))
    try:
        assert [process.wait(300) for process in hosts] == [0, 0]
    finally:
        for process in hosts:
            process.kill()
    outputs = [tmp_path / f"host{rank}" / "out" for rank in (0, 1)]
    (written,) = [folder for folder in outputs if (folder / "weights").exists()]  # by the process of rank 0 alone
    for name in ("weights", "history", "trace", "report", "environment"):
        assert (written / name).read_bytes() == (tmp_path / "one-host" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_save_a_checkpoint_at_the_same_step_and_resume_from_it(
    stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    two_processes = params({"train.processes": 2, "train.epochs": 30})
    train(tmp_path / "uninterrupted", two_processes, stage_outputs / "splits", "--checkpoint-seconds", "0.02")
    killed = tmp_path / "killed"
    command = train_command(killed, two_processes, stage_outputs / "splits", "--checkpoint-seconds", "0")
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)
    wait_until(lambda: list(killed.glob("checkpoints/*.pt")), 120)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    psutil.wait_procs(workers, 10)
    assert not (killed / "weights").exists()
    train(killed, two_processes, stage_outputs / "splits")
    for name in ("weights", "history", "report"):
        assert (killed / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


def assert_ended(processes: list[psutil.Process]) -> None:
    time.sleep(0.5)
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.ci
def test_when_one_process_dies_the_training_ends_with_one_line(
    stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    with running_training(tmp_path, params, stage_outputs / "splits") as process:
        workers = sorted(psutil.Process(process.pid).children(), key=lambda worker: int(worker.environ()["RANK"]))
        assert len(workers) == 2
        os.kill(workers[1].pid, signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert error.splitlines()[-1].startswith(f"train: process 1 of 2 ended with status {-signal.SIGKILL}: ")
    assert_ended(workers)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_when_the_launcher_is_stopped_all_processes_end(
    number: signal.Signals, status: int, stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    with running_training(tmp_path, params, stage_outputs / "splits") as process:
        workers = psutil.Process(process.pid).children()
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == status
    if number == signal.SIGINT:
        assert error.splitlines()[-1] == "train: interrupted"
    assert_ended(workers)
    assert not list((tmp_path / "tmp").iterdir())


def test_torchrun_must_start_as_many_processes_as_the_params_say(
    stage_outputs: Path, tmp_path: Path, params: WriteParams
) -> None:
    env = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2"}
    command = train_command(tmp_path, params(), stage_outputs / "splits")
    completed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert completed.returncode == 1
    assert completed.stderr == (
        "train: train.processes is 1, but torchrun has started 2: set one to the other's value\n"
    )
