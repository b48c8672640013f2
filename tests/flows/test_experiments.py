"""Named sets of params, and the points of a grid, become DVC experiments."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from repositories import commit_all, run_command, run_dvc
from toys import last_run, post_api, run_flow_module

from flows.dvc.params_file import read_experiments, set_param


def test_unknown_names_and_no_names_are_one_line_that_lists_the_known(project: Path) -> None:
    for arguments, expected in (
        (["reference_z"], "unknown experiments: reference_z"),
        ([], "name experiments, or --all, or a grid"),
    ):
        result = run_command(project, sys.executable, "-m", "flows.experiments", *arguments, status=1)
        assert result.stderr.startswith(f"experiments: {expected}; experiments.yaml has ")
        assert all(f" {name}" in result.stderr for name in read_experiments(ROOT))
        assert len(result.stderr.splitlines()) == 1


def test_two_experiments_of_one_name_are_one_line(project: Path) -> None:
    arguments = ["-S", "train.seed=[1]", "-S", "preprocess.seed=[0,'0']"]
    result = run_command(project, sys.executable, "-m", "flows.experiments", *arguments, status=1)
    assert "another of these experiments would also be called seed-1-seed-0; run them apart" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_all_sets_run_as_experiments_and_a_failed_one_is_named(project: Path) -> None:
    impossible = "impossible:\n  validate_parity.atol: 1.0e-30\n"
    (project / "experiments.yaml").write_text(f"other_seed:\n  train.seed: 4\n{impossible}")
    commit_all(project)
    result = run_command(project, sys.executable, "-m", "flows.experiments", "--all", status=1)
    assert "failed: impossible" in result.stdout.splitlines()
    assert "other-seed" in result.stdout
    assert "\nother-seed," in run_dvc(project, "exp", "show", "--csv").stdout
    assert run_command(project, "git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
@pytest.mark.ci
def test_an_experiment_that_fails_its_gate_keeps_its_metrics_and_gets_no_certificate(project: Path) -> None:
    (project / "experiments.yaml").write_text("hopeless:\n  evaluate.min_accuracy: 1.0\n  train.seed: 9\n")
    commit_all(project)
    result = run_command(project, sys.executable, "-m", "flows.experiments", "hopeless")
    assert "not good enough: its metrics are kept" in result.stdout
    header, *rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header.split("|")]
    verdicts = {row.split("|")[1].strip(): row.split("|")[columns.index("passed")].strip() for row in rows}
    assert next(verdict for name, verdict in verdicts.items() if "hopeless" in name) == "False"
    assert verdicts["HEAD"] == "True"

    run_dvc(project, "exp", "apply", "hopeless")
    report = json.loads((project / "data/reports/evaluate.json").read_text())
    assert (report["passed"], report["min_accuracy"], report["gate"]) == (False, 1.0, "record")
    refused = run_command(project, sys.executable, "-m", "lockstep", "verify", status=1)
    assert "certifies nothing: accuracy 0." in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    set_param(project / "params.yaml", "evaluate.gate", "enforce")
    result = run_dvc(project, "repro", status=None)  # a plain run ends with a failure
    assert result.returncode != 0
    assert "is below evaluate.min_accuracy 1.0" in result.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_each_point_of_a_grid_is_an_experiment_and_two_run_in_parallel(
    toy_repository: Path, prefect_api_url: str
) -> None:
    run_dvc(toy_repository, "repro")
    commit_all(toy_repository)
    arguments = ["-S", "left.text=[a,b]", "-S", "right.seconds=[2.0]", "--limit", "2"]
    result = run_flow_module(toy_repository, *arguments, prefect_api_url=prefect_api_url, module="flows.experiments")
    names = {"text-a-seconds-2.0", "text-b-seconds-2.0"}
    assert names <= set(run_dvc(toy_repository, "exp", "list", "--name-only").stdout.split())
    assert all(name in result.stdout.rpartition("| Experiment")[2] for name in names), "the table at the end"
    assert run_command(toy_repository, "git", "status", "--porcelain").stdout == ""

    one, two = post_api(
        prefect_api_url, "task_runs/filter", flow_runs={"id": {"any_": [last_run(prefect_api_url)["id"]]}}
    )
    assert {one["name"], two["name"]} == names
    assert max(one["start_time"], two["start_time"]) < min(one["end_time"], two["end_time"])
    (table,) = post_api(prefect_api_url, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-sweep"]}})
    assert [row["Experiment"] for row in json.loads(table["data"])] == ["HEAD", *sorted(names)]

    run_dvc(toy_repository, "exp", "apply", "text-b-seconds-2.0")
    assert (toy_repository / "join.txt").read_text() == "joinbmakerightmake"


def test_an_invalid_value_in_a_grid_fails_before_the_first_experiment(
    toy_repository: Path, prefect_api_url: str
) -> None:
    head = run_command(toy_repository, "git", "rev-parse", "HEAD").stdout
    result = run_flow_module(
        toy_repository,
        "-S",
        "left.seconds=[1.0,abc]",
        prefect_api_url=prefect_api_url,
        status=1,
        module="flows.experiments",
    )
    assert "params.yaml: left.seconds: input should be a valid number, not 'abc'" in result.stdout
    assert run_dvc(toy_repository, "exp", "list", "--name-only").stdout.strip() == ""
    assert run_command(toy_repository, "git", "rev-parse", "HEAD").stdout == head
