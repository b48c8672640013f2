"""The pipeline with the real dvc command, in a real git repository, on the embedded digits."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageDraw
from repositories import (
    DIGITS_PARAMS,
    STAGES,
    command_environment,
    commit_all,
    create_project,
    executed_stages,
    run_command,
    run_dvc,
)
from toys import wait_until

from flows.dvc.dag import read_dag
from flows.dvc.params_file import set_param


def test_repro_with_nothing_to_do_does_nothing(project: Path) -> None:
    former = (project / "dvc.lock").read_bytes()
    result = run_dvc(project, "repro")
    assert executed_stages(result) == []
    assert "up to date" in result.stdout + result.stderr
    assert (project / "dvc.lock").read_bytes() == former
    assert run_dvc(project, "status", "--json").stdout.strip() == "{}"
    assert run_command(project, "git", "status", "--porcelain").stdout == ""


def test_a_changed_source_folder_reruns_the_stages_that_import_it_but_pycache_does_not(project: Path) -> None:
    (cache := project / "stages" / "proof" / "__pycache__").mkdir(exist_ok=True)
    (cache / "other.pyc").touch()
    assert executed_stages(run_dvc(project, "repro")) == []
    with (project / "stages" / "proof" / "quality.py").open("a") as file:
        file.write("# a comment\n")
    executed = executed_stages(run_dvc(project, "repro"))
    assert {"evaluate", "export_onnx", "validate_parity"} <= {*executed}
    assert not {"download", "preprocess", "train"} & {*executed}


def test_a_train_param_reruns_train_and_all_downstream_and_shows_in_every_diff(project: Path) -> None:
    set_param(project / "params.yaml", "train.seed", 7)
    assert executed_stages(run_dvc(project, "repro")) == [*read_dag(project).select((), "train")]
    assert "train.seed" in run_dvc(project, "params", "diff").stdout
    assert "evaluate.json" in run_dvc(project, "metrics", "diff", "--all").stdout
    page = project / "dvc_plots" / "index.html"
    run_dvc(project, "plots", "diff", "HEAD")
    for title in ("Loss while training", "Confusion", "Accuracy by class", "Reliability"):
        assert title in page.read_text()


def test_an_evaluate_param_reruns_evaluate_and_validate_parity(project: Path) -> None:
    set_param(project / "params.yaml", "evaluate.min_accuracy", 0.4)
    executed = executed_stages(run_dvc(project, "repro"))
    assert executed[0] == "evaluate"
    assert "validate_parity" in executed
    assert not {"download", "preprocess", "train", "export_onnx"} & {*executed}
    certificate = json.loads((project / "data/model/certificate.json").read_text())
    assert certificate["quality"]["min_accuracy"] == 0.4


def test_the_gate_fails_after_the_report_is_written(project: Path) -> None:
    set_param(project / "params.yaml", "evaluate.min_accuracy", 1.0)
    accuracy = json.loads((project / "data/reports/evaluate.json").read_text())["accuracy"]
    assert accuracy < 1
    result = run_dvc(project, "repro", status=None)
    assert result.returncode != 0
    assert f"evaluate: accuracy {accuracy:.4f} is below evaluate.min_accuracy 1.0" in result.stderr
    assert json.loads((project / "data/reports/evaluate.json").read_text())["accuracy"] == accuracy
    assert "Traceback" not in result.stderr


def test_an_unknown_param_fails_with_one_line_and_checkout_restores_the_results(project: Path) -> None:
    former = {path: path.read_bytes() for path in (project / "data").rglob("*") if path.is_file()}
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("  min_steps:", "  min_step:"))
    result = run_dvc(project, "repro", status=None)
    assert result.returncode != 0
    assert "train: params.yaml: unknown param train.min_step (did you mean 'min_steps'?)" in result.stderr
    assert "`dvc checkout` and `git checkout` restore them" in result.stderr
    run_command(project, "git", "checkout", "-q", ".")
    run_dvc(project, "checkout")
    assert {path: path.read_bytes() for path in (project / "data").rglob("*") if path.is_file()} == former
    assert executed_stages(run_dvc(project, "repro")) == []


def test_a_new_image_in_data_own_makes_download_stale(project: Path) -> None:
    (project / "data/own/cat").mkdir()
    Image.new("L", (8, 8)).save(project / "data/own/cat/1.png")
    status = json.loads(run_dvc(project, "status", "--json").stdout)
    assert {"changed deps": {"data/own": "modified"}} in status["download"]


def test_a_new_clone_shows_metrics_and_plots_and_skips_every_stage_without_a_remote(
    finished_project: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    run_command(tmp_path, "git", "clone", "-q", str(finished_project), str(clone))
    assert '"accuracy"' in run_dvc(clone, "metrics", "show", "--json").stdout
    run_dvc(clone, "plots", "show")
    assert "Loss while training" in (clone / "dvc_plots" / "index.html").read_text()
    assert executed_stages(run_dvc(clone, "repro", "--dry", "--allow-missing")) == []
    assert "train.epochs" in run_dvc(clone, "params", "diff", "--all", "HEAD").stdout


def test_results_are_pushed_and_pulled(project: Path, tmp_path: Path) -> None:
    run_dvc(project, "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    commit_all(project)
    run_dvc(project, "push")
    clone = tmp_path / "clone"
    run_command(tmp_path, "git", "clone", "-q", str(project), str(clone))
    run_dvc(clone, "pull")
    model = "data/model/model.onnx"
    assert (clone / model).read_bytes() == (project / model).read_bytes()
    assert executed_stages(run_dvc(clone, "repro")) == []


def test_without_a_mirror_repro_of_mnist_fails_quickly_and_says_what_to_do(project: Path) -> None:
    set_param(project / "params.yaml", "download.dataset", "mnist")
    start = time.monotonic()
    result = run_dvc(project, "repro", status=None)
    assert result.returncode != 0
    assert time.monotonic() - start < 60  # seconds, on a machine however slow
    assert "ossci-datasets" in result.stderr
    assert "make run DATASET=digits" in result.stderr
    assert (project / "data/raw/source.json").exists()
    assert executed_stages(run_dvc(project, "repro", "--dry")) == ["download"]


def test_dvc_dag_shows_the_edges(project: Path) -> None:
    dot = run_dvc(project, "dag", "--dot").stdout
    edges = {tuple(line.strip(" ;").replace('"', "").split(" -> ")) for line in dot.splitlines() if "->" in line}
    proofs = ("evaluate", "export_onnx", "validate_parity")
    names = {"download", "preprocess", "train", *proofs}
    assert {edge for edge in edges if names.issuperset(edge)} == {
        ("download", "preprocess"),
        *(("preprocess", after) for after in ("train", *proofs)),
        *(("train", after) for after in proofs),
        ("evaluate", "validate_parity"),
        ("export_onnx", "validate_parity"),
    }


@pytest.mark.slow
@pytest.mark.ci
def test_experiments_run_in_place_in_a_copy_and_from_the_queue(project: Path) -> None:
    run_dvc(project, "exp", "run", "--name", "here", "-S", "train.seed=1")
    run_command(project, "git", "checkout", "-q", ".")
    run_dvc(project, "checkout")
    run_dvc(project, "exp", "run", "--temp", "--name", "copy", "-S", "train.seed=2")
    run_dvc(project, "exp", "run", "--queue", "--name", "queued", "-S", "train.seed=3")
    run_dvc(project, "queue", "start")
    deadline = time.monotonic() + 300
    while "Success" not in run_dvc(project, "queue", "status").stdout and time.monotonic() < deadline:
        time.sleep(2)
    table = run_dvc(project, "exp", "show", "--csv").stdout
    for name in ("here", "copy", "queued"):
        assert f"\n{name}," in table
    assert "train.seed" in run_dvc(project, "exp", "diff", "copy", "queued").stdout
    run_dvc(project, "exp", "apply", "copy")
    assert "seed: 2" in (project / "params.yaml").read_text()
    assert executed_stages(run_dvc(project, "repro")) == []


@pytest.mark.slow
@pytest.mark.ci
def test_several_processes_train_together_under_dvc(project: Path) -> None:
    set_param(project / "params.yaml", "train.processes", 2)
    assert executed_stages(run_dvc(project, "repro", "train")) == ["train"]
    set_param(project / "params.yaml", "train.learning_rate", 1e30)
    result = run_dvc(project, "repro", "train", status=None)
    assert result.returncode != 0
    assert "train: the loss is not finite" in result.stderr
    assert result.stderr.count("`dvc checkout` and `git checkout` restore them") == 1


@pytest.mark.slow
@pytest.mark.ci
def test_a_second_run_and_another_folder_give_the_same_bytes(project: Path, tmp_path: Path) -> None:
    lock = (project / "dvc.lock").read_bytes()
    assert executed_stages(run_dvc(project, "repro", "--force")) == STAGES
    assert (project / "dvc.lock").read_bytes() == lock
    assert run_command(project, "git", "status", "--porcelain").stdout == ""
    other = create_project(tmp_path / "another", DIGITS_PARAMS)
    run_dvc(other, "repro")
    assert (other / "dvc.lock").read_bytes() == lock


def train_processes(folder: Path) -> list[psutil.Process]:
    """The training processes that work in the folder, shells left out."""
    processes = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        command_line = process.info["cmdline"] or []
        if (
            "stages.train" in command_line[:3]
            and process.info["cwd"] == str(folder)
            and process.info["status"] != "zombie"
        ):
            processes.append(process)
    return processes


@contextmanager
def running_repro(project: Path) -> Iterator[subprocess.Popen[str]]:
    """A `dvc repro` whose training has come as far as a checkpoint."""
    checkpoints = project / "data/checkpoints"
    with (project / "repro.log").open("w") as log:
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=project, env=command_environment(), stdout=log, stderr=log, text=True
        )
        with process:
            wait_until(lambda: train_processes(project) or process.poll() is not None, 120)
            start = time.time()
            wait_until(lambda: any(path.stat().st_mtime > start for path in checkpoints.glob("*.pt")), 120)
            yield process


@pytest.mark.slow
@pytest.mark.ci
def test_a_killed_train_resumes_to_the_same_bytes_and_two_never_run_at_once(project: Path, tmp_path: Path) -> None:
    dvc_yaml = (project / "dvc.yaml").read_text()
    assert dvc_yaml.count("--checkpoints data/checkpoints") == 1
    more_often = "--checkpoints data/checkpoints --checkpoint-seconds 0.1"
    (project / "dvc.yaml").write_text(dvc_yaml.replace("--checkpoints data/checkpoints", more_often))
    for param, value in {"train.epochs": 100, "train.points": 100, "train.seed": 5}.items():
        set_param(project / "params.yaml", param, value)
    commit_all(project)
    undisturbed = Path(shutil.copytree(project, tmp_path / "unbroken", symlinks=True))
    run_dvc(undisturbed, "repro")
    for wait in (0.0, 0.3, 1.0):
        with running_repro(project):
            time.sleep(wait)
            train_processes(project)[0].kill()
    with running_repro(project) as repro:
        assert "resuming from step" in (project / "repro.log").read_text()
        repro.kill()
    with subprocess.Popen(["dvc", "repro"], cwd=project, env=command_environment()) as second_repro:
        while second_repro.poll() is None:
            assert len(train_processes(project)) <= 1  # the orphan is gone before the next one starts
            time.sleep(0.05)
        assert second_repro.returncode == 0
    assert train_processes(project) == []
    assert (project / "dvc.lock").read_bytes() == (undisturbed / "dvc.lock").read_bytes()
    assert not list((project / "data/checkpoints").glob("*.pt"))


@pytest.mark.slow
@pytest.mark.ci
def test_train_ends_within_seconds_when_dvc_is_killed(project: Path) -> None:
    set_param(project / "params.yaml", "train.epochs", 1000)
    with subprocess.Popen(["dvc", "repro"], cwd=project, env=command_environment(), stdout=subprocess.DEVNULL) as repro:
        wait_until(lambda: train_processes(project), 60)
        repro.kill()
        repro.wait()
    wait_until(lambda: not train_processes(project), seconds=15)  # also when it was still importing torch


@pytest.mark.slow
@pytest.mark.ci
def test_the_default_params_pass_the_gate_on_the_digits(tmp_path: Path) -> None:
    project = create_project(tmp_path / "project", {"download.dataset": "digits"})
    run_dvc(project, "repro")
    assert json.loads((project / "data/reports/evaluate.json").read_text())["accuracy"] >= 0.97
    assert json.loads((project / "data/reports/parity.json").read_text())["same"] is True
    assert json.loads((project / "data/model/certificate.json").read_text())["quality"]["accuracy"] >= 0.97
    for paper, ink in (("white", "black"), ("#123", "#ffd")):  # the network also recognises a drawn digit
        picture = Image.new("RGB", (300, 200), paper)
        ImageDraw.Draw(picture).line([(120, 50), (200, 50), (150, 160)], fill=ink, width=20, joint="curve")
        picture.save(project / "seven.png")
        output = run_command(project, sys.executable, "-m", "lockstep", "predict", "--json", "seven.png").stdout
        assert json.loads(output)["label"] == "7"


def test_a_param_that_changes_while_its_stage_runs_is_not_recorded(project: Path) -> None:
    set_param(project / "params.yaml", "train.epochs", 60)
    former = (project / "dvc.lock").read_text()
    command = ["dvc", "repro"]
    with subprocess.Popen(
        command, cwd=project, env=command_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        history = project / "data" / "reports" / "history.csv"
        wait_until(lambda: not history.exists() or process.poll() is not None, 60)
        wait_until(lambda: history.exists() or process.poll() is not None, 60)
        set_param(project / "params.yaml", "train.learning_rate", 0.004)
        _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "train: train.learning_rate changed while the stage ran" in errors
    assert (project / "dvc.lock").read_text() == former
    set_param(project / "params.yaml", "train.epochs", 1)
    assert executed_stages(run_dvc(project, "repro"))[0] == "train"
