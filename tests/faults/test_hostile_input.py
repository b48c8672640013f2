"""Names, files and settings of an attacker run no code and no shell command, and secrets are in no log or report."""

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, stage_command, write_params
from counts import record
from repositories import command_environment, run_command
from served import Service, form_body, png_bytes
from toys import create_toy_repository, run_flow_module

from stages.core.errors import StageError
from stages.core.splits import read_labels
from stages.sources.embedded import read_array
from stages.training.checkpoint import Checkpoint

SOURCES = sorted(path for room in ("stages", "flows", "lockstep", "benchmarks") for path in (ROOT / room).rglob("*.py"))
COMMANDS = (
    "$(touch marker)",
    "`touch marker`",
    "; touch marker",
    "| touch marker",
    "a\ntouch marker",
    "&& touch marker",
)
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "marshal.loads", "pickle.loads"}


# No source runs code that data hold.


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_source_unpickles_evaluates_or_starts_a_shell(file: Path) -> None:
    assert list(find_dangers(ast.parse(file.read_text()))) == []


def find_dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in ("pickle", "marshal", "shelve", "dill"))
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in FORBIDDEN_CALLS or options.get("shell", "False") != "False":
                yield ast.unparse(node)
            if called == "torch.load" and options.get("weights_only") != "True":
                yield ast.unparse(node)
            if called in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
                yield ast.unparse(node)
            if called == "YAML" and options.get("typ", "'rt'") not in ("'rt'", "'safe'"):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "eval(x)",
        "run(x, shell=True)",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "YAML(typ='unsafe')",
    ],
)
def test_the_search_for_dangers_finds_them(source: str) -> None:
    assert list(find_dangers(ast.parse(source)))


class Payload:
    """Creates the file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickle_in_an_array_or_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    array = np.array([Payload(marker)], object)
    for name in ("train-labels.npy", "labels.npy"):
        np.save(tmp_path / name, array, allow_pickle=True)
    with pytest.raises(StageError):
        read_labels(tmp_path, "train")
    with pytest.raises(StageError):
        read_array(tmp_path / "labels.npy", ())
    checkpoint = Checkpoint(tmp_path / "checkpoints", "training", 1)
    checkpoint.save({"steps": Payload(marker)})
    assert checkpoint.load() is None
    checkpoint.path.write_bytes(pickle.dumps(Payload(marker)))
    assert checkpoint.load() is None
    torch.save(Payload(marker), checkpoint.path)
    assert checkpoint.load() is None
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the payload does nothing, and the test shows nothing"


# No name reaches a shell.


def test_names_of_files_and_of_a_form_reach_no_shell(service: Service, tmp_path: Path) -> None:
    image = png_bytes(np.zeros((28, 28), np.uint8) + np.uint8(200))
    for name in COMMANDS:
        (tmp_path / f"{name}.png").write_bytes(image)
        body, content_type = form_body((name.replace("\n", " "), image))
        assert service.predict(body, content_type).status in (200, 422)
    names = [*(f"{name}.png" for name in COMMANDS), *COMMANDS, "-"]
    done = subprocess.run(
        [sys.executable, "-m", "lockstep", "predict", "--model", str(ROOT / "lockstep/published/model.onnx"), *names],
        cwd=tmp_path, env={**command_environment(), "PYTHONPATH": str(ROOT)}, input=image,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "marker").exists()
    assert not (ROOT / "marker").exists()


def test_names_of_class_folders_and_params_reach_no_shell(tmp_path: Path) -> None:
    from stages.download import download

    image = png_bytes(np.zeros((28, 28), np.uint8))
    for name in COMMANDS:
        if "\n" not in name:
            (tmp_path / "own" / name).mkdir(parents=True)
            (tmp_path / "own" / name / f"{name}.png").write_bytes(image)
    write_params(tmp_path / "params.yaml", {"download.dataset": "own"})
    run = {"cwd": tmp_path, "env": {**command_environment(), "PYTHONPATH": str(ROOT)}, "check": False}
    done = subprocess.run(stage_command(tmp_path, download), capture_output=True, text=True, **run)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS[:2]:
        write_params(tmp_path / "params.yaml", {"download.dataset": name})
        done = subprocess.run(stage_command(tmp_path, download), capture_output=True, text=True, **run)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_arguments_of_the_flows_reach_no_shell_and_are_no_options_of_git(tmp_path: Path, prefect_api_url: str) -> None:
    project = create_toy_repository(tmp_path / "a toy", {"make": []})
    branch = "$(touch${IFS}marker)"
    run_command(project, "git", "branch", branch)  # git allows it
    names = [branch, "; touch marker", "--output=marker"]
    for name in names:
        for module, arguments in (
            ("flows.pipeline", ("--plan", f"--only={name}")),
            ("flows.pipeline", ("-S", f"make.text={name}", "--where=clone", f"--commit-to={name}")),
            ("flows.compare", ("--", name, "HEAD")),
            ("flows.audit", ("--", name)),
        ):
            result = run_flow_module(project, *arguments, prefect_api_url=prefect_api_url, status=None, module=module)
            assert "Traceback" not in result.stdout + result.stderr, result.stderr
    assert not list(tmp_path.rglob("marker*"))
    record("hostile name", target="flows", outcomes={"no command run": 4 * len(names)})


# Secrets.

SECRETS = {
    "PREFECT_API_KEY": "pnu_s3cret1",
    "AWS_SECRET_ACCESS_KEY": "s3cret2",
    "GIT_PASSWORD": "s3cret3",
    "LOCKSTEP_MIRROR": "http://somebody:s3cret4@127.0.0.1:9/",
}


@pytest.mark.slow
@pytest.mark.ci
def test_secrets_are_in_no_log_and_no_report(tmp_path: Path, prefect_api_url: str) -> None:
    project = create_toy_repository(tmp_path / "a toy", {"make": []})
    run_command(project, "git", "remote", "add", "origin", "http://somebody:s3cret5@127.0.0.1:9/x.git")
    run_command(project, "dvc", "remote", "add", "--default", "storage", "http://somebody:s3cret6@127.0.0.1:9/x")
    run_command(project, "git", "commit", "-qam", "remote")
    env = {**command_environment(), **SECRETS, "PREFECT_API_URL": prefect_api_url, "no_proxy": "127.0.0.1"}
    shown = ""
    for arguments in ((), ("--plan",), ("--where", "clone", "--commit-to", "results", "--push")):
        done = subprocess.run(
            [sys.executable, "-m", "flows.pipeline", *arguments],
            cwd=project, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        shown += done.stdout + done.stderr
    files = [path for path in project.rglob("*") if path.is_file() and not {".git", ".dvc"} & {*path.parts}]
    shown += "".join(path.read_text(errors="replace") for path in files)
    found = [number for number in range(1, 7) if f"s3cret{number}" in shown]
    assert not found, [line for line in shown.splitlines() if "s3cret" in line]
