"""`make run` works without a network, and says which data set it uses."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from repositories import CompletedCommand, run_command

from flows.dvc.params_file import get_param, set_param


def make_run(project: Path, *arguments: str) -> CompletedCommand:
    return run_command(project, sys.executable, "-m", "flows.make_run", *arguments, status=None)


def test_without_a_mirror_it_uses_the_embedded_digits_and_says_that_first_and_last(project: Path) -> None:
    params = project / "params.yaml"
    set_param(params, "download.dataset", "mnist")
    comments = [line.split("#")[1] for line in params.read_text().splitlines() if "#" in line]
    result = make_run(project)
    assert result.returncode == 0, result.stderr
    assert get_param(params, "download.dataset") == "digits"
    assert [line.split("#")[1] for line in params.read_text().splitlines() if "#" in line] == comments
    note = "No mirror delivers mnist: download.dataset is now digits"
    lines = result.stdout.strip().splitlines()
    assert note in next(
        line for line in lines if not line.startswith("mirror")
    )  # the mirrors that were asked come first
    assert note in lines[-1]
    assert "make run DATASET=mnist" in lines[-1]


def test_it_ends_with_the_result_as_a_short_table(project: Path) -> None:
    result = make_run(project)
    assert result.returncode == 0, result.stderr
    table = result.stdout[result.stdout.rindex("\n  data set") :]
    assert table.split()[2] == "digits"
    for word in ("accuracy", "95 % interval", "parity     proven: 16 configurations", "data/model/model.onnx"):
        assert word in table


def test_a_requested_data_set_is_never_replaced(project: Path) -> None:
    former = (project / "params.yaml").read_bytes()
    result = make_run(project, "--dataset", "kmnist")
    assert result.returncode == 69
    assert "codh.rois.ac.jp" in result.stderr
    assert (project / "params.yaml").read_bytes() == former


@pytest.mark.parametrize("name", ["mnits", "Digits"])
def test_an_unknown_data_set_is_one_line_and_changes_nothing(project: Path, name: str) -> None:
    former = (project / "params.yaml").read_bytes()
    result = make_run(project, "--dataset", name)
    assert result.returncode == 1
    assert result.stderr.startswith("download: params.yaml: download.dataset: input should be one of mnist, ")
    assert len(result.stderr.splitlines()) == 1
    assert (project / "params.yaml").read_bytes() == former


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda own: (own / "emu").mkdir(), "data/own/emu: an empty class; add images or remove the folder"),
        (lambda own: os.mkfifo(own / "cat/9.png"), "data/own/cat/9.png: is neither a file nor a folder; "),
        (lambda own: (own / os.fsdecode(b"cat/\xff.png")).touch(), "data/own/cat/\\xff.png: its name is not UTF-8"),
    ],
    ids=["empty class", "fifo", "not UTF-8"],
)
def test_what_dvc_does_not_see_in_own_images_is_one_line(
    make: Callable[[Path], object], message: str, project: Path
) -> None:
    """Of some of these DVC sees no change, with others it ends in an error that names no file, and FIFOs it awaits."""
    own = project / "data" / "own"
    for name in ("cat", "dog"):
        (own / name).mkdir()
        Image.new("L", (8, 8)).save(own / name / "1.png")
    make(own)
    result = make_run(project, "--dataset", "own")
    assert result.returncode == 1
    assert result.stderr.startswith(f"download: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert get_param(project / "params.yaml", "download.dataset") == "digits"


def test_an_empty_dvc_lock_is_repaired_and_reported_in_one_line(project: Path) -> None:
    complete = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").write_bytes(b"")
    result = make_run(project)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[0].startswith(
        "dvc.lock is empty: a DVC command was killed while it wrote it. Repaired"
    )
    assert (project / "dvc.lock").read_bytes() == complete
    assert "up to date" in result.stdout.lower() or "UpToDate" in result.stdout
