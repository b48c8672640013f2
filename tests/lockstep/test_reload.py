"""New files under a running service: loaded once they are proven; until then the old model answers every request."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from repositories import run_dvc
from served import Service, certify, run_service, sha256_of
from toys import run_flow_module, wait_until

from flows.dvc.params_file import set_param
from lockstep import proof
from lockstep.proof import ProofFiles
from lockstep.service.metrics import Metrics
from lockstep.service.reloader import ModelReloader
from lockstep.service.settings import ModelFiles, Settings
from stages.proof.onnx_file import LOGITS

Tested = tuple[np.ndarray, np.ndarray]
NAMES = ("model.onnx", "golden.json", "certificate.json")


def change_bias(model: Path, to: Path, amount: float) -> None:
    """Write another model to the path: the biases of the last layer are larger by the amount."""
    proto = onnx.load(model)
    bias = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(amount), bias.name))
    to.write_bytes(proto.SerializeToString())


def write_golden(model: Path) -> None:
    """Write golden.json of the current model beside it."""
    import onnxruntime

    path = model.with_name("golden.json")
    content = json.loads(path.read_text())
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    for case in content["cases"]:
        image = np.array(case["image"], np.uint8).reshape(1, *content["image_shape"])
        logits, probabilities = session.run([LOGITS, "probabilities"], {"image": image})
        case["logits"], case["probabilities"] = logits[0].tolist(), probabilities[0].tolist()
    path.write_text(json.dumps(content))


@pytest.fixture
def other_model(model_copy: Path, tmp_path: Path) -> Path:
    """Another proven model: a folder with its three files."""
    folder = Path(shutil.copytree(model_copy.parent, tmp_path / "other"))
    change_bias(model_copy, folder / "model.onnx", 0.5)
    write_golden(folder / "model.onnx")
    certify(folder / "model.onnx")
    return folder


def replace(to: Path, source: Path, *names: str) -> None:
    """Write a temporary file and rename it, as the stages do."""
    for name in names:
        tmp = to / f".{name}.partial"
        shutil.copyfile(source / name, tmp)
        tmp.replace(to / name)


@pytest.fixture
def service(model_copy: Path, tmp_path: Path) -> Iterator[Service]:
    with run_service(tmp_path, model_copy) as service:
        yield service


@dataclass
class Client:
    statuses: set[int] = field(default_factory=set)
    models: list[str] = field(default_factory=list)  # that answered, without repetitions


@contextmanager
def send_requests(service: Service, test_set: Tested, threads: int = 4, pause: float = 0.0) -> Iterator[Client]:
    """Send requests from several threads during the block; none may fail."""
    client, stop = Client(), threading.Event()

    def send_until_stopped() -> None:
        while not stop.wait(pause):
            try:
                response = service.predict_prepared(test_set[0][0, 0])
            except OSError:
                client.statuses.add(0)
                continue
            client.statuses.add(response.status)
            if response.status == 200 and client.models[-1:] != [response.json["model"]]:
                client.models.append(response.json["model"])

    workers = [threading.Thread(target=send_until_stopped) for _ in range(threads)]
    for thread in workers:
        thread.start()
    try:
        yield client
    finally:
        stop.set()
        for thread in workers:
            thread.join()
    assert client.statuses == {200}


def read_reloads(service: Service) -> tuple[int, int, int]:
    """Models loaded, models refused, and 1 if the service waits for files."""
    lines = dict(
        line.rsplit(" ", 1) for line in service.request("/metrics").content.decode().splitlines() if line[0] != "#"
    )
    names = [f'lockstep_model_reloads_total{{result="{result}"}}' for result in ("loaded", "refused")]
    taken_up, refused, waiting = (int(float(lines[name])) for name in (*names, "lockstep_model_files_incomplete"))
    return taken_up, refused, waiting


def count_refusals(reloader: ModelReloader) -> float | None:
    return reloader.metrics.registry.get_sample_value("lockstep_model_reloads_total", {"result": "refused"})


def new_message(previous_messages: list[str | None], message: str | None) -> str | None:
    return None if message == previous_messages[-1] else message


def log_lines(service: Service) -> list[str]:
    return service.log.read_text().splitlines()


def test_a_proven_model_is_loaded_and_no_request_fails(
    model_copy: Path, other_model: Path, service: Service, test_set: Tested
) -> None:
    before = service.request("/model").json
    with send_requests(service, test_set) as client:
        replace(model_copy.parent, other_model, *NAMES)
        wait_until(lambda: service.request("/model").json["sha256"] != before["sha256"], 30)
        after = service.request("/model").json
        wait_until(lambda: client.models[-1:] == [after["sha256"]], 30)
    assert after["sha256"] == sha256_of(other_model / "model.onnx")
    assert set(client.models) == {before["sha256"], after["sha256"]}
    assert read_reloads(service) == (1, 0, 0)
    assert after["reload_error"] is None
    assert before["certificate"] != after["certificate"] == json.loads((other_model / "certificate.json").read_text())
    assert len(log_lines(service)) == 1


def test_a_run_that_replaces_the_files_one_by_one_is_waited_for(
    model_copy: Path, other_model: Path, service: Service, test_set: Tested
) -> None:
    """As DVC does: outputs are removed before their stage runs, and time passes."""
    before = service.request("/model").json["sha256"]
    messages: list[str] = []
    with send_requests(service, test_set, 1, 0.05):
        for remove, make in (("model.onnx", ""), ("golden.json", "model.onnx"), ("", "golden.json"),
                             ("certificate.json", "")):  # fmt: skip
            if remove:
                (model_copy.parent / remove).unlink()
            if make:
                replace(model_copy.parent, other_model, make)
            messages.append(
                wait_until(lambda: new_message([None, *messages], service.request("/model").json["reload_error"]), 30)
            )
            assert service.request("/model").json["sha256"] == before
            assert service.request("/readyz").status == 200
        assert read_reloads(service) == (0, 0, 1)
        replace(model_copy.parent, other_model, "certificate.json")
        wait_until(lambda: service.request("/model").json["sha256"] == sha256_of(other_model / "model.onnx"), 30)
    assert [text.split(": ")[0].rsplit("/")[-1] for text in messages] == [
        "model.onnx", "golden.json", "certificate.json", "certificate.json",
    ]  # fmt: skip
    assert "does not certify" in messages[2]
    assert service.request("/model").json["reload_error"] is None
    assert read_reloads(service) == (1, 0, 0)
    first, last = log_lines(service)
    assert f"waiting for a complete model: {messages[0]}; {before[:12]} is still served" in first
    assert "loaded" in last


@pytest.mark.parametrize("case", ["gate of quality", "gate of parity", "no model", "missing", "golden alone"])
def test_files_of_different_models_are_waited_for_and_the_old_model_answers(
    model_copy: Path, other_model: Path, service: Service, test_set: Tested, case: str, tmp_path: Path
) -> None:
    before, answer = service.request("/model").json, service.predict_prepared(test_set[0][0, 0]).json
    previous = Path(shutil.copytree(model_copy.parent, tmp_path / "previous"))
    if case in ("gate of quality", "gate of parity"):  # the files after such a run
        replace(model_copy.parent, other_model, "model.onnx", "golden.json")
    if case == "gate of parity":
        model_copy.with_name("certificate.json").unlink()
    if case == "no model":
        model_copy.write_bytes(b"no model")
    if case == "missing":
        model_copy.unlink()
    if case == "golden alone":
        model_copy.with_name("golden.json").write_text('{"cases": [')
    message = "there is no such file" if case in ("missing", "gate of parity") else "does not certify"
    wait_until(lambda: service.request("/model").json["reload_error"], 30)
    description = service.request("/model").json
    assert message in description["reload_error"]
    assert "`dvc repro`" in description["reload_error"]
    assert {**description, "reload_error": None} == before
    assert service.predict_prepared(test_set[0][0, 0]).json == answer
    assert service.request("/readyz").status == 200
    assert read_reloads(service) == (0, 0, 1)
    assert len(log_lines(service)) == 1
    replace(model_copy.parent, previous, *NAMES)
    wait_until(lambda: service.request("/model").json["reload_error"] is None, 30)
    assert read_reloads(service) == (0, 0, 0)


@pytest.mark.parametrize("case", ["differs", "changed", "half", "below"])
def test_a_wrong_proof_is_refused_once_and_the_old_model_answers(
    model_copy: Path, other_model: Path, service: Service, test_set: Tested, case: str
) -> None:
    before, answer = service.request("/model").json, service.predict_prepared(test_set[0][0, 0]).json
    certificate = model_copy.with_name("certificate.json")
    message = {
        "differs": "differs from its golden sample by ",
        "changed": "was changed after it was written",
        "half": "not a certificate",
        "below": "accuracy 0.1 is below the required",
    }[case]
    if case == "differs":
        change_bias(model_copy, model_copy, 0.5)
        certify(model_copy)
    elif case == "changed":
        certificate.write_text(certificate.read_text().replace('"mnist"', '"mnisT"'))
    elif case == "half":
        certificate.write_bytes(certificate.read_bytes()[:300])
    else:
        certify(model_copy, quality__accuracy=0.1)
    wait_until(lambda: service.request("/model").json["reload_error"], 30)
    time.sleep(2.5)  # two checks of the same files
    description = service.request("/model").json
    assert message in description["reload_error"]
    assert {**description, "reload_error": None} == before
    assert service.predict_prepared(test_set[0][0, 0]).json == answer
    assert read_reloads(service) == (0, 1, 0)
    assert len(log_lines(service)) == 1
    replace(model_copy.parent, other_model, *NAMES)
    wait_until(lambda: service.request("/model").json["reload_error"] is None, 30)
    assert service.request("/model").json["sha256"] != before["sha256"]
    assert read_reloads(service) == (1, 1, 0)


def test_unproven_loads_any_model_that_can_be_run(model_copy: Path, tmp_path: Path) -> None:
    for name in NAMES[1:]:
        model_copy.with_name(name).unlink()
    with run_service(tmp_path, model_copy, "--no-verify") as service:
        description = service.request("/model").json
        assert description["certificate"] is description["golden_max_abs_error"] is None
        good = model_copy.read_bytes()
        model_copy.write_bytes(b"no model")
        wait_until(lambda: service.request("/model").json["reload_error"], 30)
        assert "does not load it" in service.request("/model").json["reload_error"]
        model_copy.write_bytes(good)
        change_bias(model_copy, model_copy, 0.5)
        wait_until(lambda: service.request("/model").json["sha256"] == sha256_of(model_copy), 30)
        assert read_reloads(service) == (1, 1, 0)


def test_a_report_of_another_run_is_not_shown(model_copy: Path, stage_outputs: Path, tmp_path: Path) -> None:
    report = Path(shutil.copyfile(stage_outputs / "evaluate.json", tmp_path / "evaluate.json"))
    reloader = ModelReloader(Settings(ModelFiles(model_copy, ProofFiles.beside_model(model_copy), report)), Metrics())
    content = json.loads(report.read_text())
    assert reloader.describe()["metrics"] == content
    report.write_text(json.dumps({**content, "accuracy": 0.2}))
    assert reloader.describe()["metrics"] is None


# Files that change while they are read.


def test_files_that_are_replaced_while_they_are_read_are_never_mixed(
    model_copy: Path, other_model: Path, tmp_path: Path
) -> None:
    """The files of two models replace each other, one file at a time, as fast as possible."""
    previous = Path(shutil.copytree(model_copy.parent, tmp_path / "previous"))
    certificates = {
        sha256_of(folder / "model.onnx"): (folder / "certificate.json").read_text()
        for folder in (previous, other_model)
    }
    reloader = ModelReloader(Settings(ModelFiles(model_copy, ProofFiles.beside_model(model_copy), None)), Metrics())
    stop, states = threading.Event(), set()

    def alternate() -> None:
        while not stop.is_set():
            for folder in (other_model, previous):
                replace(model_copy.parent, folder, *NAMES)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            reloader.reload()
            description = reloader.describe()
            assert description["certificate"] == json.loads(certificates[description["sha256"]])
            states.add((description["sha256"], description["reload_error"] is None))
    finally:
        stop.set()
        thread.join()
    assert {refused for _, refused in states} == {True, False}, "the files were never of two models at once"
    assert count_refusals(reloader) == 0, "a file was read twice"
    reloader.reload()
    assert (reloader.reload_error, reloader.classifier.sha256) == (None, sha256_of(model_copy))


@pytest.mark.parametrize("after", NAMES)
def test_files_that_are_replaced_between_two_reads_wait_for_the_next_check(
    after: str, model_copy: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloader = ModelReloader(Settings(ModelFiles(model_copy, ProofFiles.beside_model(model_copy), None)), Metrics())
    before, file_stats = reloader.classifier, reloader.files.stat_files()
    read_file = proof.read_file

    def read_and_replace(path: Path, missing: str) -> bytes:
        data = read_file(path, missing)
        if path.name == after:
            replace(model_copy.parent, other_model, *NAMES)
        return data

    monkeypatch.setattr("lockstep.proof.read_file", read_and_replace)
    monkeypatch.setattr("lockstep.classifier.read_file", read_and_replace)
    reloader.reload()
    assert reloader.classifier.sha256 == before.sha256
    assert reloader.is_waiting is (after != NAMES[-1])
    assert (reloader.reload_error is None) is (after == NAMES[-1])
    assert count_refusals(reloader) == 0, "a file was read twice"
    assert reloader.files.stat_files() != file_stats, "the next check would not notice it"
    monkeypatch.undo()
    reloader.reload()
    assert (reloader.reload_error, reloader.classifier.sha256) == (None, sha256_of(other_model / "model.onnx"))


def test_a_replaced_file_of_the_same_size_and_date_is_noticed(model_copy: Path, tmp_path: Path) -> None:
    """As an archive with fixed dates is unpacked, if the file system reuses the inode."""
    files = ModelFiles(model_copy, ProofFiles.beside_model(model_copy), None)
    for name in NAMES:
        path = model_copy.with_name(name)
        os.utime(path, (0, 0))
        before = files.stat_files()
        time.sleep(0.02)
        path.write_bytes(path.read_bytes())
        os.utime(path, (0, 0))
        assert files.stat_files() != before


# Pipeline runs that fail at their gates.

slow = [pytest.mark.slow, pytest.mark.ci]


class TestRealRuns:
    pytestmark = slow

    def test_a_failed_run_is_not_loaded_and_the_next_good_one_is(
        self, project: Path, prefect_api_url: str, tmp_path: Path
    ) -> None:
        """With `dvc repro` and with the flow, which after a failure still runs the stages that do not depend on it."""
        model, params = project / "data/model/model.onnx", project / "params.yaml"
        runs = {
            "dvc": lambda status: run_dvc(project, "repro", status=status),
            "flow": lambda status: run_flow_module(project, prefect_api_url=prefect_api_url, status=status),
        }
        cases = [
            ("dvc", "evaluate.min_accuracy", 1.0, "is below evaluate.min_accuracy"),
            ("dvc", "validate_parity.atol", 1e-12, "more than atol"),
            ("flow", "evaluate.min_accuracy", 1.0, "is below evaluate.min_accuracy"),
            ("flow", "validate_parity.atol", 1e-12, "more than atol"),
        ]
        good = {"evaluate.min_accuracy": 0.5, "validate_parity.atol": 0.0001}
        with run_service(tmp_path, model, "--report", str(project / "data/reports/evaluate.json")) as service:
            images = np.load(project / "data/splits/test-images.npy"), np.load(project / "data/splits/test-labels.npy")
            with send_requests(service, images, 1, 0.05) as client:
                for number, (way, param, value, message) in enumerate(cases):
                    before = service.request("/model").json
                    set_param(params, "train.seed", 100 + number)
                    set_param(params, param, value)
                    done = runs[way](1 if way == "flow" else 255)
                    assert message in done.stdout + done.stderr
                    time.sleep(3)  # the service checks every second
                    after = service.request("/model").json
                    assert after["sha256"] == before["sha256"] == client.models[-1]
                    assert after["certificate"] == before["certificate"]
                    stopped = way == "dvc" and param.startswith("evaluate")  # before it wrote another model
                    assert (sha256_of(model) == before["sha256"]) is stopped
                    assert bool(after["reload_error"]) is not stopped
                    set_param(params, param, good[param])
                    runs[way](0)
                    wait_until(lambda: service.request("/model").json["sha256"] == sha256_of(model), 20)
                    wait_until(lambda: client.models[-1] == sha256_of(model), 20)
                    description = service.request("/model").json
                    assert description["sha256"] != before["sha256"]
                    assert description["reload_error"] is None
                    assert description["metrics"]["accuracy"] == description["certificate"]["quality"]["accuracy"]
            assert len(client.models) == 1 + len(cases)
            assert read_reloads(service) == (4, 0, 0)
            assert len(log_lines(service)) <= 3 * len(cases)
