"""The flow on a real server: each stage is a task, whose state says what came of it and why."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from repositories import DIGITS, STAGES, Done, commit, dvc, new_project, ran, run
from toys import STAGE, ask, flow, last_run, new_toy, stage_processes, task_runs, trace, until

from flows.dvc.params_file import get_param, set_param

slow = [pytest.mark.slow, pytest.mark.ci]
NAMES = ["make", "left", "right", "join"]
NOWHERE = "http://127.0.0.1:9/api"


@dataclass(frozen=True)
class Run:
    """A run that has ended, as the server and the terminal tell it."""

    project: Path
    done: Done
    flow_run: dict[str, Any]
    states: dict[str, tuple[str, str, str]]  # type, name and message, by task

    def named(self) -> dict[str, str]:
        return {name: state for name, (_, state, _) in self.states.items()}


def ended(project: Path, *words: str, api: str, status: int = 0) -> Run:
    done = flow(project, *words, api=api, status=status)
    flow_run = last_run(api)
    return Run(project, done, flow_run, task_runs(api, flow_run["id"]))


def logged(api: str, **of: str) -> list[str]:
    """The lines of a run's log on the server."""
    logs = ask(api, "logs/filter", logs={key: {"any_": [value]} for key, value in of.items()}, sort="TIMESTAMP_ASC")
    return [line["message"] for line in logs]


