"""Which of two models is better: McNemar's exact test on the same test images, as a command and in the reports."""

import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from repositories import CompletedCommand, commit_all, run_command, run_dvc
from toys import post_api, run_flow_module

from flows.dvc.params_file import set_param
from flows.statistics import McNemar, wilson_interval

PREDICTIONS, REPORT = "data/reports/predictions.csv", "data/reports/evaluate.json"
Rows = list[dict[str, str]]


def compare(project: Path, *arguments: str, status: int = 0) -> CompletedCommand:
    """Without a Prefect server, and without a network to reach one."""
    result = run_command(project, sys.executable, "-m", "flows.compare", *arguments, status=status)
    assert "Traceback" not in result.stderr
    return result


def compare_json(project: Path, *arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(compare(project, *arguments, "--json").stdout)
    return content


def read_rows(project: Path) -> Rows:
    with (project / PREDICTIONS).open(newline="") as file:
        return [*csv.DictReader(file)]


def write_rows(project: Path, rows: Rows, names: bool = False, **report: str) -> None:
    """Write the table that evaluate writes, with the images' names and confidences if NAMES, and keys of its report."""
    for index, row in enumerate(rows):
        row.update({"image": f"{row['actual']}/{index}.png", "confidence": "0.900000"} if names else {})
    columns = (["image"] if names else []) + ["actual", "predicted"] + (["confidence"] if names else [])
    with (project / PREDICTIONS).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    content = json.loads((project / REPORT).read_text())
    for key in ("dataset", "test_sha256"):
        content.pop(key, None)
    (project / REPORT).write_text(json.dumps(content | report))


def spoil(rows: Rows, indices: range, answer: str = "none") -> None:
    for index in indices:
        rows[index]["predicted"] = answer


@pytest.fixture
def right(project: Path) -> Rows:
    """All right in the last commit."""
    rows = read_rows(project)
    for row in rows:
        row["predicted"] = row["actual"]
    write_rows(project, rows)
    commit_all(project)
    return rows


def test_a_worse_model_is_worse_and_the_images_that_it_lost_are_named(project: Path, right: Rows) -> None:
    spoil(right, range(3, 15))
    write_rows(project, right)
    text = compare(project).stdout
    assert "workspace is worse than HEAD (" in text
    assert "0 test images won and 12 lost, p = 0.000488, below promote.level 0.05 (McNemar's exact test)" in text
    low, high = wilson_interval(len(right) - 12, len(right))
    assert f"95 % interval {low:.2%} to {high:.2%}" in text
    assert "12 test images changed sides" in text
    result = compare_json(project)
    assert [(row["index"], row["change"]) for row in result["changed_images"]] == [(n, "lost") for n in range(3, 15)]
    assert result["changed_images"][0]["b"] == {"predicted": "none", "confidence": None}
    assert (result["verdict"], result["won"], result["lost"]) == ("worse", 0, 12)
    assert sum(change["test"]["lost"] for change in result["changed_classes"]) == 12
    largest = result["changed_classes"][0]
    assert largest["test"]["lost"] == max(change["test"]["lost"] for change in result["changed_classes"])
    assert largest["old_correct"] - largest["new_correct"] == largest["test"]["lost"]


def test_the_other_way_round_it_is_better(project: Path, right: Rows) -> None:
    spoil(right, range(12))
    write_rows(project, right)
    commit_all(project)
    assert "HEAD~1 is better than HEAD (" in compare(project, "HEAD", "HEAD~1").stdout
    assert "HEAD is worse than HEAD~1 (" in compare(project, "HEAD~1", "HEAD").stdout
    commit = run_command(project, "git", "rev-parse", "HEAD~1").stdout.strip()
    assert f"{commit[:9]} is better than HEAD" in compare(project, "HEAD", commit[:9]).stdout


@pytest.mark.parametrize(("lost", "verdict"), [(5, "not significantly different"), (6, "worse")])
def test_the_level_is_that_of_params_yaml(project: Path, right: Rows, lost: int, verdict: str) -> None:
    spoil(right, range(lost))
    write_rows(project, right)
    assert compare_json(project)["verdict"] == verdict  # 2 / 2 ** 5 is above 0.05, 2 / 2 ** 6 below
    set_param(project / "params.yaml", "promote.level", 0.07)
    assert compare_json(project)["verdict"] == "worse"
    set_param(project / "params.yaml", "promote.level", 1.5)
    assert compare(project, status=1).stderr == "compare: params.yaml: promote.level: input should be less than 1\n"


def test_equal_predictions_are_not_different(project: Path) -> None:
    text = compare(project).stdout
    assert "not significantly different from HEAD" in text
    assert "0 test images won and 0 lost, p = 1" in text
    assert "changed sides" not in text


def test_a_commit_without_names_is_compared_with_one_that_has_them(project: Path, right: Rows) -> None:
    spoil(right, range(1))
    write_rows(project, right, names=True, dataset="digits", test_sha256="0123456789ab")
    (change,) = compare_json(project)["changed_images"]
    assert change["image"] == f"{right[0]['actual']}/0.png"
    assert (change["a"]["confidence"], change["b"]["confidence"]) == (None, 0.9)
    assert "none (90%)" in compare(project).stdout


def test_other_test_images_are_refused_in_one_line(project: Path, right: Rows) -> None:
    def error() -> str:
        text = compare(project, status=1).stderr
        assert text.startswith("compare: HEAD and workspace cannot be compared: tested on other images")
        assert len(text.splitlines()) == 1
        return text

    names = {"dataset": "digits", "test_sha256": "0123456789ab"}
    write_rows(project, right[:-1], **names)
    assert f"{len(right)} and {len(right) - 1}" in error()
    write_rows(project, [{"actual": "7", "predicted": "7"}, *right[1:]], **names)
    assert f"the first that differs is 0, {right[0]['actual']!r}, and 0, '7'" in error()
    write_rows(project, right, **names)
    commit_all(project)
    write_rows(project, right, **names | {"dataset": "own"})
    assert "of digits and of own" in error()
    write_rows(project, right, **names | {"test_sha256": "ba9876543210"})
    assert "test_sha256 0123456789ab and ba9876543210" in error()


def test_the_same_images_prepared_differently_are_compared_and_it_says_so(project: Path, right: Rows) -> None:
    """As 28x28 in grey and 64x64 in colour are of the same files."""
    write_rows(project, right, names=True, dataset="own", test_sha256="0123456789ab")
    commit_all(project)
    write_rows(project, right, names=True, dataset="own", test_sha256="ba9876543210")
    text = compare(project).stdout
    assert "not significantly different" in text
    assert "Note: the same test images by name and label, prepared differently or replaced" in text
    for row in right:
        row["actual"], row["predicted"] = right[0]["actual"], right[0]["actual"]
    write_rows(project, right[::-1], names=True, dataset="own", test_sha256="ba9876543210")
    assert "tested on other images" in compare(project, status=1).stderr


def test_unknown_names_and_missing_or_broken_tables_are_one_line(project: Path) -> None:
    assert compare(project, "nowhere", status=1).stderr.startswith(
        "compare: there is no revision or experiment 'nowhere' here"
    )
    (project / PREDICTIONS).write_text("a,b\n1,2\n")
    assert "is not what evaluate writes" in compare(project, status=1).stderr
    (project / PREDICTIONS).write_text("actual,predicted\n")
    assert f"workspace: {PREDICTIONS} has no rows" in compare(project, status=1).stderr
    (project / PREDICTIONS).unlink()
    text = compare(project, status=1).stderr
    assert text.startswith(f"compare: workspace: has no {PREDICTIONS}, the predictions to compare; run `dvc repro")
    assert len(text.splitlines()) == 1


def test_the_pictures_that_changed_sides_are_drawn(project: Path, right: Rows, tmp_path: Path) -> None:
    spoil(right, range(10))
    write_rows(project, right)
    assert "Pictures: logs/compare.png, all of them" in compare(project).stdout
    images = np.load(project / "data" / "splits" / "test-images.npy")
    with Image.open(project / "logs" / "compare.png") as file:
        page = np.asarray(file.convert("L"), np.float64)
    first = np.asarray(Image.fromarray(images[0, 0]).resize((96, 96), Image.Resampling.NEAREST), np.float64)
    assert any(np.array_equal(page[top : top + 96, 12 : 12 + 96], first) for top in range(20, 80))
    assert run_command(project, "git", "status", "--porcelain").stdout.split() == ["M", PREDICTIONS]
    spoil(right, range(100))
    write_rows(project, right)
    text = compare(project, "--picture", str(tmp_path / "folder" / "other.png"), "--rows", "2").stdout
    assert f"Pictures: {tmp_path}/folder/other.png, 48 of them" in text
    assert "and 98 more, by --rows or --json" in text


def test_without_the_splits_it_says_that_there_are_no_pictures(project: Path, right: Rows) -> None:
    spoil(right, range(2))
    write_rows(project, right)
    labels = project / "data" / "splits" / "test-labels.npy"
    np.save(labels, np.load(labels)[::-1])
    assert "No pictures: data/splits has other test images" in compare(project).stdout
    labels.unlink()
    assert "No pictures: data/splits is not here" in compare(project).stdout
    assert compare_json(project)["picture"] is None


def test_experiments_are_compared_by_name(project: Path, right: Rows) -> None:
    """An experiment is a commit that a ref of DVC names."""
    head = run_command(project, "git", "rev-parse", "HEAD").stdout.strip()
    spoil(right, range(8))
    write_rows(project, right)
    commit_all(project)
    run_command(project, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/spoilt", "HEAD")
    run_command(project, "git", "reset", "-q", "--hard", head)
    assert "spoilt" in run_dvc(project, "exp", "list", "--name-only").stdout
    assert "spoilt is worse than HEAD" in compare(project, "HEAD", "spoilt").stdout
    assert "workspace is better than spoilt" in compare(project, "spoilt").stdout


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (0, 1), (1, 0), (7, 12), (12, 7), (40, 40), (3, 900), (0, 3000)])
def test_mcnemars_test_equals_the_binomial_tests_of_scipy(won: int, lost: int) -> None:
    from scipy.stats import binomtest

    test = McNemar(won, lost)
    for count, alternative, p in (
        (lost, "greater", test.p_worse),
        (won, "greater", test.p_better),
        (won, "two-sided", test.p_value),
    ):
        expected = binomtest(count, won + lost, 0.5, alternative=alternative).pvalue if won + lost else 1.0
        assert p == pytest.approx(expected, rel=1e-9)


