"""A model becomes a version of the registry if it is proven and not worse; and back again."""

import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from repositories import CompletedCommand, commit_all, run_command, run_dvc
from ruamel.yaml import YAML
from served import run_service, sha256_of
from toys import run_flow_module, wait_until

from flows.dvc.params_file import set_param
from flows.predictions import Prediction, Predictions
from flows.promote import compare_predictions


def promote(project: Path, prefect_api_url: str, *flags: str, status: int = 0) -> CompletedCommand:
    module = "flows.promote"
    return run_flow_module(project, *flags, prefect_api_url=prefect_api_url, status=status, module=module)


def commit_model(project: Path, **params: object) -> bytes:
    """Run the pipeline with these params of train and commit it; the bytes of the model."""
    for param, value in params.items():
        set_param(project / "params.yaml", f"train.{param}", value)
    run_dvc(project, "repro", "-q")
    commit_all(project)
    return (project / "data/model/model.onnx").read_bytes()


def get_artifact(project: Path, folder: Path, stage: str = "prod") -> bytes:
    run_dvc(folder, "artifacts", "get", str(project), "classifier", "--stage", stage, "--out", "got.onnx", "--force")
    return (folder / "got.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_a_model_that_is_not_worse_is_promoted_and_a_worse_one_refused(
    project: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    first = (project / "data/model/model.onnx").read_bytes()
    result = promote(project, prefect_api_url)  # with the audit
    assert "audit: passed, All 23 outputs have the same bytes as dvc.lock" in result.stdout
    assert "Promoted: classifier v0.0.1 is now prod" in result.stdout
    assert get_artifact(project, tmp_path) == first
    assert "this commit is prod already" in promote(project, prefect_api_url, "--skip-audit", status=1).stdout

    second = commit_model(project, seed=3, epochs=9)
    result = promote(project, prefect_api_url, "--skip-audit")
    assert "Promoted: classifier v0.0.2 is now prod" in result.stdout
    assert get_artifact(project, tmp_path) == second != first

    commit_model(project, epochs=1.0)
    result = promote(project, prefect_api_url, "--skip-audit", status=1)
    assert "Refused: comparison: " in result.stdout
    assert "are lost by chance with p = " in result.stdout
    assert get_artifact(project, tmp_path) == second
    assert run_command(project, "git", "tag").stdout.split() == [
        "classifier#prod#1",
        "classifier#prod#2",
        "classifier@v0.0.1",
        "classifier@v0.0.2",
    ]

    assert "classifier v0.0.1 is prod again" in promote(project, prefect_api_url, "--roll-back").stdout
    assert get_artifact(project, tmp_path) == first
    assert "no other classifier was prod before" in promote(project, prefect_api_url, "--roll-back", status=1).stdout


@pytest.mark.slow
@pytest.mark.ci
def test_tags_are_pushed_or_not_made(project: Path, prefect_api_url: str, tmp_path: Path) -> None:
    origin = tmp_path / "origin.git"
    run_command(tmp_path, "git", "clone", "-q", "--bare", str(project), str(origin))
    run_command(project, "git", "remote", "add", "origin", str(origin))
    (origin / "hooks" / "pre-receive").write_text("#!/bin/sh\nexit 1\n")
    (origin / "hooks" / "pre-receive").chmod(0o755)
    result = promote(project, prefect_api_url, "--skip-audit", "--push", status=1)
    assert "git push --quiet --atomic" in result.stdout
    assert "classifier#prod#1" not in run_command(project, "git", "tag").stdout
    (origin / "hooks" / "pre-receive").unlink()
    assert "v0.0.1 is now prod" in promote(project, prefect_api_url, "--skip-audit", "--push").stdout
    assert run_command(origin, "git", "tag").stdout.split() == ["classifier#prod#1", "classifier@v0.0.1"]
    run_command(project, "git", "checkout", "-q", "-b", "results")
    commit_model(project, seed=3, epochs=9)
    run_command(project, "git", "push", "-q", "origin", "results")
    run_command(project, "git", "checkout", "-q", "main")
    promote(project, prefect_api_url, "--skip-audit", "--push", "--revision", "origin/results")
    tags = run_command(origin, "git", "tag", "--points-at", "results").stdout.split()
    assert tags == ["classifier#prod#2", "classifier@v0.0.2"]
    set_param(project / "params.yaml", "promote.level", 1e-9)
    result = promote(project, prefect_api_url, "--skip-audit", status=1)
    assert "params.yaml: not committed; a promotion takes the level and the paths of a commit" in result.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_a_service_follows_promotions_and_a_roll_back_under_load(
    project: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    models = {"v0.0.1": sha256_of(project / "data/model/model.onnx")}
    promote(project, prefect_api_url, "--skip-audit")
    statuses: list[int] = []
    stop, flags = threading.Event(), ("--follow", "prod", "--workers", "2")
    with run_service(tmp_path, tmp_path / "served" / "model.onnx", *flags, cwd=project) as service:

        def send_requests() -> None:
            while not stop.is_set():
                statuses.append(service.predict_prepared(np.zeros((28, 28), np.uint8)).status)

        clients = [threading.Thread(target=send_requests) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            commit_model(project, seed=3, epochs=9)
            models["v0.0.2"] = sha256_of(project / "data/model/model.onnx")
            promote(project, prefect_api_url, "--skip-audit")
            wait_until(lambda: service.request("/model").json["sha256"] == models["v0.0.2"], 60)
            promote(project, prefect_api_url, "--roll-back")
            wait_until(lambda: service.request("/model").json["sha256"] == models["v0.0.1"], 60)
        finally:
            stop.set()
            for client in clients:
                client.join()
        follower = psutil.Process(service.process.pid).children(recursive=True)
        assert follower
    wait_until(lambda: not any(child.is_running() for child in follower), 15)
    assert len(statuses) > 1000
    assert set(statuses) == {200}


@pytest.mark.slow
@pytest.mark.ci
def test_a_model_whose_certificate_does_not_hold_is_refused(project: Path, prefect_api_url: str) -> None:
    set_param(project / "params.yaml", "promote.level", 2.0)
    commit_all(project)
    assert (
        "params.yaml: promote.level: input should be less than 1"
        in promote(project, prefect_api_url, "--skip-audit", status=1).stdout
    )
    set_param(project / "params.yaml", "promote.level", 0.05)
    commit_all(project)
    cache = project / ".dvc" / "cache" / "files" / "md5"
    lock = YAML(typ="safe", pure=True).load(project / "dvc.lock")
    (digest,) = [out["md5"] for out in lock["stages"]["validate_parity"]["outs"] if "certificate" in out["path"]]
    certificate = cache / digest[:2] / digest[2:]
    certificate.chmod(0o644)
    certificate.write_text(certificate.read_text().replace('"min_accuracy": 0.5', '"min_accuracy": 0.4'))
    result = promote(project, prefect_api_url, "--skip-audit", status=1)
    assert "Refused: certificate: " in result.stdout
    assert "was changed after it was written" in result.stdout
    assert run_command(project, "git", "tag").stdout == ""


def test_roll_back_without_an_earlier_version_is_one_line(project: Path, prefect_api_url: str) -> None:
    result = promote(project, prefect_api_url, "--roll-back", status=1)
    assert result.stdout.strip() == "no other classifier was prod before"


def make_predictions(*rows: tuple[str, str]) -> Predictions:
    """Of (label, prediction)."""
    images = tuple(Prediction(str(index), *row, None) for index, row in enumerate(rows))
    return Predictions("HEAD", "", images, has_names=False, dataset="", test_sha256="")


@pytest.mark.parametrize(
    ("won", "lost", "passed"),
    [(0, 0, True), (0, 4, True), (0, 5, False), (10, 10, True), (10, 25, False), (50, 5, True)],
)
def test_mcnemars_exact_test(won: int, lost: int, passed: bool) -> None:
    old = make_predictions(*[("a", "b")] * won, *[("a", "a")] * lost, *[("a", "a")] * 100)
    new = make_predictions(*[("a", "a")] * won, *[("a", "b")] * lost, *[("a", "a")] * 100)
    name, result, reason = compare_predictions(old, new, 0.05)
    assert (name, result) == ("comparison", passed)
    assert f"{won} test images won and {lost} lost" in reason


def test_mcnemars_test_equals_that_of_scipy() -> None:
    from scipy.stats import binomtest

    old = make_predictions(*[("a", "b")] * 7, *[("a", "a")] * 12)
    new = make_predictions(*[("a", "a")] * 7, *[("a", "b")] * 12)
    expected = binomtest(12, 19, 0.5, alternative="greater").pvalue
    assert f"p = {expected:.3g}" in compare_predictions(old, new, 0.05)[2]


def test_other_test_images_are_not_compared() -> None:
    name, passed, reason = compare_predictions(make_predictions(("a", "a")), make_predictions(("b", "b")), 0.05)
    assert (name, passed) == ("comparison", False)
    assert reason.startswith("the two models were tested on other images")
