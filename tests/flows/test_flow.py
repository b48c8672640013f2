"""The flow on a real server: each stage is a task, whose state says what happened and why."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from repositories import (
    DIGITS_PARAMS,
    STAGES,
    CompletedCommand,
    commit_all,
    create_project,
    executed_stages,
    run_command,
    run_dvc,
)
from toys import (
    STAGE,
    create_toy_repository,
    last_run,
    post_api,
    read_trace,
    run_flow_module,
    task_runs,
    wait_until,
    wait_until_no_processes,
)

from flows.dvc.params_file import get_param, set_param

slow = [pytest.mark.slow, pytest.mark.ci]
NAMES = ["make", "left", "right", "join"]
NOWHERE = "http://127.0.0.1:9/api"


@dataclass(frozen=True)
class Run:
    """A finished run: its output, and what the server has of it."""

    project: Path
    result: CompletedCommand
    flow_run: dict[str, Any]
    states: dict[str, tuple[str, str, str]]  # type, name and message, by task

    def named(self) -> dict[str, str]:
        return {name: state for name, (_, state, _) in self.states.items()}


def run_flow(project: Path, *arguments: str, prefect_api_url: str, status: int = 0) -> Run:
    result = run_flow_module(project, *arguments, prefect_api_url=prefect_api_url, status=status)
    flow_run = last_run(prefect_api_url)
    return Run(project, result, flow_run, task_runs(prefect_api_url, flow_run["id"]))


def read_log(prefect_api_url: str, **run_ids: str) -> list[str]:
    """The lines of a run's log on the server."""
    logs = post_api(
        prefect_api_url,
        "logs/filter",
        logs={key: {"any_": [value]} for key, value in run_ids.items()},
        sort="TIMESTAMP_ASC",
    )
    return [line["message"] for line in logs]


def read_times(project: Path) -> dict[str, list[float]]:
    times_by_stage: dict[str, list[float]] = {}
    for line in (project / "trace").read_text().splitlines():
        name, moment = line.split()
        times_by_stage.setdefault(name, []).append(float(moment))
    return times_by_stage


def has_no_traceback(result: CompletedCommand) -> bool:
    return "Traceback" not in result.stdout + result.stderr


