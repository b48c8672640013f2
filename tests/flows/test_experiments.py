"""Named sets of params become DVC experiments."""

import sys
from pathlib import Path

import pytest
from repositories import commit, dvc, run


def test_unknown_names_and_no_names_are_one_line_that_lists_the_known(project: Path) -> None:
    for words, said in (
        (["reference_z"], "unknown experiments: reference_z"),
        ([], "name the experiments to run, or --all"),
    ):
        done = run(project, sys.executable, "-m", "flows.experiments", *words, status=1)
        assert done.stderr.startswith(f"experiments: {said}; experiments.yaml has reference_a, reference_b")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_all_of_them_run_as_experiments_and_a_failed_one_is_named(project: Path) -> None:
    (project / "experiments.yaml").write_text("other_seed:\n  train.seed: 4\nhopeless:\n  evaluate.min_accuracy: 1.0\n")
    commit(project)
    done = run(project, sys.executable, "-m", "flows.experiments", "--all", status=1)
    assert "experiments: failed: hopeless" in done.stderr
    assert "other-seed" in done.stdout
    assert "\nother-seed," in dvc(project, "exp", "show", "--csv").stdout
    assert run(project, "git", "status", "--porcelain").stdout == ""
