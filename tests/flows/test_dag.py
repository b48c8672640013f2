"""The flows read dvc.yaml as DVC does, and report an error in it in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from repositories import executed_stages, run_dvc

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


def write_dvc_yaml(folder: Path, stages: dict[str, Any], **sections: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages, **sections}))
    return folder


def dvc_repository(folder: Path, stages: dict[str, Any]) -> Path:
    write_dvc_yaml(folder, stages)
    for path in ("both", "sub/inner"):
        (folder / path).mkdir(parents=True)
    (folder / "made-up").touch()
    run_dvc(folder, "init", "--quiet", "--no-scm")
    return folder


def read_edges(dag: Dag) -> set[tuple[str, str]]:
    return {(before, name) for name, stage in dag.stages.items() for before in stage.upstream}


def dvc_edges(folder: Path) -> set[tuple[str, str]]:
    """The edges that `dvc dag` shows."""
    lines = run_dvc(folder, "dag", "--dot").stdout.splitlines()
    pairs = [line.strip(" ;").replace('"', "").split(" -> ") for line in lines if "->" in line]
    return {(before, after) for before, after in pairs}


def error_message(folder: Path) -> str:
    with pytest.raises(FlowError) as problem:
        read_dag(folder)
    assert len(str(problem.value).splitlines()) == 1
    return str(problem.value)


@pytest.mark.parametrize("stages", [TANGLED, BACKWARDS, MIXED], ids=["as it runs", "backwards", "mixed"])
def test_edges_and_order_are_those_of_dvc(tmp_path: Path, stages: dict[str, Any]) -> None:
    folder = dvc_repository(tmp_path / "tangled", stages)
    dag = read_dag(folder)
    assert read_edges(dag) == dvc_edges(folder)
    assert {"folder", "around", "plotted"} == {before for before, after in read_edges(dag) if after != "last"}
    assert list(dag.stages) == executed_stages(run_dvc(folder, "repro"))


def test_a_dep_whose_name_starts_with_that_of_an_out_makes_no_edge(tmp_path: Path) -> None:
    stages = {
        "folder": {"cmd": "mkdir -p made && touch made/a", "outs": ["made"]},
        "other": {"cmd": "true", "deps": ["made-up"]},
    }
    folder = dvc_repository(tmp_path / "project", stages)
    assert read_edges(read_dag(folder)) == dvc_edges(folder) == set()


def test_from_a_stage_selects_it_and_all_stages_downstream(tmp_path: Path) -> None:
    dag = read_dag(write_dvc_yaml(tmp_path, TANGLED))
    assert dag.select((), "plotted") == ("plotted", "outside", "deep", "last")
    assert dag.select((), "last") == ("last",)
    assert dag.select((), "folder") == ("folder", "inside", "last")


def test_a_stage_has_what_dvc_yaml_says(tmp_path: Path) -> None:
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
    write_dvc_yaml(tmp_path, {"make": stage, "plain": {"cmd": "true"}}, artifacts={"model": {"path": "sub/a.txt"}})
    dag = read_dag(tmp_path)
    make, plain = dag.stages["make"], dag.stages["plain"]
    assert (make.name, make.description, make.params) == ("make", "Make it", ("section", "other.key"))
    assert "echo one" in make.command
    assert "echo two" in make.command
    assert make.outs == ("sub/a.txt", "sub/b.txt", "sub/m.json")
    assert make.metrics == ("sub/m.json",)
    assert make.options.model_dump(mode="json") == prefect
    assert (plain.description, plain.upstream, plain.options.retries, plain.options.timeout_seconds) == (
        "",
        (),
        0,
        None,
    )
    assert dag.artifacts == {"model": "sub/a.txt"}


def test_the_policies_of_this_project_are_read() -> None:
    stages = read_dag(ROOT).stages
    assert stages["download"].options.retry_on == (69,)
    assert stages["download"].options.retries == 3
    assert all(stage.options.timeout_seconds and stage.description for stage in stages.values())


@pytest.mark.parametrize(
    ("prefect", "expected"),
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
def test_an_invalid_policy_is_one_line_with_stage_and_key(tmp_path: Path, prefect: Any, expected: str) -> None:
    problem = error_message(write_dvc_yaml(tmp_path, {"make": {"cmd": "true", "meta": {"prefect": prefect}}}))
    assert problem.startswith("dvc.yaml: ")
    assert expected in problem


def test_an_unknown_key_of_a_policy_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    problem = error_message(write_dvc_yaml(tmp_path, {"make": {"cmd": "true", "meta": {"prefect": {"retires": 2}}}}))
    for known in ("retries", "retry_delay_seconds", "retry_on", "timeout_seconds", "tags"):
        assert known in problem.partition("known are")[2]


def test_a_cycle_is_reported_with_its_stages(tmp_path: Path) -> None:
    stages = {
        "one": {"cmd": "true", "deps": ["c"], "outs": ["a"]},
        "two": {"cmd": "true", "deps": ["a"], "outs": ["b"]},
        "three": {"cmd": "true", "deps": ["b"], "outs": ["c"]},
    }
    assert error_message(write_dvc_yaml(tmp_path, stages)).endswith("a cycle: one -> three -> two -> one")


def test_a_missing_dvc_yaml_is_one_line_with_its_path(tmp_path: Path) -> None:
    assert str(tmp_path / "dvc.yaml") in error_message(tmp_path)


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
def test_a_dvc_yaml_without_a_pipeline_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    assert error_message(tmp_path).startswith("dvc.yaml: ")