@pytest.fixture(scope="module")
def template_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that never ran, whose left and right take a while. Copy it; do not change it."""
    folder = create_toy_repository(tmp_path_factory.mktemp("twin") / "a toy")
    for name in ("left", "right"):
        set_param(folder / "params.yaml", f"{name}.seconds", 3.0)
    commit_all(folder)
    return folder


@pytest.fixture(scope="module")
def first_run(template_toy: Path, tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Run:
    """Its first run. Copy the project; do not change it."""
    return run_flow(
        Path(shutil.copytree(template_toy, tmp_path_factory.mktemp("first") / "a toy", symlinks=True)),
        prefect_api_url=prefect_api_url,
    )


@pytest.fixture
def finished_toy(first_run: Run, tmp_path: Path) -> Path:
    """A copy of the project after its first run."""
    folder = Path(shutil.copytree(first_run.project, tmp_path / "a toy", symlinks=True))
    (folder / "trace").unlink()
    return folder


class TestTheFirstRun:
    pytestmark = slow

    def test_each_stage_is_a_task_of_its_name_that_ran_after_those_before_it(self, first_run: Run) -> None:
        assert first_run.states == dict.fromkeys(NAMES, ("COMPLETED", "Ran", "never ran"))
        assert (first_run.flow_run["state_type"], first_run.flow_run["state_name"]) == ("COMPLETED", "Completed")
        assert first_run.flow_run["name"] == "ran make, left, right, join (never ran)"
        order = read_trace(first_run.project)
        assert (order[:2], order[-2:]) == (["make", "make"], ["join", "join"])
        assert (first_run.project / "join.txt").read_text() == "joinleftmakerightmake"
        assert "left            | left says left" in first_run.result.stdout

    def test_independent_stages_run_in_parallel(self, first_run: Run) -> None:
        moments = read_times(first_run.project)
        assert max(moments["left"][0], moments["right"][0]) < min(moments["left"][1], moments["right"][1])

    def test_the_results_are_the_same_bytes_as_those_of_dvc_repro(
        self, first_run: Run, template_toy: Path, tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(template_toy, tmp_path / "other", symlinks=True))
        run_dvc(other, "repro")
        assert (first_run.project / "dvc.lock").read_bytes() == (other / "dvc.lock").read_bytes()
        assert (first_run.project / "join.txt").read_bytes() == (other / "join.txt").read_bytes()
        assert executed_stages(run_dvc(first_run.project, "repro", "--dry")) == []
        assert run_dvc(first_run.project, "status", "--json").stdout.strip() == "{}"

    def test_a_stages_output_is_in_its_tasks_log_and_in_a_file(self, first_run: Run, prefect_api_url: str) -> None:
        runs = post_api(prefect_api_url, "task_runs/filter", flow_runs={"id": {"any_": [first_run.flow_run["id"]]}})
        ids = {one["name"]: one["id"] for one in runs}
        for name in NAMES:
            lines = wait_until(lambda name=name: read_log(prefect_api_url, task_run_id=ids[name]), 10)
            assert f"{name} says {name}" in lines
            assert not [line for line in lines for other in NAMES if other != name and f"{other} says" in line]
            (file,) = first_run.project.glob(f"logs/*/{name}.log")
            assert f"{name} says {name}\n" in file.read_text()
        assert any("never ran" in line for line in read_log(prefect_api_url, flow_run_id=first_run.flow_run["id"]))

    def test_the_report_names_stages_states_and_reasons(self, first_run: Run, prefect_api_url: str) -> None:
        reports = post_api(
            prefect_api_url, "artifacts/filter", artifacts={"flow_run_id": {"any_": [first_run.flow_run["id"]]}}
        )
        (report,) = [one for one in reports if one["key"] == "lockstep-report"]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in report["data"].splitlines()]
        assert [[row[0], row[1], row[3]] for row in cells if row[0] in NAMES] == [
            [name, "Ran", "never ran"] for name in NAMES
        ]
        assert next(first_run.project.glob("logs/*")).relative_to(first_run.project).as_posix() in report["data"]
        latest = post_api(prefect_api_url, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-report"]}})
        assert len(latest) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_with_nothing_to_do_every_task_and_the_run_are_up_to_date(finished_toy: Path, prefect_api_url: str) -> None:
    lock = (finished_toy / "dvc.lock").read_bytes()
    run = run_flow(finished_toy, prefect_api_url=prefect_api_url)
    assert run.states == dict.fromkeys(NAMES, ("COMPLETED", "UpToDate", "Nothing that it depends on has changed"))
    assert (run.flow_run["state_name"], run.flow_run["name"]) == ("UpToDate", "up to date")
    assert read_trace(finished_toy) == []
    assert (finished_toy / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
@pytest.mark.ci
def test_a_changed_param_is_written_and_its_former_value_restores_the_results(
    finished_toy: Path, prefect_api_url: str
) -> None:
    run = run_flow(finished_toy, "-S", "left.text=other", prefect_api_url=prefect_api_url)
    assert get_param(finished_toy / "params.yaml", "left.text") == "other"
    assert run.states["make"][1] == run.states["right"][1] == "UpToDate"
    assert run.states["left"] == ("COMPLETED", "Ran", "params left.text left -> other")
    assert run.states["join"] == ("COMPLETED", "Ran", "deps left.txt")
    assert run.flow_run["name"] == "ran left, join (params left.text left -> other)"
    assert read_trace(finished_toy) == ["left", "left", "join", "join"]
    (finished_toy / "trace").unlink()

    run = run_flow(finished_toy, "-S", "left.text=left", prefect_api_url=prefect_api_url)
    assert run.states["left"] == ("COMPLETED", "Restored", "From DVC's run cache: params left.text other -> left")
    assert run.named() == {"make": "UpToDate", "left": "Restored", "right": "UpToDate", "join": "Restored"}
    assert read_trace(finished_toy) == []
    assert (finished_toy / "join.txt").read_text() == "joinleftmakerightmake"


@pytest.mark.slow
@pytest.mark.ci
def test_markup_in_a_value_is_shown_as_text_in_the_report(finished_toy: Path, prefect_api_url: str) -> None:
    run = run_flow(finished_toy, "-S", "left.text=<img src=x>[a](b)", prefect_api_url=prefect_api_url)
    assert run.states["left"][2] == "params left.text left -> <img src=x>[a](b)"
    reports = post_api(prefect_api_url, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-report"]}})
    for text in (reports[0]["data"], reports[0]["description"]):
        assert r"&lt;img src=x&gt;\[a](b)" in text
        assert "<img" not in text


@pytest.mark.slow
@pytest.mark.ci
def test_only_runs_the_named_stages_and_from_all_downstream_of_one(finished_toy: Path, prefect_api_url: str) -> None:
    run = run_flow(finished_toy, "--only", "make", "left", "--force", prefect_api_url=prefect_api_url)
    assert run.states == dict.fromkeys(["make", "left"], ("COMPLETED", "Ran", "forced"))
    assert read_trace(finished_toy) == ["make", "make", "left", "left"]
    (finished_toy / "trace").unlink()
    set_param(finished_toy / "params.yaml", "left.text", "not asked")
    set_param(finished_toy / "params.yaml", "right.text", "asked")
    run = run_flow(finished_toy, "--from", "right", prefect_api_url=prefect_api_url)
    assert run.named() == {"right": "Ran", "join": "Ran"}
    assert read_trace(finished_toy) == ["right", "right", "join", "join"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "left", "--from", "right"], "--only or by --from"),
        (["--only", "lift"], "no stage 'lift' in dvc.yaml, which has make, left, right, join"),
        (["--from", "lift"], "no stage 'lift' in dvc.yaml, which has make, left, right, join"),
        (["-S", "left.txt=1"], "has no param left.txt"),
        (["-S", "left.text"], "-S left.text: give a param and its value"),
        (["-S", "left.text=["], "-S left.text=[: the value is not valid YAML"),
    ],
    ids=str,
)
def test_an_unknown_stage_or_param_is_one_line_without_a_server(
    toy_repository: Path, arguments: list[str], expected: str
) -> None:
    params = (toy_repository / "params.yaml").read_bytes()
    result = run_flow_module(toy_repository, *arguments, prefect_api_url=NOWHERE, status=1)
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert read_trace(toy_repository) == []
    assert (toy_repository / "params.yaml").read_bytes() == params


@pytest.mark.slow
@pytest.mark.ci
def test_a_wrong_type_is_named_before_the_first_stage_starts(toy_repository: Path, prefect_api_url: str) -> None:
    params = (toy_repository / "params.yaml").read_bytes()
    run = run_flow(toy_repository, "-S", "left.seconds=abc", prefect_api_url=prefect_api_url, status=1)
    expected = "params.yaml: left.seconds: input should be a valid number, not 'abc'"
    assert run.result.stdout.strip() == expected
    assert has_no_traceback(run.result)
    assert (run.flow_run["state_type"], run.flow_run["state"]["message"]) == ("FAILED", expected)
    assert run.states == {}
    assert read_trace(toy_repository) == []
    assert (toy_repository / "params.yaml").read_bytes() == params
    assert not (toy_repository / "dvc.lock").exists()


#   busy    wrong    late    fine
#             |         \    /
#           never      neither
#             |
#           below
#             |
#           lowest
ENDINGS = {
    "busy": [],
    "wrong": [],
    "late": [],
    "fine": [],
    "never": ["wrong"],
    "neither": ["late", "fine"],
    "below": ["never"],
    "lowest": ["below", "fine"],
}
HINT = "If DVC removed this stage's previous outputs, `dvc checkout` and `git checkout` restore them."


@pytest.fixture(scope="module")
def failed_run(tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Run:
    """A run in which stages end in every way."""
    retry = {"retries": 2, "retry_delay_seconds": [0.1], "retry_on": [69]}
    meta = {"busy": retry, "wrong": {**retry, "tags": ["tagged"]}, "late": {"timeout_seconds": 8}}
    project = create_toy_repository(tmp_path_factory.mktemp("endings") / "a toy", ENDINGS, meta)
    for param, value in {"busy.status": 69, "wrong.status": 3, "late.seconds": 60.0}.items():
        set_param(project / "params.yaml", param, value)
    source = project / "stages" / "wrong.py"
    error = 'print(f"{name} goes wrong", file=sys.stderr)'
    source.write_text(source.read_text().replace(error, f"{error}; print({HINT!r})"))
    return run_flow(project, prefect_api_url=prefect_api_url, status=1)


class TestFailedRun:
    pytestmark = slow

    def test_a_failed_stage_shows_its_last_lines_in_its_state(self, failed_run: Run) -> None:
        kind, name, message = failed_run.states["wrong"]
        assert (kind, name) == ("FAILED", "Failed")
        assert "wrong says wrong\nwrong goes wrong\n" in message
        assert HINT in message
        assert "exited with 3" in message
        assert len(message.splitlines()) <= 10

    def test_stages_downstream_of_a_failure_are_skipped_with_the_reason(self, failed_run: Run) -> None:
        assert failed_run.states["never"] == ("CANCELLED", "Skipped", "wrong did not succeed")
        assert failed_run.states["neither"] == ("CANCELLED", "Skipped", "late did not succeed")
        assert failed_run.states["below"] == ("CANCELLED", "Skipped", "never did not succeed")
        assert failed_run.states["lowest"] == ("CANCELLED", "Skipped", "below did not succeed")
        assert not {"never", "neither", "below", "lowest"} & set(read_trace(failed_run.project))

    def test_a_skipped_stage_has_its_edges_in_the_graph(self, failed_run: Run, prefect_api_url: str) -> None:
        runs = post_api(prefect_api_url, "task_runs/filter", flow_runs={"id": {"any_": [failed_run.flow_run["id"]]}})
        names = {one["id"]: one["name"] for one in runs}
        for name in ("never", "below", "lowest"):
            (inputs,) = [one["task_inputs"]["wait_for"] for one in runs if one["name"] == name]
            assert {names[item["id"]] for item in inputs} == set(ENDINGS[name])

    def test_the_table_at_the_end_gives_the_stages_own_error(self, failed_run: Run) -> None:
        rows = dict(re.findall(r"(?m)^(\w+) +\w+(?: after [\d.]+ s)?: (.*)$", failed_run.result.stdout))
        assert rows == {
            "busy": "busy goes wrong",
            "wrong": "wrong goes wrong",
            "late": "Stopped after 8 s, its timeout_seconds in dvc.yaml",
            "fine": "never ran",
            "never": "wrong did not succeed",
            "neither": "late did not succeed",
            "below": "never did not succeed",
            "lowest": "below did not succeed",
        }

    def test_the_report_has_the_last_lines_of_a_failed_stage(self, failed_run: Run, prefect_api_url: str) -> None:
        reports = post_api(
            prefect_api_url, "artifacts/filter", artifacts={"flow_run_id": {"any_": [failed_run.flow_run["id"]]}}
        )
        assert "wrong says wrong<br>wrong goes wrong<br>" in reports[0]["data"]

    def test_independent_stages_still_run(self, failed_run: Run) -> None:
        assert failed_run.states["fine"] == ("COMPLETED", "Ran", "never ran")
        assert (failed_run.project / "fine.txt").read_text() == "fine"

    def test_the_run_fails_without_a_traceback(self, failed_run: Run) -> None:
        assert (failed_run.flow_run["state_type"], failed_run.flow_run["state_name"]) == ("FAILED", "Failed")
        for expected in (
            "busy, wrong failed",
            "late timed out",
            "never, neither, below, lowest skipped",
            "ran fine (never ran)",
        ):
            assert expected in failed_run.flow_run["name"]
        assert has_no_traceback(failed_run.result)
        assert "wrong           | wrong goes wrong" in failed_run.result.stdout

    def test_a_stage_is_retried_only_after_the_exit_statuses_of_its_policy(self, failed_run: Run) -> None:
        starts = read_trace(failed_run.project)
        assert (starts.count("busy"), starts.count("wrong")) == (3, 1)
        assert failed_run.states["busy"][:2] == ("FAILED", "Failed")
        (file,) = failed_run.project.glob("logs/*/busy.log")
        assert file.read_text().count("busy goes wrong") == 3

    def test_a_stage_that_exceeds_its_timeout_ends_with_all_its_processes(self, failed_run: Run) -> None:
        kind, name, message = failed_run.states["late"]
        assert (kind, name) == ("FAILED", "TimedOut")
        assert "8 s" in message
        assert read_trace(failed_run.project).count("late") == 1
        wait_until_no_processes(failed_run.project, 10)  # the stage itself would run for longer

    def test_a_stages_tags_are_its_tasks(self, failed_run: Run, prefect_api_url: str) -> None:
        runs = post_api(prefect_api_url, "task_runs/filter", flow_runs={"id": {"any_": [failed_run.flow_run["id"]]}})
        assert {one["name"]: one["tags"] for one in runs if one["tags"]} == {"wrong": ["tagged"]}


@pytest.mark.slow
@pytest.mark.ci
def test_a_stage_added_to_dvc_yaml_runs_as_a_task(finished_toy: Path, prefect_api_url: str) -> None:
    graph = json.loads((finished_toy / "dvc.yaml").read_text())
    graph["stages"]["fifth"] = {
        "cmd": "python -m stages.fifth fifth fifth.txt join.txt",
        "deps": ["stages/fifth.py", "join.txt"],
        "params": ["fifth"],
        "outs": ["fifth.txt"],
    }
    (finished_toy / "dvc.yaml").write_text(json.dumps(graph))
    (finished_toy / "stages" / "fifth.py").write_text(STAGE)
    content = json.loads((finished_toy / "params.yaml").read_text())
    (finished_toy / "params.yaml").write_text(
        json.dumps({**content, "fifth": {"text": "5", "seconds": 0.0, "status": 0}})
    )
    more = run_flow(finished_toy, prefect_api_url=prefect_api_url)
    assert more.named() == {**dict.fromkeys(NAMES, "UpToDate"), "fifth": "Ran"}
    assert read_trace(finished_toy) == ["fifth", "fifth"]
    assert run_command(finished_toy, "git", "status", "--porcelain", "flows").stdout == ""


def test_the_form_has_a_choice_of_stages_and_a_field_for_each_param(toy_repository: Path) -> None:
    program = "import flows.pipeline; print(flows.pipeline.pipeline.parameters.model_dump_json())"
    schema = json.loads(run_command(toy_repository, sys.executable, "-c", program).stdout.splitlines()[-1])
    fields, definitions = schema["properties"], schema["definitions"]
    assert list(fields) == ["only", "from_stage", "force", "params", "where", "commit_to", "push", "gpu_deployment"]
    assert all(fields[name]["description"] for name in fields)
    assert fields["only"]["items"]["enum"] == NAMES
    assert fields["from_stage"]["anyOf"][0]["enum"] == NAMES
    assert fields["where"]["enum"] == ["tree", "clone"]
    assert fields["force"]["type"] == "boolean"
    assert set(definitions["Overrides"]["properties"]) == {"machine", *NAMES}
    text, seconds = (definitions["left"]["properties"][key] for key in ("text", "seconds"))
    assert {"type": "string"} in text["anyOf"]
    assert {"type": "number"} in seconds["anyOf"]
    assert "[left]" in text["description"]


def results(project: Path) -> dict[str, bytes]:
    """Every file under data without the checkpoints."""
    return {
        file.relative_to(project).as_posix(): file.read_bytes()
        for file in (project / "data").rglob("*")
        if file.is_file() and "checkpoints" not in file.parts
    }


@pytest.mark.slow
@pytest.mark.ci
def test_the_real_stages_give_the_same_files_as_with_dvc_repro(
    finished_project: Path, tmp_path: Path, prefect_api_url: str
) -> None:
    project = create_project(tmp_path / "project", DIGITS_PARAMS)
    result = run_flow(project, prefect_api_url=prefect_api_url)
    assert result.states == dict.fromkeys(STAGES, ("COMPLETED", "Ran", "never ran"))
    assert results(project) == results(finished_project)
    for name in ("dvc.lock", "params.yaml"):
        assert (project / name).read_bytes() == (finished_project / name).read_bytes()
    assert executed_stages(run_dvc(project, "repro", "--dry")) == []
    assert "accuracy" in result.result.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_a_gate_that_fails_is_reported_with_the_stages_own_line(project: Path, prefect_api_url: str) -> None:
    result = run_flow(project, "-S", "evaluate.min_accuracy=1.0", prefect_api_url=prefect_api_url, status=1)
    rows = dict(re.findall(r"(?m)^(\w+) +Failed after [\d.]+ s: (.*)$", result.result.stdout))
    assert list(rows) == ["evaluate"]
    assert re.match(r"evaluate: accuracy 0\.\d+ is below evaluate\.min_accuracy 1\.0", rows["evaluate"])
    assert rows["evaluate"] in result.states["evaluate"][2]
