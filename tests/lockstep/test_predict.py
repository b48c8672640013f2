"""`lockstep predict`: its formats and files, one line per bad file, many files on all cores, and the exit status."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pyarrow.parquet
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_digits
from toys import wait_until


@pytest.fixture
def images(test_set: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    for index in range(3):
        subfolder = tmp_path / "images" / ("deep" if index == 2 else "")
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test_set[0][index, 0]).resize((84, 84)).save(subfolder / f"{index}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def predict_command(stage_outputs: Path, *arguments: str | Path) -> list[str]:
    model = str(stage_outputs / "model.onnx")
    return [sys.executable, "-m", "lockstep", "predict", *map(str, arguments), "--model", model]


def run_predict(
    stage_outputs: Path, *arguments: str | Path, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = predict_command(stage_outputs, *arguments)
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
    rows = parse_rows(result)
    assert [row["file"] for row in rows if "error" not in row] == [str(images / "0.png"), str(images / "1.png")]
    lines = result.stderr.decode().splitlines()
    assert [f"{row['file']}: {row['error']}" for row in rows if "error" in row] == lines
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


def read_csv(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_csv_and_parquet_have_the_rows_of_json(stage_outputs: Path, images: Path, tmp_path: Path) -> None:
    odd = images / 'a "b", c.png'
    odd.write_bytes((images / "0.png").read_bytes())
    sources = (odd, images / "notes.txt", images / "1.png")
    expected = parse_rows(run_predict(stage_outputs, *sources, "--json"))
    result = run_predict(stage_outputs, *sources, "--format", "csv")
    assert result.returncode == 1
    rows = read_csv(result.stdout)
    classes = [f"probability_{label}" for label in "0123456789"]
    assert list(rows[0]) == ["file", "label", "probability", "error", *classes]
    written = run_predict(stage_outputs, *sources, "--output", tmp_path / "rows.parquet")
    assert (written.returncode, written.stdout, written.stderr) == (1, b"", result.stderr)
    parquet = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    for row, same, wanted in zip(rows, parquet, expected, strict=True):
        assert row["file"] == same["file"] == wanted["file"]
        assert (row["label"] or None, row["error"] or None) == (same["label"], same["error"])
        assert (same["label"], same["error"]) == (wanted.get("label"), wanted.get("error"))
        if "error" not in wanted:
            probabilities = list(wanted["probabilities"].values())
            assert [float(row[name]) for name in classes] == [same[name] for name in classes] == probabilities
            assert float(row["probability"]) == same["probability"] == wanted["probability"]
    assert expected[1]["error"]
    assert (rows[1]["probability"], parquet[1]["probability"]) == ("", None)


def test_output_is_what_would_be_printed_and_its_suffix_names_the_format(
    stage_outputs: Path, images: Path, tmp_path: Path
) -> None:
    for name, flags in (("a.csv", ["--format", "csv"]), ("a.jsonl", ["--json"]), ("a.txt", []), ("a.json", ["--json"])):
        printed = run_predict(stage_outputs, images, *flags).stdout
        assert run_predict(stage_outputs, images, "--output", tmp_path / name).stdout == b""
        assert (tmp_path / name).read_bytes() == printed
    run_predict(stage_outputs, images, "--json", "--output", tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "rows.xyz"], "its suffix names no format"),
        (["--output", "."], "is not a file"),
        (["--output", "missing/rows.csv"], "cannot be written: No such file"),
        (["--output", "missing/rows.parquet"], "cannot be written: No such file"),
        (["--format", "parquet"], "needs --output"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(
    stage_outputs: Path, images: Path, flags: list[str], message: str
) -> None:
    result = run_predict(stage_outputs, images / "0.png", *flags)
    assert (result.returncode, result.stdout) == (2, b"")
    assert message in result.stderr.decode()
    assert len(result.stderr.splitlines()) == 1


def test_parquet_without_pyarrow_is_one_line(stage_outputs: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    command = predict_command(stage_outputs, images / "0.png", "--output", tmp_path / "a.parquet")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "pip install pyarrow" in result.stderr


def test_a_link_to_the_output_stays_and_a_failed_start_changes_nothing(
    stage_outputs: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("before")
    (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
    command = predict_command(stage_outputs, images, "--output", tmp_path / "link.csv")
    assert subprocess.run([*command, "--model", "no.onnx"], cwd=ROOT, capture_output=True, check=False).returncode == 2
    assert (tmp_path / "rows.csv").read_text() == "before"
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read_csv((tmp_path / "rows.csv").read_bytes())) == 3
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def many_files(images: Path) -> list[str]:
    """Enough for workers to be started, with a bad one among them."""
    large = Image.open(images / "0.png").resize((2800, 2800))
    large.save(images / "large.png", compress_level=1)
    names = [str(images / name) for name in ("0.png", "1.png", "large.png", "notes.txt", "deep/2.png")]
    return names * 40


def worker_processes(process: subprocess.Popen) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]


def start_with_workers(command: list[str], **options: object) -> tuple[subprocess.Popen, list[psutil.Process]]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    wait_until(lambda: process.poll() is not None or len(worker_processes(process)) == 2, 30)
    assert process.poll() is None
    return process, worker_processes(process)


def test_workers_change_neither_results_nor_their_order(
    stage_outputs: Path, many_files: list[str], images: Path, tmp_path: Path
) -> None:
    names = [*many_files, "-"]
    stdin = (images / "1.png").read_bytes()
    alone, together = (
        run_predict(stage_outputs, *names, "--json", "--threads", threads, stdin=stdin) for threads in ("1", "2")
    )
    assert [row["file"] for row in parse_rows(together)] == names
    assert together.stderr == alone.stderr
    for row, same in zip(parse_rows(together), parse_rows(alone), strict=True):
        assert (row.get("label"), row.get("error")) == (same.get("label"), same.get("error"))
        assert row.get("probability") == pytest.approx(same.get("probability"), abs=1e-5)
    assert parse_rows(together)[-1]["label"] == parse_rows(together)[1]["label"]


def test_workers_do_not_load_the_onnx_runtime_nor_modules_of_the_current_folder(
    stage_outputs: Path, many_files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    command = [sys.executable, "-P", "-m", *predict_command(stage_outputs, *many_files, "--threads", "2")[2:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: process.poll() is not None or len(worker_processes(process)) == 2, 30)
    maps = [Path(f"/proc/{child.pid}/maps") for child in worker_processes(process)]
    wait_until(lambda: all("_imaging" in path.read_text() for path in maps), 30)
    assert not any("onnxruntime" in path.read_text() for path in maps)
    output, errors = process.communicate(timeout=60)
    assert b"wrong" not in errors
    assert len(output.splitlines()) == 160


def test_ctrl_c_ends_all_processes_without_a_traceback(
    stage_outputs: Path, many_files: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "rows.csv"
    command = predict_command(stage_outputs, *many_files, *many_files, "--threads", "2", "--output", output)
    process, workers = start_with_workers(command, start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert all("not a readable image" in line for line in errors.decode().splitlines())
    wait_until(lambda: not any(worker.is_running() for worker in workers), 10)
    assert not list(tmp_path.glob("*rows*"))


def test_workers_end_with_a_killed_command(stage_outputs: Path, many_files: list[str]) -> None:
    process, workers = start_with_workers(predict_command(stage_outputs, *many_files, "--threads", "2"))
    process.kill()
    process.communicate()
    wait_until(lambda: not any(worker.is_running() for worker in workers), 10)


def test_a_killed_worker_is_one_line(stage_outputs: Path, many_files: list[str], tmp_path: Path) -> None:
    """As by the kernel, if memory is short."""
    output = tmp_path / "rows.csv"
    command = predict_command(stage_outputs, *many_files, *many_files, "--threads", "2", "--output", output)
    process, workers = start_with_workers(command)
    workers[0].kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "killed by signal 9" in errors.decode().splitlines()[-1]
    assert b"Traceback" not in errors
    wait_until(lambda: not workers[1].is_running(), 10)
    assert not list(tmp_path.glob("*rows*"))


def test_a_terminal_shows_the_progress(stage_outputs: Path, many_files: list[str], tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    command = predict_command(stage_outputs, *many_files, "--output", tmp_path / "rows.csv")
    process = subprocess.Popen(command, cwd=ROOT, stderr=side)
    os.close(side)
    shown = b""
    try:
        while piece := os.read(terminal, 65536):
            shown += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(terminal)
    assert process.wait() == 1
    assert b"of 200 images" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert shown.count(b"notes.txt: not a readable image") == 40


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_a_closed_standard_input_is_an_error_of_one_line(stage_outputs: Path, arguments: tuple[str, ...]) -> None:
    command = ["bash", "-c", 'exec "$@" <&-', "bash", *predict_command(stage_outputs, *arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "standard input" in done.stderr


def test_an_output_of_too_long_a_name_is_an_error_of_one_line(stage_outputs: Path, tmp_path: Path) -> None:
    done = run_predict(stage_outputs, "x.png", "--output", tmp_path / ("x" * 300 + ".csv"))
    assert done.returncode == 2
    assert "File name too long" in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_a_predict_that_is_terminated_leaves_no_partial_file(stage_outputs: Path, tmp_path: Path) -> None:
    command = predict_command(stage_outputs, "-", "--output", tmp_path / "t.csv")
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as process:
        wait_until(lambda: list(tmp_path.glob(".t.csv.*.partial")), 30)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
