"""The distribution in an empty virtual environment, schemathesis, and clients that send bad requests."""

import json
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from served import run_service

pytestmark = pytest.mark.slow

PIPELINE_PACKAGES = {"torch", "onnx", "dvc", "prefect", "fastapi", "pydantic", "scikit-learn"}
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """The standard output and error of a command that ends with the status."""
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist of what is committed."""
    folder = tmp_path_factory.mktemp("distributions")
    run("git", "clone", "-q", ROOT, folder / "source", cwd=folder)
    uv = Path(sys.executable).with_name("uv")
    run(uv, "build", "-q", "--sdist", "--wheel", "--out-dir", folder / "dist", folder / "source", cwd=folder)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def venv(
    request: pytest.FixtureRequest, distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An environment with one of the distributions and its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    run(folder / "bin" / "python", *PIP, distributions[request.param], cwd=folder.parent)
    return folder


def installed_packages(venv: Path) -> set[str]:
    listing = run(venv / "bin" / "python", "-m", "pip", "list", "--format", "json", cwd=venv)
    return {package["name"] for package in json.loads(listing.splitlines()[0])}


@pytest.mark.ci
def test_the_distributions_contain_the_package_only_and_complete_metadata(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = wheel.namelist()
        (metadata_name,) = (name for name in names if name.endswith("METADATA"))
        metadata = HeaderParser().parsestr(wheel.read(metadata_name).decode())
    assert {name.split("/")[0] for name in names} == {"lockstep", metadata_name.split("/")[0]}
    assert {"lockstep/py.typed", "lockstep/service/page.html", "lockstep/__main__.py"} <= set(names)
    with tarfile.open(distributions["sdist"]) as sdist:
        sources = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {"lockstep/py.typed", "lockstep/service/page.html", "LICENSE", "README.md"} <= sources
    assert not {name.split("/")[0] for name in sources} & {"stages", "flows", "tests", "benchmarks", "data"}
    version = metadata["Version"]
    assert metadata_name.startswith(f"lockstep_onnx-{version}.dist-info/")
    assert (metadata["Name"], metadata["License-Expression"]) == ("lockstep-onnx", "MIT")
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(metadata.get_all("Classifier", [])) > 5


@pytest.mark.ci
def test_library_and_command_work_in_an_empty_environment(
    venv: Path, stage_outputs: Path, tmp_path: Path, distributions: dict[str, Path]
) -> None:
    assert not installed_packages(venv) & {*PIPELINE_PACKAGES, "starlette", "uvicorn", "pytest"}
    image = Image.new("L", (80, 80), 255)
    image.paste(0, (30, 20, 38, 60))
    image.save(tmp_path / "one.png")
    command, model = venv / "bin" / "lockstep", stage_outputs / "model.onnx"
    line = json.loads(run(command, "predict", "one.png", "--json", "--model", model, cwd=tmp_path))
    program = (
        "import lockstep; "
        f"print(lockstep.__version__, lockstep.Classifier({str(model)!r}, verify=True).predict('one.png').label)"
    )
    version = distributions["wheel"].name.split("-")[1]
    assert run(venv / "bin" / "python", "-c", program, cwd=tmp_path).split() == [version, line["label"]]
    assert run(command, "--version", cwd=tmp_path) == f"lockstep-onnx {version}\n"
    assert "is proven" in run(command, "verify", model, cwd=tmp_path)
    assert "is proven" in run(venv / "bin" / "python", "-m", "lockstep", "verify", model, cwd=tmp_path)
    reply = run(command, "serve", "--model", model, cwd=tmp_path, status=2)
    assert reply.endswith(": in a checkout, pip install '.[service]'\n")
    assert len(reply.splitlines()) == 1


def test_the_service_installs_as_an_extra(
    venv: Path, stage_outputs: Path, tmp_path: Path, distributions: dict[str, Path]
) -> None:
    python = venv / "bin" / "python"
    run(python, *PIP, f"{distributions['wheel']}[service]", cwd=tmp_path)
    assert not installed_packages(venv) & PIPELINE_PACKAGES
    program = f"""
import http.client, subprocess, sys
line = [sys.executable, "-m", "lockstep", "serve", "--port", "0", "--model", {str(stage_outputs / "model.onnx")!r}]
with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
    port = int(process.stdout.readline().split(":")[2].split("/")[0])
    try:
        for path, content in (("/", b"<canvas"), ("/metrics", b"lockstep_model_info"), ("/openapi.json", b"3.1.0")):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            assert content in connection.getresponse().read()
    finally:
        process.terminate()
"""
    run(python, "-c", program, cwd=tmp_path)


def test_schemathesis_finds_no_difference_from_the_openapi_document(stage_outputs: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    run(programs / "python", *PIP, "schemathesis", cwd=tmp_path)
    config = ("--config-file", Path(__file__).with_name("schemathesis.toml"))
    with run_service(
        tmp_path, stage_outputs / "model.onnx", "--max-images", "2"
    ) as service:  # generating 64 takes long
        url = f"{service.url}openapi.json"
        run(programs / "schemathesis", *config, "run", url, "--max-examples", "30", cwd=tmp_path)


@pytest.mark.ci
def test_the_service_survives_good_and_bad_requests_mixed(stage_outputs: Path) -> None:
    output = run(
        sys.executable, "-m", "benchmarks.soak", "--minutes", "0.5", "--model", stage_outputs / "model.onnx", cwd=ROOT
    )
    assert "of 200" in output
