"""What is not ours: an environment without torch, schemathesis, and clients that mean no good."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from served import running

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with what `pip install .` brings, outside the project."""
    folder = tmp_path_factory.mktemp("alone")
    source = folder / "source"
    run("git", "clone", "-q", ROOT, source, cwd=folder)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    pip = (folder / "venv" / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, source, cwd=folder)
    return folder


def installed(folder: Path) -> dict[str, str]:
    listed = run(folder / "venv" / "bin" / "python", "-m", "pip", "list", "--format", "json", cwd=folder)
    return {one["name"]: one["version"] for one in json.loads(listed)}


@pytest.mark.ci
def test_library_and_command_work_where_nothing_else_is(alone: Path, made: Path, tmp_path: Path) -> None:
    assert not set(installed(alone)) & {"torch", "onnx", "dvc", "prefect", "fastapi", "pydantic", "scikit-learn"}
    picture = Image.new("L", (80, 80), 255)
    picture.paste(0, (30, 20, 38, 60))
    picture.save(tmp_path / "one.png")
    python = alone / "venv" / "bin" / "python"
    line = run(python, "-m", "lockstep.predict", "one.png", "--json", "--model", made / "model.onnx", cwd=tmp_path)
    program = (
        f"from lockstep import Classifier; print(Classifier({str(made / 'model.onnx')!r}).predict('one.png').label)"
    )
    assert run(python, "-c", program, cwd=tmp_path).strip() == json.loads(line)["label"]
    assert "is proven" in run(python, "-m", "lockstep.verify", made / "model.onnx", cwd=tmp_path)
    assert (
        "needs"
        in subprocess.run(
            [python, "-m", "lockstep.service.app"], cwd=tmp_path, capture_output=True, text=True, check=False
        ).stderr
    )


def test_the_service_installs_as_an_extra(alone: Path, made: Path, tmp_path: Path) -> None:
    python = alone / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{alone / 'source'}[service]", cwd=alone)
    assert not set(installed(alone)) & {"torch", "onnx", "dvc", "prefect", "scikit-learn"}
    program = f"""
import http.client, subprocess, sys
line = [sys.executable, "-m", "lockstep.service.app", "--port", "0", "--model", {str(made / "model.onnx")!r}]
with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
    port = int(process.stdout.readline().split(":")[2].split("/")[0])
    try:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        asked.request("GET", "/")
        assert b"<canvas" in asked.getresponse().read()
    finally:
        process.terminate()
"""
    run(python, "-c", program, cwd=tmp_path)


def test_schemathesis_finds_nothing_against_the_services_own_description(made: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "schemathesis", cwd=tmp_path)
    config = ("--config-file", Path(__file__).with_name("schemathesis.toml"))
    with running(tmp_path, made / "model.onnx", "--max-images", "2") as service:  # it takes long to make up 64
        run(
            programs / "schemathesis",
            *config,
            "run",
            f"{service.url}openapi.json",
            "--max-examples",
            "30",
            cwd=tmp_path,
        )


@pytest.mark.ci
def test_good_and_bad_requests_mixed_do_the_service_no_harm(made: Path) -> None:
    said = run(sys.executable, "-m", "benchmarks.soak", "--minutes", "0.5", "--model", made / "model.onnx", cwd=ROOT)
    assert "of 200" in said
