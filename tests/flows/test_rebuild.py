"""Independent rebuilds: each clone runs the commit again, and signs that it got the same bytes, or does not."""

import sys
from pathlib import Path

import pytest
from repositories import CompletedCommand, commit_all, run_command, run_dvc
from served import make_keys
from toys import run_flow_module

from flows.dvc.params_file import set_param

MODEL = "data/model/model.onnx"
STATEMENTS = "data/model/model.intoto.jsonl"


def rebuild(clone: Path, prefect_api_url: str, key: Path, revision: str = "HEAD", status: int = 0) -> CompletedCommand:
    """`lockstep rebuild` in the clone."""
    flags = ("rebuild", revision, "--private-key", str(key))
    return run_flow_module(clone, *flags, prefect_api_url=prefect_api_url, status=status, module="lockstep")


def verify(folder: Path, *flags: str, status: int = 0) -> CompletedCommand:
    return run_command(folder, sys.executable, "-m", "lockstep", "verify", MODEL, *flags, status=status)


@pytest.mark.slow
@pytest.mark.ci
def test_two_of_three_clones_rebuild_the_model_and_one_with_another_seed_is_refused(
    project: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    keys = {name: make_keys(tmp_path, name) for name in "abc"}
    clones = {name: tmp_path / name for name in "abc"}
    for clone in clones.values():
        run_command(tmp_path, "git", "clone", "-q", str(project), str(clone))
        run_command(clone, "git", "config", "user.email", "test@example.org")
        run_command(clone, "git", "config", "user.name", "test")
        (clone / "data/model").mkdir(exist_ok=True)
    for name in "ab":
        result = rebuild(clones[name], prefect_api_url, keys[name][0])
        assert "the same bytes as in dvc.lock: CARD.md, certificate.json, golden.json, model.onnx" in result.stdout

    set_param(clones["c"] / "params.yaml", "train.seed", 77)
    commit_all(clones["c"])
    result = rebuild(clones["c"], prefect_api_url, keys["c"][0], status=1)
    assert "Not stated: bytes differ from those of dvc.lock in " in result.stdout
    assert not (clones["c"] / STATEMENTS).exists()
    run_dvc(clones["c"], "repro", "-q")  # its own model, which it may state
    commit_all(clones["c"])
    rebuild(clones["c"], prefect_api_url, keys["c"][0])

    trusted = [word for name in "abc" for word in ("--rebuilder-key", str(keys[name][1]))]
    (project / STATEMENTS).write_bytes(b"".join((clones[name] / STATEMENTS).read_bytes() for name in "ca"))
    result = verify(project, "--rebuilt", "2", *trusted, status=1)
    assert "1 of 3 keys have stated that a rebuild gave these bytes, 2 are required; 1 of their" in result.stderr
    with (project / STATEMENTS).open("ab") as file:
        file.write((clones["b"] / STATEMENTS).read_bytes())
    assert "rebuilt by 2 or more of the keys" in verify(project, "--rebuilt", "2", *trusted).stdout
    verify(project, "--rebuilt", "3", *trusted, status=1)


def test_what_cannot_be_rebuilt_is_one_line(project: Path, prefect_api_url: str, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "a")
    assert "there is no revision v9 here" in rebuild(project, prefect_api_url, private, "v9", status=1).stdout
    result = rebuild(project, prefect_api_url, public, status=1)
    assert "a.pub: not a private key without a password, as PEM" in result.stdout
    assert "none: cannot be read" in rebuild(project, prefect_api_url, tmp_path / "none", status=1).stdout
    set_param(project / "params.yaml", "machine.arithmetic", "native")
    commit_all(project)
    result = rebuild(project, prefect_api_url, private, status=1)
    assert "params.yaml: machine.arithmetic is native: only portable is the same on every CPU" in result.stdout
    lock = project / "requirements.lock"
    lock.write_text(lock.read_text() + "another==1\n")
    result = rebuild(project, prefect_api_url, private, status=1)
    assert "has another requirements.lock: git checkout" in result.stdout
    elsewhere = run_command(
        tmp_path, sys.executable, "-m", "lockstep", "rebuild", "--private-key", str(private), status=2
    )
    assert elsewhere.stderr == (
        "lockstep rebuild: this needs a clone of the project as the current folder, and `make setup` there\n"
    )
