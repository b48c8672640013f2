"""`foreach`, `matrix` and `${}` in dvc.yaml give the flows the stages, edges and results that DVC gives them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from repositories import commit_all, executed_stages, run_dvc
from ruamel.yaml import YAML
from toys import create_toy_repository, last_run, read_trace, run_flow_module, task_runs

from flows.dvc import dag as dag_module
from flows.dvc.dag import read_dag
from flows.dvc.params_file import set_param
from flows.errors import FlowError

NOWHERE = "http://127.0.0.1:9/api"
PARAMS = {
    "regions": ["us", "0.1"],
    "models": {"cnn": {"layers": 3}, "mlp": {"layers": 2}},
    "paths": {"data": "data.txt"},
    "options": {"lr": 0.1, "verbose": True},
}
DATA = {"cmd": "echo ${options.lr} > ${paths.data}", "outs": ["${paths.data}"]}
TEMPLATES: dict[str, dict[str, Any]] = {
    "foreach list": {
        "data": DATA,
        "train": {
            "foreach": "${regions}",
            "do": {"cmd": "echo ${item} > ${item}.txt", "deps": ["${paths.data}"], "outs": ["${item}.txt"]},
        },
    },
    "foreach dict": {
        "data": DATA,
        "train": {
            "foreach": "${models}",
            "do": {
                "cmd": "echo ${item.layers} > ${key}.txt",
                "deps": ["${paths.data}"],
                "outs": ["${key}.txt"],
                "meta": {"prefect": {"retries": "${item.layers}"}},
            },
        },
    },
    "matrix": {
        "train": {
            "matrix": {"model": ["cnn", "mlp"], "options": [{"lr": 1}, {"lr": 2}]},
            "cmd": "echo ${item.model} ${item.options} > ${key}.txt",
            "deps": ["${paths.data}"],
            "outs": ["${key}.txt"],
        },
        "data": DATA,
    },
    "paths and commands": {
        "last": {"cmd": ["cat ${paths.data}", "touch last"], "deps": ["${paths.data}"], "metrics": ["last"]},
        "data": {"cmd": "echo ${options} '\\${HOME}' > ${paths.data}", "outs": [{"${paths.data}": {"cache": False}}]},
    },
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(json.dumps(PARAMS))
    run_dvc(tmp_path, "init", "--quiet", "--no-scm")
    return tmp_path


def write_dvc_yaml(folder: Path, stages: dict[str, Any]) -> None:
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))


@pytest.mark.parametrize("stages", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_stages_edges_and_order_are_those_of_dvc(project: Path, stages: dict[str, Any]) -> None:
    write_dvc_yaml(project, stages)
    dag = read_dag(project)
    lines = run_dvc(project, "dag", "--dot").stdout.replace('"', "").splitlines()
    edges = {f"{upstream} -> {name}" for name, stage in dag.stages.items() for upstream in stage.upstream}
    assert edges == {line.strip(" ;") for line in lines if "->" in line}
    assert list(dag.stages) == executed_stages(run_dvc(project, "repro"))
    entries = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    for name, stage in dag.stages.items():
        command = entries[name]["cmd"]
        assert stage.command == (command if isinstance(command, str) else " && ".join(command))
        assert stage.outs == tuple(out["path"] for out in entries[name]["outs"])


def test_names_policies_and_groups_of_generated_stages(project: Path) -> None:
    write_dvc_yaml(project, TEMPLATES["foreach dict"])
    dag = read_dag(project)
    assert [stage.options.retries for stage in dag.stages.values()] == [0, 3, 2]
    assert dag.select(["train"], None) == ("train@cnn", "train@mlp")
    assert dag.select(["train@mlp"], None) == ("train@mlp",)
    with pytest.raises(FlowError, match=r"no stage 'train@rnn' in dvc\.yaml, which has data, train@cnn, train@mlp"):
        dag.select(["train@rnn"], None)


def test_changed_params_change_the_stages_but_not_the_file(project: Path) -> None:
    write_dvc_yaml(project, TEMPLATES["foreach list"])
    dag = read_dag(project, {"paths.data": "other.txt"})
    assert dag.stages["data"].outs == dag.stages["train@us"].deps == ("other.txt",)
    assert read_dag(project).stages["data"].outs == ("data.txt",)


def test_an_invalid_template_is_one_line_with_the_message_of_dvc(project: Path) -> None:
    write_dvc_yaml(project, {"data": {"cmd": "touch a", "outs": ["${paths.nothing}"]}})
    with pytest.raises(FlowError) as error:
        read_dag(project)
    assert str(error.value).startswith("dvc.yaml: DVC cannot expand its templates: ResolveError: failed to parse")
    assert "paths.nothing" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_plain_dvc_yaml_is_read_without_dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dag_module, "expand", None)
    write_dvc_yaml(project, {"data": {"cmd": "touch a", "outs": ["a"], "desc": "A confusion matrix for each"}})
    assert read_dag(project).stages["data"].outs == ("a",)


@pytest.fixture
def templated_toy(tmp_path: Path) -> Path:
    """A toy whose stage `left` runs for two regions, and whose out of `make` is named in params.yaml."""
    toy_repository = create_toy_repository(tmp_path / "a toy")
    content = json.loads((toy_repository / "dvc.yaml").read_text())
    stages = json.loads(json.dumps(content["stages"]).replace("make.txt", "${make.text}.txt"))
    left = json.loads(json.dumps(stages["left"]).replace("left.txt", "left-${item}.txt"))
    left["meta"] = {"prefect": {"tags": ["${item}"], "timeout_seconds": 60}}
    stages["left"] = {"foreach": ["us", "eu"], "do": left}
    stages["join"] = json.loads(json.dumps(stages["join"]).replace("left.txt", "left-us.txt"))
    (toy_repository / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    commit_all(toy_repository)
    return toy_repository


def states(prefect_api_url: str) -> dict[str, str]:
    return {name: state for name, (_, state, _) in task_runs(prefect_api_url, last_run(prefect_api_url)["id"]).items()}


@pytest.mark.slow
@pytest.mark.ci
def test_the_flow_runs_generated_stages_and_writes_the_dvc_lock_of_repro(
    templated_toy: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    names = ["make", "left@us", "left@eu", "right", "join"]
    twin = Path(shutil.copytree(templated_toy, tmp_path / "twin", symlinks=True))
    assert executed_stages(run_dvc(twin, "repro")) == names
    output = run_flow_module(templated_toy, prefect_api_url=prefect_api_url).stdout
    assert states(prefect_api_url) == dict.fromkeys(names, "Ran")
    assert "left@us         | left says left" in output
    assert (templated_toy / "dvc.lock").read_bytes() == (twin / "dvc.lock").read_bytes()
    assert (templated_toy / "join.txt").read_bytes() == (twin / "join.txt").read_bytes()

    run_flow_module(templated_toy, prefect_api_url=prefect_api_url)
    assert states(prefect_api_url) == dict.fromkeys(names, "UpToDate")
    run_flow_module(templated_toy, "--only", "left@eu", "--force", prefect_api_url=prefect_api_url)
    assert states(prefect_api_url) == {"left@eu": "Ran"}
    run_flow_module(templated_toy, "--from", "left", "--force", prefect_api_url=prefect_api_url)
    assert states(prefect_api_url) == {"left@us": "Ran", "left@eu": "Ran", "join": "Ran"}
    assert run_dvc(templated_toy, "status", "--json").stdout.strip() == "{}"


@pytest.mark.slow
@pytest.mark.ci
def test_a_param_that_only_a_template_reads_reruns_its_stages(
    templated_toy: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    content = json.loads((templated_toy / "dvc.yaml").read_text())
    content["stages"]["right"]["cmd"] += " && echo ${join.text}"
    (templated_toy / "dvc.yaml").write_text(json.dumps(content))
    run_dvc(templated_toy, "repro")
    commit_all(templated_toy)
    twin = Path(shutil.copytree(templated_toy, tmp_path / "twin", symlinks=True))
    plan = run_flow_module(templated_toy, "--plan", "-S", "join.text=new", prefect_api_url=NOWHERE).stdout.splitlines()
    assert [line.split(maxsplit=1) for line in plan] == [
        ["make", "up to date"],
        ["left@us", "up to date"],
        ["left@eu", "up to date"],
        ["right", "its command changed"],
        ["join", "params join.text join -> new"],
    ]
    (templated_toy / "trace").unlink()
    run_flow_module(templated_toy, "-S", "make.text=other", "-S", "join.text=new", prefect_api_url=prefect_api_url)
    assert read_trace(templated_toy)[0] == "make"
    for param, value in (("make.text", "other"), ("join.text", "new")):
        set_param(twin / "params.yaml", param, value)
    run_dvc(twin, "repro")
    assert (templated_toy / "dvc.lock").read_bytes() == (twin / "dvc.lock").read_bytes()
    assert run_dvc(templated_toy, "status", "--json").stdout.strip() == "{}"
