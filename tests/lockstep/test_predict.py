"""`lockstep predict`: a table or JSON lines, one line per bad file, and the exit status."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture
def images(test_set: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    for index in range(3):
        subfolder = tmp_path / "images" / ("deep" if index == 2 else "")
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test_set[0][index, 0]).resize((84, 84)).save(subfolder / f"{index}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def run_predict(
    stage_outputs: Path, *arguments: str | Path, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [
        sys.executable,
        "-m",
        "lockstep",
        "predict",
        *map(str, arguments),
        "--model",
        str(stage_outputs / "model.onnx"),
    ]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, check=False)


def parse_rows(result: subprocess.CompletedProcess[bytes]) -> list[dict]:
    return [json.loads(line) for line in result.stdout.decode().splitlines()]


def test_one_line_of_json_per_image(stage_outputs: Path, images: Path) -> None:
    result = run_predict(stage_outputs, images / "0.png", images / "1.png", "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    first, second = parse_rows(result)
    assert list(first) == ["file", "label", "probability", "probabilities"]
    assert [first["file"], second["file"]] == [str(images / "0.png"), str(images / "1.png")]
    assert first["probability"] == first["probabilities"][first["label"]] == max(first["probabilities"].values())


def test_folders_globs_and_the_standard_input(stage_outputs: Path, images: Path) -> None:
    paths = [str(images / name) for name in ("0.png", "1.png", "deep/2.png")]
    assert [row["file"] for row in parse_rows(run_predict(stage_outputs, images, "--json"))] == paths
    assert [row["file"] for row in parse_rows(run_predict(stage_outputs, f"{images}/*.png", "--json"))] == paths[:2]
    assert [row["file"] for row in parse_rows(run_predict(stage_outputs, f"{images}/**/*.png", "--json"))] == paths
    (row,) = parse_rows(run_predict(stage_outputs, "-", "--json", stdin=(images / "1.png").read_bytes()))
    assert row == parse_rows(run_predict(stage_outputs, images / "1.png", "--json"))[0] | {"file": "-"}
    assert parse_rows(run_predict(stage_outputs, "--json", stdin=(images / "1.png").read_bytes())) == [row]


def test_top_sets_the_number_of_classes_in_the_table(stage_outputs: Path, images: Path) -> None:
    result = run_predict(stage_outputs, images / "0.png", images / "deep" / "2.png", "--top", "3")
    lines = result.stdout.decode().splitlines()
    best = parse_rows(run_predict(stage_outputs, images / "0.png", "--json"))[0]
    assert len(lines) == 2
    assert lines[0].split()[:3] == [str(images / "0.png"), best["label"], f"{best['probability']:.2%}"]
    assert lines[0].count("%") == lines[1].count("%") == 3


def test_a_bad_file_is_one_line_and_the_others_are_classified(
    stage_outputs: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    bad_sources = [images / "notes.txt", tmp_path / "missing.png", tmp_path / "empty", f"{tmp_path}/*.none", "x" * 300]
    result = run_predict(
        stage_outputs, *bad_sources[:2], images / "0.png", *bad_sources[2:], images / "1.png", "--json"
    )
    assert result.returncode == 1
    assert [row["file"] for row in parse_rows(result)] == [str(images / "0.png"), str(images / "1.png")]
    lines = result.stderr.decode().splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(source) for source in bad_sources]
    assert "not a readable image" in lines[0]
    assert "No such file" in lines[1]
    assert "contains no image" in lines[2]


def test_without_a_model_or_an_image_it_fails(stage_outputs: Path, images: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lockstep", "predict", str(images / "0.png"), "--model", "no.onnx"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "no.onnx: there is no such file; `dvc repro` or `dvc pull` makes data/model/model.onnx"
    ]
    assert run_predict(stage_outputs, "--top", "0", images / "0.png").returncode == 2
    assert run_predict(stage_outputs, stdin=b"").stderr == b"-: the file is empty\n"


def test_a_closed_pipe_is_not_an_error(stage_outputs: Path, images: Path) -> None:
    many = " ".join([str(images / "0.png")] * 300)
    shell = f"{sys.executable} -m lockstep predict {many} --json --model {stage_outputs / 'model.onnx'} | head -1"
    result = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_images_of_several_batches_keep_their_order(stage_outputs: Path, images: Path) -> None:
    names = [images / f"{index % 2}.png" for index in range(150)]
    assert [row["file"] for row in parse_rows(run_predict(stage_outputs, *names, "--json"))] == list(map(str, names))


def test_reject_says_none_of_these(handwriting_model: Path, tmp_path: Path) -> None:
    digit = load_digits().images[10] * 15  # of class 0
    Image.fromarray(digit.astype(np.uint8)).resize((80, 80), Image.Resampling.BICUBIC).save(tmp_path / "digit.png")
    stripes = np.full((80, 80), 255, np.uint8)
    stripes[20:60, 20:60] = np.arange(40) % 8 // 4 * 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    arguments = (handwriting_model.parent, tmp_path / "stripes.png", tmp_path / "digit.png")
    rows = parse_rows(run_predict(*arguments, "--json", "--reject"))
    assert [row["label"] for row in rows] == [None, "0"]
    table = run_predict(*arguments, "--reject").stdout.decode().splitlines()
    assert ["none of these" in line for line in table] == [True, False]
    assert "none of these" not in run_predict(*arguments).stdout.decode()


def test_reject_with_a_model_that_cannot_is_one_line(model_copy: Path, images: Path) -> None:
    proto = onnx.load(model_copy)
    kept = {entry.key: entry.value for entry in proto.metadata_props if not entry.key.startswith("reject")}
    onnx.helper.set_model_props(proto, kept)
    model_copy.write_bytes(proto.SerializeToString())
    result = run_predict(model_copy.parent, images, "--reject", "--no-verify")
    assert result.returncode == 2
    assert b"cannot reject images" in result.stderr
    assert result.stderr.count(b"\n") == 1
