"""The command: a table for people, JSON lines for programs, a line for each bad file, and an honest exit status."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture
def folder(tested: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    for index in range(3):
        inside = tmp_path / "pictures" / ("deep" if index == 2 else "")
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tested[0][index, 0]).resize((84, 84)).save(inside / f"{index}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def command(made: Path, *words: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "lockstep", "predict", *map(str, words), "--model", str(made / "model.onnx")]
    return subprocess.run(line, cwd=ROOT, input=stdin, capture_output=True, check=False)


def rows(done: subprocess.CompletedProcess[bytes]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_a_line_of_json_for_each_picture(made: Path, folder: Path) -> None:
    done = command(made, folder / "0.png", folder / "1.png", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = rows(done)
    assert list(first) == ["file", "label", "probability", "probabilities"]
    assert [first["file"], second["file"]] == [str(folder / "0.png"), str(folder / "1.png")]
    assert first["probability"] == first["probabilities"][first["label"]] == max(first["probabilities"].values())


def test_folders_to_their_depths_globs_and_the_standard_input(made: Path, folder: Path) -> None:
    every = [str(folder / name) for name in ("0.png", "1.png", "deep/2.png")]
    assert [row["file"] for row in rows(command(made, folder, "--json"))] == every
    assert [row["file"] for row in rows(command(made, f"{folder}/*.png", "--json"))] == every[:2]
    assert [row["file"] for row in rows(command(made, f"{folder}/**/*.png", "--json"))] == every
    (one,) = rows(command(made, "-", "--json", stdin=(folder / "1.png").read_bytes()))
    assert one == rows(command(made, folder / "1.png", "--json"))[0] | {"file": "-"}
    assert rows(command(made, "--json", stdin=(folder / "1.png").read_bytes())) == [one]


def test_the_table_shows_as_many_classes_as_asked(made: Path, folder: Path) -> None:
    done = command(made, folder / "0.png", folder / "deep" / "2.png", "--top", "3")
    lines = done.stdout.decode().splitlines()
    best = rows(command(made, folder / "0.png", "--json"))[0]
    assert len(lines) == 2
    assert lines[0].split()[:3] == [str(folder / "0.png"), best["label"], f"{best['probability']:.2%}"]
    assert lines[0].count("%") == lines[1].count("%") == 3


def test_a_bad_file_is_a_line_and_the_rest_go_on(made: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bad = [folder / "notes.txt", tmp_path / "missing.png", tmp_path / "empty", f"{tmp_path}/*.none", "x" * 300]
    done = command(made, *bad[:2], folder / "0.png", *bad[2:], folder / "1.png", "--json")
    assert done.returncode == 1
    assert [row["file"] for row in rows(done)] == [str(folder / "0.png"), str(folder / "1.png")]
    lines = done.stderr.decode().splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(each) for each in bad]
    assert "not a readable image" in lines[0]
    assert "No such file" in lines[1]
    assert "contains no image" in lines[2]


def test_without_a_model_or_a_picture_nothing_is_begun(made: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lockstep", "predict", str(folder / "0.png"), "--model", "no.onnx"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "no.onnx: there is no such file; `dvc repro` or `dvc pull` makes data/model/model.onnx"
    ]
    assert command(made, "--top", "0", folder / "0.png").returncode == 2
    assert command(made, stdin=b"").stderr == b"-: the file is empty\n"


def test_a_reader_that_has_seen_enough_is_no_error(made: Path, folder: Path) -> None:
    many = " ".join([str(folder / "0.png")] * 300)
    shell = f"{sys.executable} -m lockstep predict {many} --json --model {made / 'model.onnx'} | head -1"
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_more_pictures_than_a_batch_keep_their_order(made: Path, folder: Path) -> None:
    names = [folder / f"{index % 2}.png" for index in range(150)]
    assert [row["file"] for row in rows(command(made, *names, "--json"))] == list(map(str, names))