def times(project: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (project / "trace").read_text().splitlines():
        name, moment = line.split()
        found.setdefault(name, []).append(float(moment))
    return found


def says_no_traceback(done: Done) -> bool:
    return "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that never ran, whose left and right take a while. Copy it; do not change it."""
    folder = new_toy(tmp_path_factory.mktemp("twin") / "a toy")
    for name in ("left", "right"):
        set_param(folder / "params.yaml", f"{name}.seconds", 3.0)
    commit(folder)
    return folder


@pytest.fixture(scope="module")
def first(twin: Path, tmp_path_factory: pytest.TempPathFactory, api: str) -> Run:
    """Its first run. Copy the project; do not change it."""
    return ended(Path(shutil.copytree(twin, tmp_path_factory.mktemp("first") / "a toy", symlinks=True)), api=api)


@pytest.fixture
def after(first: Run, tmp_path: Path) -> Path:
    """One's own copy of the project after its first run."""
    folder = Path(shutil.copytree(first.project, tmp_path / "a toy", symlinks=True))
    (folder / "trace").unlink()
    return folder


class TestTheFirstRun:
    pytestmark = slow

    def test_each_stage_is_a_task_of_its_name_that_ran_after_those_before_it(self, first: Run) -> None:
        assert first.states == dict.fromkeys(NAMES, ("COMPLETED", "Ran", "never ran"))
        assert (first.flow_run["state_type"], first.flow_run["state_name"]) == ("COMPLETED", "Completed")
        assert first.flow_run["name"] == "ran make, left, right, join (never ran)"
        order = trace(first.project)
        assert (order[:2], order[-2:]) == (["make", "make"], ["join", "join"])
        assert (first.project / "join.txt").read_text() == "joinleftmakerightmake"
        assert "left            | left says left" in first.done.stdout

    def test_independent_stages_run_side_by_side(self, first: Run) -> None:
        moments = times(first.project)
        assert max(moments["left"][0], moments["right"][0]) < min(moments["left"][1], moments["right"][1])

    def test_dvc_finds_what_it_would_have_made_itself_to_the_last_byte(
        self, first: Run, twin: Path, tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(twin, tmp_path / "other", symlinks=True))
        dvc(other, "repro")
        assert (first.project / "dvc.lock").read_bytes() == (other / "dvc.lock").read_bytes()
        assert (first.project / "join.txt").read_bytes() == (other / "join.txt").read_bytes()
        assert ran(dvc(first.project, "repro", "--dry")) == []
        assert dvc(first.project, "status", "--json").stdout.strip() == "{}"

    def test_a_stages_lines_are_in_its_own_tasks_log_and_whole_in_a_file(self, first: Run, api: str) -> None:
        runs = ask(api, "task_runs/filter", flow_runs={"id": {"any_": [first.flow_run["id"]]}})
        ids = {one["name"]: one["id"] for one in runs}
        for name in NAMES:
            lines = until(lambda name=name: logged(api, task_run_id=ids[name]), 10)
            assert f"{name} says {name}" in lines
            assert not [line for line in lines for other in NAMES if other != name and f"{other} says" in line]
            (file,) = first.project.glob(f"logs/*/{name}.log")
            assert f"{name} says {name}\n" in file.read_text()
        assert any("never ran" in line for line in logged(api, flow_run_id=first.flow_run["id"]))

    def test_the_report_names_stages_states_and_reasons(self, first: Run, api: str) -> None:
        reports = ask(api, "artifacts/filter", artifacts={"flow_run_id": {"any_": [first.flow_run["id"]]}})
        (report,) = [one for one in reports if one["key"] == "lockstep-report"]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in report["data"].splitlines()]
        assert [[row[0], row[1], row[3]] for row in cells if row[0] in NAMES] == [
            [name, "Ran", "never ran"] for name in NAMES
        ]
        assert next(first.project.glob("logs/*")).relative_to(first.project).as_posix() in report["data"]
        latest = ask(api, "artifacts/latest/filter", artifacts={"key": {"any_": ["lockstep-report"]}})
        assert len(latest) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_with_nothing_to_do_every_task_and_the_run_are_up_to_date(after: Path, api: str) -> None:
    lock = (after / "dvc.lock").read_bytes()
    run = ended(after, api=api)
    assert run.states == dict.fromkeys(NAMES, ("COMPLETED", "UpToDate", "Nothing that it depends on has changed"))
    assert (run.flow_run["state_name"], run.flow_run["name"]) == ("UpToDate", "up to date")
    assert trace(after) == []
    assert (after / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
@pytest.mark.ci
def test_a_changed_param_is_written_and_named_and_a_former_one_brings_its_results_back(after: Path, api: str) -> None:
    run = ended(after, "-S", "left.text=other", api=api)
    assert get_param(after / "params.yaml", "left.text") == "other"
    assert run.states["make"][1] == run.states["right"][1] == "UpToDate"
    assert run.states["left"] == ("COMPLETED", "Ran", "params left.text left -> other")
    assert run.states["join"] == ("COMPLETED", "Ran", "deps left.txt")
    assert run.flow_run["name"] == "ran left, join (params left.text left -> other)"
    assert trace(after) == ["left", "left", "join", "join"]
    (after / "trace").unlink()

    run = ended(after, "-S", "left.text=left", api=api)
    assert run.states["left"] == ("COMPLETED", "Restored", "From DVC's run cache: params left.text other -> left")
    assert run.named() == {"make": "UpToDate", "left": "Restored", "right": "UpToDate", "join": "Restored"}
    assert trace(after) == []
    assert (after / "join.txt").read_text() == "joinleftmakerightmake"


@pytest.mark.slow
@pytest.mark.ci
def test_only_takes_just_these_stages_and_from_takes_all_after_one(after: Path, api: str) -> None:
    run = ended(after, "--only", "make", "left", "--force", api=api)
    assert run.states == dict.fromkeys(["make", "left"], ("COMPLETED", "Ran", "forced"))
    assert trace(after) == ["make", "make", "left", "left"]
    (after / "trace").unlink()
    set_param(after / "params.yaml", "left.text", "not asked")
    set_param(after / "params.yaml", "right.text", "asked")
    run = ended(after, "--from", "right", api=api)
    assert run.named() == {"right": "Ran", "join": "Ran"}
    assert trace(after) == ["right", "right", "join", "join"]


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_what_is_not_there_is_one_line_before_any_server_is_asked(toy: Path, words: list[str], said: str) -> None:
    params = (toy / "params.yaml").read_bytes()
    done = flow(toy, *words, api=NOWHERE, status=1)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert trace(toy) == []
    assert (toy / "params.yaml").read_bytes() == params


@pytest.mark.slow
@pytest.mark.ci
def test_a_wrong_type_is_named_before_the_first_stage_starts(toy: Path, api: str) -> None:
    params = (toy / "params.yaml").read_bytes()
    run = ended(toy, "-S", "left.seconds=abc", api=api, status=1)
    said = "params.yaml: left.seconds: input should be a valid number, not 'abc'"
    assert run.done.stdout.strip() == said
    assert says_no_traceback(run.done)
    assert (run.flow_run["state_type"], run.flow_run["state"]["message"]) == ("FAILED", said)
    assert run.states == {}
    assert trace(toy) == []
    assert (toy / "params.yaml").read_bytes() == params
    assert not (toy / "dvc.lock").exists()


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
HINT = "If DVC removed this stage's former outputs, `dvc checkout` and `git checkout` bring them back."


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory, api: str) -> Run:
    """A run in which stages end in every way."""
    again = {"retries": 2, "retry_delay_seconds": [0.1], "retry_on": [69]}
    meta = {"busy": again, "wrong": {**again, "tags": ["tagged"]}, "late": {"timeout_seconds": 8}}
    project = new_toy(tmp_path_factory.mktemp("endings") / "a toy", ENDINGS, meta)
    for param, value in {"busy.status": 69, "wrong.status": 3, "late.seconds": 60.0}.items():
        set_param(project / "params.yaml", param, value)
    source = project / "stages" / "wrong.py"
    error = 'print(f"{name} goes wrong", file=sys.stderr)'
    source.write_text(source.read_text().replace(error, f"{error}; print({HINT!r})"))
    return ended(project, api=api, status=1)