def test_wilsons_interval_equals_that_of_evaluate() -> None:
    from stages.proof import quality

    for correct, count in ((0, 1), (1, 1), (47, 48), (9941, 10_000)):
        assert wilson_interval(correct, count) == pytest.approx(quality.wilson_interval(correct, count), abs=1e-12)


def test_equally_good_models_are_called_different_in_at_most_the_level_of_trials() -> None:
    generator = random.Random(0)
    verdicts = []
    for _ in range(2000):
        won = sum(generator.random() < 0.5 for _ in range(60))
        verdicts.append(McNemar(won, 60 - won).verdict(0.05))
    assert 0.01 < 1 - verdicts.count("not significantly different") / len(verdicts) < 0.05


def test_the_committed_run_of_this_project_is_compared_with_itself() -> None:
    assert compare_json(ROOT, "HEAD", "HEAD")["verdict"] == "not significantly different"


@pytest.mark.slow
@pytest.mark.ci
def test_the_flows_report_says_by_the_same_test_whether_the_model_is_better(
    project: Path, prefect_api_url: str
) -> None:
    """From six epochs to a twentieth."""
    result = run_flow_module(project, "-S", "train.epochs=0.3", prefect_api_url=prefect_api_url, status=None)
    verdict = compare(project).stdout
    assert "workspace is worse than HEAD" in verdict
    (report, *_) = post_api(
        prefect_api_url, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-report"]}}
    )
    assert "The model is worse than HEAD (" in report["data"]
    assert "(McNemar's exact test)." in report["data"]
    if result.returncode == 0:
        assert "model      worse than HEAD (" in result.stdout


@pytest.mark.slow
def test_a_sweep_says_which_points_differ_from_the_first(project: Path, prefect_api_url: str) -> None:
    set_param(project / "params.yaml", "evaluate.min_accuracy", 0.05)
    commit_all(project)
    arguments = ["-S", "train.epochs=[6.5,0.1]"]
    result = run_flow_module(project, *arguments, prefect_api_url=prefect_api_url, module="flows.experiments")
    (artifact,) = post_api(prefect_api_url, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-sweep"]}})
    head, first, second = json.loads(artifact["data"])
    column = "beside epochs-6.5"
    assert [row["Experiment"] for row in (head, first, second)] == ["HEAD", "epochs-6.5", "epochs-0.1"]
    assert first[column] == ""
    assert second[column].startswith("worse (p = ")
    assert second[column] in result.stdout.rpartition("| Experiment")[2], "the table at the end"
