"""`make run` works without a network, and says which data set it uses."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from repositories import CompletedCommand, run_command
from toys import last_run, run_flow_module

from flows.dvc.params_file import get_param, read_experiments, read_params, set_param


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


ANSWER = "Nothing had to run, so no Prefect server was started."


@pytest.mark.parametrize("arguments", [(), ("--dataset", "digits"), ("--experiment", "mine")], ids=str)
def test_when_nothing_has_to_run_it_shows_the_result_without_a_server(
    arguments: tuple[str, ...], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "experiments.yaml").write_text("mine:\n  train.epochs: 6\n")
    monkeypatch.setenv("PREFECT_HOME", str(project.parent / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = make_run(project, *arguments)
    assert result.returncode == 0, result.stderr
    assert f"\n{ANSWER}\n" in result.stdout
    assert "accuracy" in result.stdout
    assert "validate_parity   UpToDate: " in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("The data set is digits, as params.yaml says")
    assert not list((project.parent / "prefect").rglob("*.db*"))
    assert not (project / "logs").exists()
    assert run_command(project, "git", "status", "--porcelain").stdout == " M experiments.yaml\n"


def test_when_nothing_has_to_run_but_a_server_is_set_the_run_is_on_record(project: Path, prefect_api_url: str) -> None:
    result = run_flow_module(project, prefect_api_url=prefect_api_url, module="flows.make_run")
    assert ANSWER not in result.stdout
    flow_run = last_run(prefect_api_url)
    assert (flow_run["state_name"], flow_run["name"]) == ("UpToDate", "up to date")
    without_server = make_run(project)
    assert without_server.stdout.replace(f"{ANSWER}\n\n", "").split() == result.stdout.split(), "the same lines"


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


def write_own_images(project: Path, count: int = 30) -> None:
    """Dark and bright pictures in colour."""
    for name, level in (("dark", 0), ("bright", 200)):
        (project / "data/own" / name).mkdir()
        for number in range(count):
            Image.new("RGB", (48, 48), (level + number, level, level)).save(project / f"data/own/{name}/{number}.png")


@pytest.mark.slow
@pytest.mark.ci
def test_own_images_are_looked_at_first_and_the_advice_is_repeated_last(project: Path) -> None:
    write_own_images(project)
    set_param(project / "params.yaml", "train.epochs", 1)
    before = read_params(project / "params.yaml")
    result = make_run(project, "--dataset", "own")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("data/own, by the headers of its files:\n  images     60 in 2 classes\n")
    advice = "the set `photos` of experiments.yaml is for these: `make run DATASET=own EXPERIMENT=photos`"
    assert advice in result.stdout[: result.stdout.index("download  ")]
    assert advice in result.stdout[result.stdout.index("data set   own") :]
    assert result.stdout.rstrip().endswith("The data set is own, as params.yaml says")
    again = make_run(project)
    assert again.stdout.startswith("data/own, by the headers of its files:\n  images     60 in 2 classes\n")
    assert advice in again.stdout[again.stdout.index(ANSWER) :]
    (project / "data/own/emu").mkdir()  # which `dvc status` does not see
    assert make_run(project).stderr.startswith("download: data/own/emu: an empty class")
    before["download"]["dataset"] = "own"
    assert read_params(project / "params.yaml") == before, "nothing else is changed"


@pytest.mark.slow
@pytest.mark.ci
def test_an_experiment_is_written_to_params_yaml_and_what_changed_is_named(project: Path) -> None:
    sets = (project / "experiments.yaml").read_text()
    mine = "mine:\n  preprocess.size: 20\n  preprocess.channels: 3\n  train.betas: [0.5, 0.9]\n"
    (project / "experiments.yaml").write_text(f"{sets}\n{mine}  train.model: reference_e\n")
    write_own_images(project)
    set_param(project / "params.yaml", "train.epochs", 1)
    comments = [line.split("#")[1] for line in (project / "params.yaml").read_text().splitlines() if "#" in line]
    result = make_run(project, "--dataset", "own", "--experiment", "mine")
    assert result.returncode == 0, result.stdout + result.stderr
    changes = result.stdout[result.stdout.index("The set mine of experiments.yaml changed in params.yaml:") :]
    assert changes.splitlines()[1:5] == [
        "  preprocess.size      28 -> 20",
        "  preprocess.channels  1 -> 3",
        "  train.betas          [0.9, 0.999] -> [0.5, 0.9]",
        "",
    ]
    params = project / "params.yaml"
    assert [get_param(params, name) for name in ("preprocess.size", "preprocess.channels", "train.betas")] == [
        20,
        3,
        [0.5, 0.9],
    ]
    assert comments == [line.split("#")[1] for line in params.read_text().splitlines() if "#" in line]
    assert "Advice" not in result.stdout[result.stdout.index("data set   own") :], "it was taken"
    result = make_run(project, "--experiment", "mine")
    assert "params.yaml has the values of the set mine of experiments.yaml already" in result.stdout
    assert "up to date" in result.stdout


def test_an_unknown_experiment_is_one_line_with_those_that_exist(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    result = make_run(project, "--experiment", "fotos")
    assert (result.returncode, result.stdout) == (1, "")
    known = ", ".join(read_experiments(project))
    assert result.stderr == f"make_run: unknown experiment: fotos; experiments.yaml has {known}\n"
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train.epochs: -1", "train.epochs: input should be greater than or equal to 0"),
        ("train.epoch: 1", "has no param train.epoch"),
    ],
)
def test_a_set_that_is_not_valid_changes_nothing(project: Path, content: str, message: str) -> None:
    (project / "experiments.yaml").write_text(f"mine:\n  {content}\n")
    before = (project / "params.yaml").read_bytes()
    result = make_run(project, "--experiment", "mine")
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (project / "params.yaml").read_bytes() == before


def test_folders_that_cannot_be_used_are_one_line_and_change_nothing(project: Path) -> None:
    (project / "data/own/cat").mkdir()
    before = (project / "params.yaml").read_bytes()
    result = make_run(project, "--dataset", "own", "--experiment", "quick")
    assert result.returncode == 1
    assert result.stderr.startswith("download: data/own/cat: an empty class; add images or remove the folder")
    assert (project / "params.yaml").read_bytes() == before