class TestEndings:
    pytestmark = slow

    def test_a_failed_stage_shows_its_last_lines_in_its_state(self, endings: Run) -> None:
        kind, name, message = endings.states["wrong"]
        assert (kind, name) == ("FAILED", "Failed")
        assert "wrong says wrong\nwrong goes wrong\n" in message
        assert HINT in message
        assert "exited with 3" in message
        assert len(message.splitlines()) <= 10

    def test_what_comes_after_a_failure_is_skipped_and_says_why(self, endings: Run) -> None:
        assert endings.states["never"] == ("CANCELLED", "Skipped", "wrong did not succeed")
        assert endings.states["neither"] == ("CANCELLED", "Skipped", "late did not succeed")
        assert endings.states["below"] == ("CANCELLED", "Skipped", "never did not succeed")
        assert endings.states["lowest"] == ("CANCELLED", "Skipped", "below did not succeed")
        assert not {"never", "neither", "below", "lowest"} & set(trace(endings.project))

    def test_a_skipped_stage_has_its_edges_in_the_graph(self, endings: Run, api: str) -> None:
        runs = ask(api, "task_runs/filter", flow_runs={"id": {"any_": [endings.flow_run["id"]]}})
        names = {one["id"]: one["name"] for one in runs}
        for name in ("never", "below", "lowest"):
            (inputs,) = [one["task_inputs"]["wait_for"] for one in runs if one["name"] == name]
            assert {names[item["id"]] for item in inputs} == set(ENDINGS[name])

    def test_the_table_at_the_end_gives_the_stages_own_error(self, endings: Run) -> None:
        rows = dict(re.findall(r"(?m)^(\w+) +\w+(?: after [\d.]+ s)?: (.*)$", endings.done.stdout))
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

    def test_the_report_has_the_whole_tail(self, endings: Run, api: str) -> None:
        reports = ask(api, "artifacts/filter", artifacts={"flow_run_id": {"any_": [endings.flow_run["id"]]}})
        assert "wrong says wrong<br>wrong goes wrong<br>" in reports[0]["data"]

    def test_what_is_independent_of_it_still_runs(self, endings: Run) -> None:
        assert endings.states["fine"] == ("COMPLETED", "Ran", "never ran")
        assert (endings.project / "fine.txt").read_text() == "fine"

    def test_the_run_has_failed_and_the_terminal_says_so_without_a_traceback(self, endings: Run) -> None:
        assert (endings.flow_run["state_type"], endings.flow_run["state_name"]) == ("FAILED", "Failed")
        for said in (
            "busy, wrong failed",
            "late timed out",
            "never, neither, below, lowest skipped",
            "ran fine (never ran)",
        ):
            assert said in endings.flow_run["name"]
        assert says_no_traceback(endings.done)
        assert "wrong           | wrong goes wrong" in endings.done.stdout

    def test_a_stage_is_tried_again_only_after_the_statuses_that_its_policy_names(self, endings: Run) -> None:
        began = trace(endings.project)
        assert (began.count("busy"), began.count("wrong")) == (3, 1)
        assert endings.states["busy"][:2] == ("FAILED", "Failed")
        (file,) = endings.project.glob("logs/*/busy.log")
        assert file.read_text().count("busy goes wrong") == 3

    def test_a_stage_that_takes_too_long_is_ended_with_all_that_it_started(self, endings: Run) -> None:
        kind, name, message = endings.states["late"]
        assert (kind, name) == ("FAILED", "TimedOut")
        assert "8 s" in message
        assert trace(endings.project).count("late") == 1
        assert stage_processes(endings.project) == []

    def test_a_stages_tags_are_its_tasks(self, endings: Run, api: str) -> None:
        runs = ask(api, "task_runs/filter", flow_runs={"id": {"any_": [endings.flow_run["id"]]}})
        assert {one["name"]: one["tags"] for one in runs if one["tags"]} == {"wrong": ["tagged"]}


