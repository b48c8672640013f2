"""`lockstep serve --workers`: one port, and processes that are replaced, reload, count together and end together."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from served import Service, certify, is_ready, run_service, sha256_of
from toys import wait_until

Tested = tuple[np.ndarray, np.ndarray]
MAX_PSS = 120e6  # bytes of one worker


@pytest.fixture
def workers(model_copy: Path, tmp_path: Path) -> Iterator[Service]:
    with run_service(tmp_path, model_copy, "--workers", "2") as service:
        wait_until(lambda: len(serving(service)) == 2, 30)
        yield service


def processes(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children()


def serving(service: Service) -> list[Path]:
    """The files of the workers that have loaded a model."""
    files = metrics_folder(service).glob("gauge_livemax_*.db")
    return [file for file in files if b"sha256" in file.read_bytes()]


def metrics_folder(service: Service) -> Path:
    return Path(processes(service)[0].environ()["PROMETHEUS_MULTIPROC_DIR"])


def read_sum(service: Service, name: str) -> float:
    lines = service.request("/metrics").content.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_metrics_are_of_all_workers_and_memory_is_small(workers: Service, test_set: Tested) -> None:
    before = read_sum(workers, "lockstep_requests_total")
    for image in test_set[0][:40, 0]:
        assert workers.predict_prepared(image).status == 200
    assert read_sum(workers, 'lockstep_requests_total{path="/predict",status="200"}') == 40
    assert read_sum(workers, 'lockstep_request_duration_seconds_count{path="/predict"}') == 40
    assert read_sum(workers, "lockstep_requests_total") > before + 40  # and /metrics
    assert read_sum(workers, "lockstep_images_in_progress") == 0
    assert read_sum(workers, "lockstep_model_info") == 1
    for process in processes(workers):
        assert process.memory_full_info().pss < MAX_PSS


def test_a_worker_that_dies_is_replaced_and_what_it_has_counted_stays(workers: Service, test_set: Tested) -> None:
    for image in test_set[0][:20, 0]:
        workers.predict_prepared(image)
    victim, survivor = processes(workers)
    victim.kill()
    assert workers.predict_prepared(test_set[0][0, 0]).status == 200  # of the other worker
    wait_until(lambda: len({process.pid for process in processes(workers)} - {victim.pid, survivor.pid}) == 1, 30)
    wait_until(lambda: len(serving(workers)) == 2, 30)
    assert read_sum(workers, 'lockstep_requests_total{path="/predict",status="200"}') == 21
    assert f"worker {victim.pid} ended with status -9; another is started" in workers.log.read_text()


def test_every_worker_loads_a_new_model_or_keeps_the_old_one(workers: Service, tmp_path: Path) -> None:
    """Each verifies it by itself."""
    from test_reload import NAMES, change_bias, replace, write_golden

    model = tmp_path / "served" / "model.onnx"
    before, other = sha256_of(model), Path(shutil.copytree(model.parent, tmp_path / "other")) / "model.onnx"
    change_bias(other, other, 0.5)
    replace(model.parent, other.parent, "model.onnx")
    wait_until(lambda: read_sum(workers, "lockstep_model_files_incomplete") == 1, 30)
    assert {workers.request("/model").json["sha256"] for _ in range(20)} == {before}
    write_golden(other)
    certify(other)
    replace(model.parent, other.parent, *NAMES)
    wait_until(lambda: read_sum(workers, 'lockstep_model_reloads_total{result="loaded"}') == 2, 30)
    assert {workers.request("/model").json["sha256"] for _ in range(20)} == {sha256_of(other)}
    assert read_sum(workers, f'lockstep_model_info{{sha256="{before}"}}') == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_all_end_with_the_first_process(workers: Service, number: int) -> None:
    children, folder = processes(workers), metrics_folder(workers)
    started = time.monotonic()
    workers.process.send_signal(number)
    assert workers.process.wait(20) == (-number if number == signal.SIGKILL else 0)
    gone, alive = psutil.wait_procs(children, 15)
    assert (len(gone), alive) == (2, [])
    assert time.monotonic() - started < 10
    assert not is_ready(workers)
    assert not folder.exists()
    assert "Traceback" not in workers.log.read_text()


def test_an_interrupt_ends_it_also_if_it_was_started_ignoring_that(stage_outputs: Path, tmp_path: Path) -> None:
    """As a shell starts what a script runs in the background."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with run_service(tmp_path, stage_outputs / "model.onnx", "--workers", "2") as service:
            service.process.send_signal(signal.SIGINT)
            assert service.process.wait(20) == 0
    finally:
        signal.signal(signal.SIGINT, handler)


def test_workers_import_nothing_from_the_current_folder(stage_outputs: Path, tmp_path: Path) -> None:
    """As `lockstep`, the installed command, does not, unlike `python -m lockstep`."""
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    words = ["lockstep", "serve", "--model", str(stage_outputs / "model.onnx"), "--port", "0", "--workers", "2"]
    program = f"import sys; sys.argv = {words}; from lockstep.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match
        service = Service(match[0], process, tmp_path / "service.log")
        wait_until(lambda: is_ready(service), 30)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_too_many_workers_for_this_system_are_one_line(stage_outputs: Path) -> None:
    command = [sys.executable, "-m", "lockstep", "serve", "--model", str(stage_outputs / "model.onnx"), "--port", "0"]
    limited = ["bash", "-c", 'ulimit -n 24; exec "$@"', "bash", *command, "--workers", "40"]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "a worker cannot be started: Too many open files; lower --workers" in done.stderr.splitlines()


def test_a_removed_folder_of_metrics_is_made_again(workers: Service, test_set: Tested) -> None:
    folder = metrics_folder(workers)
    shutil.rmtree(folder)
    assert workers.request("/metrics").status == 200
    processes(workers)[0].kill()
    wait_until(lambda: list(folder.glob("gauge_livemax_*.db")), 30)  # of the new worker
    assert workers.predict_prepared(test_set[0][0, 0]).status == 200


def test_an_error_at_the_start_is_one_line(tmp_path: Path) -> None:
    from test_service import run_serve

    result = run_serve("--workers", "2", "--model", str(tmp_path / "no.onnx"))
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "no.onnx: there is no such file" in result.stderr
