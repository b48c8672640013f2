"""Named sets of params become DVC experiments."""

import json
import sys
from pathlib import Path

import pytest
from repositories import commit, dvc, run
from toys import ask, flow, last_run


def test_unknown_names_and_no_names_are_one_line_that_lists_the_known(project: Path) -> None:
    for words, said in (
        (["reference_z"], "unknown experiments: reference_z"),
        ([], "name experiments, or --all, or a grid"),
    ):
        done = run(project, sys.executable, "-m", "flows.experiments", *words, status=1)
        assert done.stderr.startswith(f"experiments: {said}; experiments.yaml has ")
        assert "quick, standard, native, strong, record, reference_a, reference_b" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_all_of_them_run_as_experiments_and_a_failed_one_is_named(project: Path) -> None:
    (project / "experiments.yaml").write_text("other_seed:\n  train.seed: 4\nhopeless:\n  evaluate.min_accuracy: 1.0\n")
    commit(project)
    done = run(project, sys.executable, "-m", "flows.experiments", "--all", status=1)
    assert "failed: hopeless" in done.stdout.splitlines()
    assert "other-seed" in done.stdout
    assert "\nother-seed," in dvc(project, "exp", "show", "--csv").stdout
    assert run(project, "git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
@pytest.mark.ci
def test_each_point_of_a_grid_is_an_experiment_and_they_run_side_by_side(toy: Path, api: str) -> None:
    dvc(toy, "repro")
    commit(toy)
    words = ["-S", "left.text=[a,b]", "-S", "right.seconds=[2.0]", "--limit", "2"]
    done = flow(toy, *words, api=api, module="flows.experiments")
    names = {"text-a-seconds-2.0", "text-b-seconds-2.0"}
    assert names <= set(dvc(toy, "exp", "list", "--name-only").stdout.split())
    assert all(name in done.stdout.rpartition("| Experiment")[2] for name in names), "the table at the end"
    assert run(toy, "git", "status", "--porcelain").stdout == ""

    one, two = ask(api, "task_runs/filter", flow_runs={"id": {"any_": [last_run(api)["id"]]}})
    assert {one["name"], two["name"]} == names
    assert max(one["start_time"], two["start_time"]) < min(one["end_time"], two["end_time"])
    (table,) = ask(api, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-sweep"]}})
    assert [row["Experiment"] for row in json.loads(table["data"])] == ["HEAD", *sorted(names)]

    dvc(toy, "exp", "apply", "text-b-seconds-2.0")
    assert (toy / "join.txt").read_text() == "joinbmakerightmake"


def test_a_point_with_a_wrong_value_stops_the_sweep_before_any_of_them(toy: Path, api: str) -> None:
    commit_of = run(toy, "git", "rev-parse", "HEAD").stdout
    done = flow(toy, "-S", "left.seconds=[1.0,abc]", api=api, status=1, module="flows.experiments")
    assert "params.yaml: left.seconds: input should be a valid number, not 'abc'" in done.stdout
    assert dvc(toy, "exp", "list", "--name-only").stdout.strip() == ""
    assert run(toy, "git", "rev-parse", "HEAD").stdout == commit_of