@pytest.mark.slow
@pytest.mark.ci
def test_a_stage_more_in_dvc_yaml_is_a_task_more_and_no_source_of_flows_changes(after: Path, api: str) -> None:
    graph = json.loads((after / "dvc.yaml").read_text())
    graph["stages"]["fifth"] = {
        "cmd": "python -m stages.fifth fifth fifth.txt join.txt",
        "deps": ["stages/fifth.py", "join.txt"],
        "params": ["fifth"],
        "outs": ["fifth.txt"],
    }
    (after / "dvc.yaml").write_text(json.dumps(graph))
    (after / "stages" / "fifth.py").write_text(STAGE)
    content = json.loads((after / "params.yaml").read_text())
    (after / "params.yaml").write_text(json.dumps({**content, "fifth": {"text": "5", "seconds": 0.0, "status": 0}}))
    more = ended(after, api=api)
    assert more.named() == {**dict.fromkeys(NAMES, "UpToDate"), "fifth": "Ran"}
    assert trace(after) == ["fifth", "fifth"]
    assert run(after, "git", "status", "--porcelain", "flows").stdout == ""


def test_the_parameters_form_has_the_stages_to_choose_from_and_a_field_for_each_param(toy: Path) -> None:
    program = "import flows.pipeline; print(flows.pipeline.pipeline.parameters.model_dump_json())"
    schema = json.loads(run(toy, sys.executable, "-c", program).stdout.splitlines()[-1])
    fields, definitions = schema["properties"], schema["definitions"]
    assert list(fields) == ["only", "from_stage", "force", "params", "where", "commit_to"]
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
    """Every file under data, but the checkpoints, which are nobody's result."""
    return {
        file.relative_to(project).as_posix(): file.read_bytes()
        for file in (project / "data").rglob("*")
        if file.is_file() and "checkpoints" not in file.parts
    }


@pytest.mark.slow
@pytest.mark.ci
def test_on_the_real_stages_the_flow_leaves_what_dvc_repro_leaves(finished: Path, tmp_path: Path, api: str) -> None:
    project = new_project(tmp_path / "project", DIGITS)
    done = ended(project, api=api)
    assert done.states == dict.fromkeys(STAGES, ("COMPLETED", "Ran", "never ran"))
    assert results(project) == results(finished)
    for name in ("dvc.lock", "params.yaml"):
        assert (project / name).read_bytes() == (finished / name).read_bytes()
    assert ran(dvc(project, "repro", "--dry")) == []
    assert "accuracy" in done.done.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_a_gate_that_fails_is_told_by_its_own_line(project: Path, api: str) -> None:
    done = ended(project, "-S", "evaluate.min_accuracy=1.0", api=api, status=1)
    rows = dict(re.findall(r"(?m)^(\w+) +Failed after [\d.]+ s: (.*)$", done.done.stdout))
    assert list(rows) == ["evaluate"]
    assert re.match(r"evaluate: accuracy 0\.\d+ is below evaluate\.min_accuracy 1\.0", rows["evaluate"])
    assert rows["evaluate"] in done.states["evaluate"][2]
