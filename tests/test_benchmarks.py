"""The benchmarks of trainings print a table, and measure nothing twice."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_raw
from PIL import Image
from repositories import STAGES, create_project, run_command

from flows.dvc.params_file import set_param

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in MNIST's form, and no numbers yet."""
    folder = create_project(tmp_path_factory.mktemp("bench") / "project", {})
    write_raw(folder / "data" / "raw")
    results_path(folder).unlink(missing_ok=True)
    return folder


@pytest.fixture
def finished_copy(finished_project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_project, tmp_path / "project", symlinks=True))


def results_path(project: Path) -> Path:
    return project / "benchmarks" / "results" / "training.jsonl"


def read_measurements(project: Path) -> list[tuple[str, int]]:
    rows = map(json.loads, results_path(project).read_text().splitlines())
    return [(row["recipe"], row["seed"]) for row in rows if "recipe" in row]


def run_benchmark(project: Path, *arguments: str) -> str:
    return run_command(project, sys.executable, "-m", "benchmarks.training", *arguments).stdout


def read_cells(output: str, recipe: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.startswith(f"| `{recipe}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_missing_measurements_are_made_and_compared_with_the_references(project: Path, tmp_path: Path) -> None:
    output_without_reference = run_benchmark(
        project, "--only", "quick", "--seeds", "1"
    )  # no reference has been measured yet
    assert read_cells(output_without_reference, "quick")[1] == "1"
    assert read_cells(output_without_reference, "quick")[5] == "none is"
    plot = tmp_path / "speed.png"
    output = run_benchmark(project, "--only", "quick", "--only", "reference_a", "--seeds", "2", "--plot", str(plot))
    # seed 0 of quick was not measured again
    assert read_measurements(project) == [("quick", 0), ("reference_a", 0), ("quick", 1), ("reference_a", 1)]
    rows = [json.loads(line) for line in results_path(project).read_text().splitlines()]
    quick = [row for row in rows if row.get("recipe") == "quick"]
    mean = sum(row["accuracy"] for row in quick) / 2
    assert read_cells(output, "quick")[1:3] == ["2", f"{mean:.2%} ({min(row['accuracy'] for row in quick):.2%})"]
    base = float(read_cells(output, "reference_a")[3])
    seconds = float(read_cells(output, "quick")[3])
    rounding = 0.005 + seconds / base * (0.005 / seconds + 0.005 / base)  # all three are printed with two decimals
    assert float(read_cells(output, "quick")[4]) == pytest.approx(seconds / base, abs=rounding)
    assert read_cells(output, "quick")[5].endswith("(`reference_a`)")
    assert "Reference A first touches 99.0% after" in output
    with Image.open(plot) as picture:
        assert min(picture.size) > 300


def test_an_unknown_recipe_is_one_line(project: Path) -> None:
    result = run_command(project, sys.executable, "-m", "benchmarks.training", "--only", "quik", status=None)
    assert result.returncode == 1
    assert result.stderr.startswith("quik is no recipe; ")
    assert len(result.stderr.splitlines()) == 1


def test_without_mnist_it_says_how_to_get_it(project: Path) -> None:
    source = project / "data" / "raw" / "source.json"
    content = source.read_text()
    source.write_text(content.replace('"mnist"', '"digits"', 1))
    result = run_command(project, sys.executable, "-m", "benchmarks.training", status=None)
    source.write_text(content)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "make run DATASET=mnist" in result.stderr


def test_portable_and_native_arithmetic_are_measured_alone_and_in_parallel(project: Path, tmp_path: Path) -> None:
    for name, value in {"train.min_steps": 20, "train.epochs": 0, "train.batch": 32, "machine.threads": 1}.items():
        set_param(project / "params.yaml", name, value)
    paths = ["--raw", "data/raw", "--splits", "data/splits", "--samples", str(tmp_path / "samples.png")]
    paths += ["--findings", str(tmp_path / "data.md")]
    run_command(project, sys.executable, "-m", "stages.preprocess", "--params", "params.yaml", *paths)
    lines = run_command(project, sys.executable, "-m", "benchmarks.arithmetic", "--rounds", "1").stdout.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [head.split(":")[0] for head in heads] == [
        "portable or native",
        "alone, by how threads wait",
        "two side by side, by how threads wait",
    ]
    assert all(re.search(r" [\d.]+ s, .* [\d.]+ s, ratio [\d.]+$", head) for head in heads)


def test_the_costs_of_each_stage_and_of_ten_times_the_data_are_measured(finished_copy: Path) -> None:
    result = run_command(finished_copy, sys.executable, "-m", "benchmarks.pipeline", "--rounds", "1")
    for name in STAGES:
        assert re.search(rf"^\| {name} \| [\d.]+ s \|", result.stdout, re.MULTILINE)
    assert "`dvc repro` with nothing to do: " in result.stdout
    assert re.search(r"An epoch of [\d,]+ images takes [\d.]+ times as long", result.stdout)


@pytest.mark.skipif(not shutil.which("wrk"), reason="the client of this benchmark, wrk, is not installed")
def test_the_service_is_measured_at_1_8_and_64_connections(finished_copy: Path) -> None:
    command = ("-m", "benchmarks.service", "--seconds", "1", "--rounds", "1")
    result = run_command(finished_copy, sys.executable, *command)
    rows = [line.strip("| ").split(" | ")[:2] for line in result.stdout.splitlines()[4:]]
    assert rows[0] == ["library, pixels, without HTTP", "1"]
    names = ["pixels as JSON", "raw pixels", "V2 with binary data", "PNG of 140 x 140"]
    services = [f"service, {name}" for name in names] + [f"service, 2 workers, {name}" for name in names[1::2]]
    assert rows[1:] == [[name, connections] for name in services for connections in ("1", "8", "64")]


def test_photos_is_compared_on_made_pictures_that_the_seed_alone_determines(tmp_path: Path) -> None:
    from benchmarks.made_images import SIZE, write_image_folder

    names = write_image_folder(tmp_path / "one", "glyphs", 4, 1, seed=3, label_noise=0.25)
    write_image_folder(tmp_path / "two", "glyphs", 4, 1, seed=3, label_noise=0.25)
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*.png"))]
    assert len(files) == len(names) * 5
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    mislabelled = [file for file in files if not file.name.startswith(f"{file.parent.name}-")]
    assert {file.parts[0] for file in mislabelled} == {"train"}
    assert len(mislabelled) == len(names)  # one of four
    with Image.open(tmp_path / "one" / files[0]) as picture:
        assert (picture.size, picture.mode) == ((SIZE, SIZE), "RGB")
    short = ["--override", "train.epochs=0", "--override", "train.min_steps=3", "--override", "train.batch=16"]
    size = ["--train", "12", "--test", "2", "--only", "signs"]
    done = run_command(ROOT, sys.executable, "-m", "benchmarks.photos", *size, *short)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| signs")]
    rivals = ("as its tutorial, the same time", "as its tutorial, twice the time", "AdamW, twice the time")
    assert [row[1] for row in rows] == [
        "the default",
        "`photos`",
        *(f"torchvision's ResNet-18, {way}" for way in rivals),
    ]
