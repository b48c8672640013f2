"""The front door opens also where no mirror answers, and says what it did."""

import sys
from pathlib import Path

import pytest
from repositories import Done, run

from flows.dvc.params_file import get_param, set_param


def front_door(project: Path, *words: str) -> Done:
    return run(project, sys.executable, "-m", "flows.make_run", *words, status=None)


def test_without_a_mirror_it_takes_the_embedded_digits_and_says_so_first_and_last(project: Path) -> None:
    params = project / "params.yaml"
    set_param(params, "download.dataset", "mnist")
    comments = [line.split("#")[1] for line in params.read_text().splitlines() if "#" in line]
    done = front_door(project)
    assert done.returncode == 0, done.stderr
    assert get_param(params, "download.dataset") == "digits"
    assert [line.split("#")[1] for line in params.read_text().splitlines() if "#" in line] == comments
    note = "No mirror delivers mnist: download.dataset is now digits"
    lines = done.stdout.strip().splitlines()
    assert note in next(
        line for line in lines if not line.startswith("mirror")
    )  # the mirrors that were asked come first
    assert note in lines[-1]
    assert "make run DATASET=mnist" in lines[-1]


def test_it_ends_with_the_result_as_a_short_table(project: Path) -> None:
    done = front_door(project)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("\n  data set") :]
    assert table.split()[2] == "digits"
    for word in ("accuracy", "95 % interval", "parity     proven: 16 configurations", "data/model/model.onnx"):
        assert word in table


def test_a_data_set_that_was_asked_for_is_never_swapped(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    done = front_door(project, "--dataset", "kmnist")
    assert done.returncode == 69
    assert "codh.rois.ac.jp" in done.stderr
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["mnits", "Digits"])
def test_an_unknown_data_set_is_one_line_and_changes_nothing(project: Path, name: str) -> None:
    before = (project / "params.yaml").read_bytes()
    done = front_door(project, "--dataset", name)
    assert done.returncode == 1
    assert done.stderr.startswith("download: params.yaml: download.dataset: input should be 'mnist', 'fashion-mnist'")
    assert len(done.stderr.splitlines()) == 1
    assert (project / "params.yaml").read_bytes() == before


def test_a_dvc_lock_that_a_plain_repro_left_empty_is_mended_and_said_in_a_line(project: Path) -> None:
    whole = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").write_bytes(b"")
    done = front_door(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith(
        "dvc.lock is empty: a DVC command was killed while it wrote it; repaired"
    )
    assert (project / "dvc.lock").read_bytes() == whole
    assert "up to date" in done.stdout.lower() or "UpToDate" in done.stdout
