"""What the flows read in dvc.yaml is what DVC itself reads there, and what is wrong there is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from repositories import dvc, ran

from flows.dvc.dag import Dag, read_dag
from flows.errors import FlowError

# Deps inside a folder that is an out, folders around outs, working directories, metrics and plots as outs.
TANGLED: dict[str, dict[str, Any]] = {
    "folder": {"cmd": "mkdir -p made && touch made/a", "outs": ["made"]},
    "around": {"cmd": "touch a", "wdir": "both", "outs": ["a"]},
    "plotted": {"cmd": "touch both/b", "plots": [{"both/b": {"cache": False}}]},
    "inside": {"cmd": "echo {} > inside.json", "deps": ["made/a"], "metrics": [{"inside.json": {"cache": False}}]},
    "outside": {"cmd": "touch outside.txt", "deps": ["both"], "outs": ["outside.txt"]},
    "deep": {
        "cmd": "touch deep.txt",
        "wdir": "sub/inner",
        "deps": ["../../both/b", "../../made-up"],
        "outs": [{"deep.txt": {"persist": True}}],
    },
    "last": {"cmd": "touch last.txt", "deps": ["inside.json", "outside.txt", "sub/inner/deep.txt"]},
}
BACKWARDS = {name: {**TANGLED[name]} for name in reversed(TANGLED)}
BACKWARDS["last"]["deps"] = BACKWARDS["last"]["deps"][::-1]
MIXED = {name: TANGLED[name] for name in reversed(TANGLED)}


def write(folder: Path, stages: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages, **more}))
    return folder


def repository(folder: Path, stages: dict[str, Any]) -> Path:
    write(folder, stages)
    for path in ("both", "sub/inner"):
        (folder / path).mkdir(parents=True)
    (folder / "made-up").touch()
    dvc(folder, "init", "--quiet", "--no-scm")
    return folder


def edges(dag: Dag) -> set[tuple[str, str]]:
    return {(before, name) for name, stage in dag.stages.items() for before in stage.upstream}


def drawn(folder: Path) -> set[tuple[str, str]]:
    """The edges that DVC draws."""
    lines = dvc(folder, "dag", "--dot").stdout.splitlines()
    found = [line.strip(" ;").replace('"', "").split(" -> ") for line in lines if "->" in line]
    return {(before, after) for before, after in found}


def refusal(folder: Path) -> str:
    with pytest.raises(FlowError) as problem:
        read_dag(folder)
    assert len(str(problem.value).splitlines()) == 1
    return str(problem.value)


@pytest.mark.parametrize("stages", [TANGLED, BACKWARDS, MIXED], ids=["as it runs", "backwards", "mixed"])
def test_edges_and_order_are_dvcs_own(tmp_path: Path, stages: dict[str, Any]) -> None:
    folder = repository(tmp_path / "tangled", stages)
    dag = read_dag(folder)
    assert edges(dag) == drawn(folder)
    assert {"folder", "around", "plotted"} == {before for before, after in edges(dag) if after != "last"}
    assert list(dag.stages) == ran(dvc(folder, "repro"))


def test_a_file_beside_a_folder_whose_name_it_begins_with_makes_no_edge(tmp_path: Path) -> None:
    stages = {
        "folder": {"cmd": "mkdir -p made && touch made/a", "outs": ["made"]},
        "beside": {"cmd": "true", "deps": ["made-up"]},
    }
    folder = repository(tmp_path / "beside", stages)
    assert edges(read_dag(folder)) == drawn(folder) == set()


def test_what_comes_after_a_stage_is_all_that_dvc_runs_after_it(tmp_path: Path) -> None:
    dag = read_dag(write(tmp_path, TANGLED))
    assert dag.downstream("plotted") == ("plotted", "outside", "deep", "last")
    assert dag.downstream("last") == ("last",)
    assert dag.downstream("folder") == ("folder", "inside", "last")


def test_the_records_hold_what_dvc_yaml_says(tmp_path: Path) -> None:
    prefect = {"retries": 2, "retry_delay_seconds": [1, 2.5], "retry_on": [69], "timeout_seconds": 3, "tags": ["gpu"]}
    stage = {
        "desc": "Make it",
        "cmd": ["echo one", "echo two"],
        "wdir": "sub",
        "params": ["section", "other.key"],
        "outs": ["a.txt", {"b.txt": {"cache": False}}],
        "metrics": [{"m.json": {"cache": False}}],
        "meta": {"prefect": prefect, "owner": "somebody"},
    }
    write(tmp_path, {"make": stage, "plain": {"cmd": "true"}}, artifacts={"model": {"path": "sub/a.txt"}})
    dag = read_dag(tmp_path)
    make, plain = dag.stages["make"], dag.stages["plain"]
    assert (make.name, make.description, make.params) == ("make", "Make it", ("section", "other.key"))
    assert "echo one" in make.command
    assert "echo two" in make.command
    assert make.outs == ("sub/a.txt", "sub/b.txt", "sub/m.json")
    assert make.tracked == ("sub/b.txt", "sub/m.json")
    assert make.metrics == ("sub/m.json",)
    assert dag.metrics("make") == Path("sub/m.json")
    assert make.policy.model_dump(mode="json") == prefect
    assert (plain.description, plain.upstream, plain.policy.retries, plain.policy.timeout_seconds) == ("", (), 0, None)
    assert dag.artifacts == {"model": "sub/a.txt"}


def test_the_real_policies_are_read() -> None:
    stages = read_dag(ROOT).stages
    assert stages["download"].policy.retry_on == (69,)
    assert stages["download"].policy.retries == 3
    assert all(stage.policy.timeout_seconds and stage.description for stage in stages.values())


@pytest.mark.parametrize(
    ("prefect", "said"),
    [
        ({"retires": 2}, "stages.make.meta.prefect.retires: unknown key"),
        ({"retries": "often"}, "stages.make.meta.prefect.retries: "),
        ({"retries": -1}, "stages.make.meta.prefect.retries: "),
        ({"timeout_seconds": 0}, "stages.make.meta.prefect.timeout_seconds: "),
        ({"retry_on": [69, "busy"]}, "stages.make.meta.prefect.retry_on.1: "),
        ({"tags": "gpu"}, "stages.make.meta.prefect.tags: "),
        (["retries"], "stages.make.meta.prefect: "),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_stage_and_the_key(tmp_path: Path, prefect: Any, said: str) -> None:
    problem = refusal(write(tmp_path, {"make": {"cmd": "true", "meta": {"prefect": prefect}}}))
    assert problem.startswith("dvc.yaml: ")
    assert said in problem


def test_an_unknown_key_of_a_policy_is_told_the_known_ones(tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, {"make": {"cmd": "true", "meta": {"prefect": {"retires": 2}}}}))
    for known in ("retries", "retry_delay_seconds", "retry_on", "timeout_seconds", "tags"):
        assert known in problem.partition("known are")[2]


@pytest.mark.parametrize(
    "entry",
    [
        {"foreach": ["a", "b"], "do": {"cmd": "touch ${item}", "outs": ["${item}"]}},
        {"matrix": {"x": ["a", "b"]}, "cmd": "touch ${item.x}"},
        {"cmd": "touch a", "outs": ["${out.path}"]},
        {"cmd": "touch a", "deps": ["${in.path}"]},
        {"cmd": "touch a", "metrics": [{"${metrics}.json": {"cache": False}}]},
    ],
)
def test_what_only_dvc_can_expand_is_refused_in_one_line_that_names_the_stage(tmp_path: Path, entry: Any) -> None:
    problem = refusal(write(tmp_path, {"fine": {"cmd": "true"}, "many": entry}))
    assert problem.startswith("dvc.yaml: stages.many: ")
    assert "are not read here" in problem


def test_a_circle_is_named(tmp_path: Path) -> None:
    stages = {
        "one": {"cmd": "true", "deps": ["c"], "outs": ["a"]},
        "two": {"cmd": "true", "deps": ["a"], "outs": ["b"]},
        "three": {"cmd": "true", "deps": ["b"], "outs": ["c"]},
    }
    assert refusal(write(tmp_path, stages)).endswith("a circle: one -> three -> two -> one")


def test_without_a_dvc_yaml_one_line_says_where_it_was_looked_for(tmp_path: Path) -> None:
    assert str(tmp_path / "dvc.yaml") in refusal(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "stages:",
        "stages: [make]",
        "stages: {make: }",
        "stages: {make: {deps: [a]}}",
        "stages: {",
        "plots: []",
    ],
)
def test_a_dvc_yaml_that_is_no_pipeline_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    assert refusal(tmp_path).startswith("dvc.yaml: ")
