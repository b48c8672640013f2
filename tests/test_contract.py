"""The design rules of this project, as tests. CONTRIBUTING.md lists them."""

import ast
import hashlib
import importlib
import inspect
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from ruamel.yaml import YAML

from flows.automation import FLOW_NAMES
from flows.dvc.dag import read_dag
from stages.core.device import LIBRARIES
from stages.core.params import SHARED_SECTIONS, Machine, Section

ROOT = Path(__file__).parent.parent
PIPELINE = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
EXPERIMENTS = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
STAGES = list(PIPELINE["stages"])
UNTRACKED_FLAGS = {
    "--checkpoints",
    "--measurements",
}  # their files belong to this machine: neither deps nor outs, and ignored by git
PIPELINE_FILES = sorted([*(ROOT / "stages").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])
CONSUMER_FILES = sorted((ROOT / "lockstep").rglob("*.py"))
each_stage = pytest.mark.parametrize("name", STAGES)


def entry_paths(entries: list[Any]) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def stage_outs(name: str) -> list[str]:
    entry = PIPELINE["stages"][name]
    return [path for kind in ("outs", "metrics", "plots") for path in entry_paths(entry.get(kind, []))]


def command_flags(name: str) -> dict[str, str]:
    words = shlex.split(PIPELINE["stages"][name]["cmd"])
    assert words[:3] == ["python", "-m", f"stages.{name}"]
    return dict(zip(words[3::2], words[4::2], strict=True))


def section_of(name: str) -> type[Section] | None:
    """The class of the stage's params section; None for a stage without params."""
    module = importlib.import_module(f"stages.{name}")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    sections = [cls for cls in classes if cls.__module__ == module.__name__ and issubclass(cls, Section)]
    assert len(sections) <= 1, f"stages/{name}.py declares {len(sections)} sections"
    return sections[0] if sections else None


def imported_modules(file: Path) -> Iterator[str]:
    """The modules that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides what it needs"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_closure(file: Path) -> set[str]:
    """The project's files that run when this one is imported, stages/__init__.py included."""
    package = file.parent / "__init__.py"
    found, waiting = set(), [file, *([package] if package == ROOT / "stages" / "__init__.py" else [])]
    while waiting:
        file = waiting.pop()
        found.add(file.relative_to(ROOT).as_posix())
        for module in imported_modules(file):
            target = ROOT / (module.replace(".", "/") + ".py")
            if target.exists() and target.relative_to(ROOT).as_posix() not in found:
                waiting.append(target)
    return found


# 1. One name: stage, module, function, params section, test file, Prefect task.


def test_stages_modules_and_param_sections_have_the_same_names() -> None:
    modules = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(STAGES)
    assert {name for name in STAGES if section_of(name)} == set(PARAMS) - {*SHARED_SECTIONS}


@each_stage
def test_a_stage_is_a_function_of_its_name_with_a_test_file(name: str) -> None:
    stage = getattr(importlib.import_module(f"stages.{name}"), name)
    assert inspect.isfunction(stage)
    assert (ROOT / "tests" / f"test_{name}.py").exists(), f"write tests/test_{name}.py"
    assert PIPELINE["stages"][name].get("desc"), f"dvc.yaml, stages.{name}: add desc, a line that says what it does"
    source = (ROOT / "stages" / f"{name}.py").read_text()
    last_lines = f'if __name__ == "__main__":\n    run_stage({name})\n'
    assert source.endswith(last_lines), f"stages/{name}.py must end with\n{last_lines}"


def test_the_prefect_task_of_a_stage_and_its_run_have_the_stages_name() -> None:
    tree = ast.parse((ROOT / "flows" / "pipeline.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Task"]
    keywords = [{keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} for call in calls]
    assert [(given["name"], given["task_run_name"]) for given in keywords] == [("stage.name", "stage.name")]
    assert {name: stage.name for name, stage in read_dag(ROOT).stages.items()} == {name: name for name in STAGES}


def test_the_automation_covers_the_flow_of_every_deployment() -> None:
    for deployment in YAML(typ="safe", pure=True).load(ROOT / "prefect.yaml")["deployments"]:
        module, _, function = deployment["entrypoint"].partition(".py:")
        flow = getattr(importlib.import_module(module.replace("/", ".")), function)
        assert flow.name.startswith(FLOW_NAMES.removesuffix("*")), f"{deployment['entrypoint']}: call it lockstep-..."


# 2. dvc.yaml is the only file that knows a path or an edge.


def drawn_edges(folder: Path) -> set[str]:
    """The edges between stages as DVC draws them. Files that a person has added with `dvc add` are no stages."""
    drawn = subprocess.run(["dvc", "dag", "--dot"], cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [line.strip(" ;").replace('"', "") for line in drawn.splitlines() if "->" in line]
    return {line for line in lines if not line.split(" -> ")[0].endswith(".dvc")}


def read_edges(folder: Path) -> set[str]:
    return {f"{before} -> {name}" for name, stage in read_dag(folder).stages.items() for before in stage.upstream}


def test_the_flow_reads_the_same_edges_and_order_as_dvc() -> None:
    assert read_edges(ROOT) == drawn_edges(ROOT)
    lock = YAML(typ="safe", pure=True).load(read_committed("dvc.lock"))
    assert list(read_dag(ROOT).stages) == list(lock["stages"]), (
        "dvc.lock is of other stages: run `dvc repro`, then commit dvc.lock"
    )


def test_own_images_that_dvc_tracks_change_no_edge(tmp_path: Path) -> None:
    """As data/own/README.md advises: `dvc add` of the class folders."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("cat", "dog"):
        (tmp_path / "data" / "own" / name).mkdir(parents=True)
        (tmp_path / "data" / "own" / name / "1.png").write_bytes(name.encode())
    for command in ("git init -q", "dvc init -q", "dvc add -q data/own/cat/ data/own/dog/"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    assert (tmp_path / "data" / "own" / "cat.dvc").exists()
    assert drawn_edges(tmp_path) == read_edges(tmp_path) == read_edges(ROOT)


@each_stage
def test_every_path_is_a_flag_of_the_stages_function(name: str) -> None:
    signature = inspect.signature(getattr(importlib.import_module(f"stages.{name}"), name))
    needed = {key for key, parameter in signature.parameters.items() if parameter.default is parameter.empty}
    positional = [
        key for key, parameter in signature.parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    assert not positional, f"{name}: put * before its parameters"
    flags = {flag.removeprefix("--").replace("-", "_") for flag in command_flags(name)}
    assert flags == needed, f"dvc.yaml, stages.{name}.cmd: its flags are not the parameters of {name}"


@each_stage
def test_every_path_of_a_command_is_a_dep_or_an_out_or_ignored_by_git(name: str) -> None:
    entry = PIPELINE["stages"][name]
    known = {*entry_paths(entry["deps"]), *stage_outs(name), "params.yaml"}
    others = {flag: path for flag, path in command_flags(name).items() if path not in known}
    assert set(others) <= UNTRACKED_FLAGS
    for path in others.values():
        ignored = [
            subprocess.run(["git", "check-ignore", "-q", f"{path}{end}"], cwd=ROOT).returncode for end in ("/", "")
        ]
        assert 0 in ignored, f"{path} is neither a dep nor an out, and git does not ignore it"
    assert set(stage_outs(name)) <= set(command_flags(name).values()), "an out that no flag names"


def test_no_source_names_a_path_of_the_pipeline() -> None:
    known = {path for name in STAGES for path in (*stage_outs(name), *command_flags(name).values())} - {"params.yaml"}
    known |= {path.split("/")[-1] for path in known if "." in path}
    for file in PIPELINE_FILES:
        tree = ast.parse(file.read_text())
        said = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        words = {word.strip("`'\".,;:()") for text in said for word in text.split()}
        assert not known & words, file
        assert not [word for word in words if word == "data" and f'"{word}"' in file.read_text()], file
        assert not [word for word in words if word.startswith("data/")], file


# 3. params.yaml is the only file that knows a hyper-parameter.


@each_stage
def test_a_section_is_frozen_complete_and_takes_no_unknown_key(name: str) -> None:
    section = section_of(name)
    if section is None:
        return  # nothing to check: the test above holds that params.yaml has no section for it
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"
    assert all(field.is_required() for field in section.model_fields.values()), "a default is a second params.yaml"
    section.model_validate(PARAMS[name])
    Machine.model_validate(PARAMS["machine"])


@each_stage
def test_a_stage_reads_only_its_own_section_and_machine_and_lists_both_as_params(name: str) -> None:
    trees = [ast.parse((ROOT / path).read_text()) for path in import_closure(ROOT / "stages" / f"{name}.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    reads = [call.args[1] for call in calls if getattr(call.func, "id", "") == "read_section"]
    sections = {argument.value for argument in reads if isinstance(argument, ast.Constant)}
    assert len(reads) == len(sections), "a section is read twice, or not by its name"
    assert sections <= {name, "machine"}
    assert set(PIPELINE["stages"][name].get("params", [])) == sections


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_holds_only_overrides_of_params(name: str) -> None:
    changed: dict[str, Any] = {section: dict(keys) for section, keys in PARAMS.items()}
    for param, value in EXPERIMENTS[name].items():
        section, key = param.split(".")
        assert key in changed[section], param
        changed[section][key] = value
    for stage in STAGES:
        if section := section_of(stage):
            section.model_validate(changed[stage])


# 4. A stage reads files, calls pure helpers, writes files and returns nothing. Importing it does no work.


@each_stage
def test_a_stage_returns_nothing(name: str) -> None:
    stage = getattr(importlib.import_module(f"stages.{name}"), name)
    assert get_type_hints(stage)["return"] is type(None)


def test_importing_the_stages_and_flows_does_no_work(tmp_path: Path) -> None:
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in PIPELINE_FILES]
    program = f"""
import importlib, logging, os, pathlib, random, sys, threading
import cyclopts, dvc, matplotlib, numpy, onnx, onnxruntime, safetensors.torch, sklearn, torch, torchvision
import prefect.main
sys.path.insert(0, {str(ROOT)!r})
def state():
    loggers = {{name: (log.level, len(log.handlers)) for name, log in logging.root.manager.loggerDict.items()
               if isinstance(log, logging.Logger) and log.level}}
    return (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), str(torch.get_default_device()),
            loggers, list(logging.root.handlers), logging.root.level, threading.active_count())
before = state()
def refuse(*_, **__): raise AssertionError("a folder made at import")
os.mkdir = os.makedirs = pathlib.Path.mkdir = refuse
for module in {modules!r}: importlib.import_module(module)
assert before == state()
"""
    command = [sys.executable, "-B", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_preprocess_imports_no_torch() -> None:
    program = "import sys, stages.preprocess; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


WRITERS = {"write_text", "write_bytes", "save", "savefig", "copyfile"}
# Writes into a folder or file that an `atomic_write` block of the caller makes, or that is no output. The `fetch` of a
# data set may write as it likes: `fetch_dataset` renames the whole folder.
ALLOWED_WRITERS = {
    "mirrors.py:copy_stream",
    "preprocess.py:write_splits",
    "splits.py:npy_writer",
    "checkpoint.py:lock_folder",
    "train.py:fit",  # a checkpoint's own save
}


@pytest.mark.parametrize(
    "file", [file for file in PIPELINE_FILES if "stages" in file.parts], ids=lambda file: file.name
)
def test_outputs_are_written_to_a_temporary_path_and_then_renamed(file: Path) -> None:
    def look(node: ast.AST, function: str, atomic: bool) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            atomic = atomic or any("atomic_write(" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not atomic:
            writes = node.func.attr == "open" and any("w" in str(getattr(word, "value", "")) for word in node.args)
            is_fetch = file.parent.name == "sources" and function == "fetch"
            if (node.func.attr in WRITERS or writes) and not is_fetch:
                yield f"{file.name}:{function}"
        for child in ast.iter_child_nodes(node):
            yield from look(child, function, atomic)

    assert set(look(ast.parse(file.read_text()), "", atomic=False)) <= ALLOWED_WRITERS


# 5. Who may import whom.


# Each room of stages/ with the rooms that it may import.
ALLOWED_ROOMS: dict[str, set[str]] = {
    "core": set(),
    "sources": {"core"},
    "network": {"core"},
    "training": {"core", "network"},
    "proof": {"core", "network"},
}


def test_every_folder_of_stages_is_a_room_of_the_plan() -> None:
    assert {file.parent.name for file in (ROOT / "stages").glob("*/__init__.py")} == set(ALLOWED_ROOMS)


@pytest.mark.parametrize("file", PIPELINE_FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_go_one_way(file: Path) -> None:
    tops = {module.split(".")[0] for module in imported_modules(file)}
    if "flows" in file.relative_to(ROOT).parts:
        assert not tops & {"stages", "torch", "onnx", "lockstep"}
        return
    assert not tops & {"dvc", "prefect", "flows"}
    rooms = {module.split(".")[1] for module in imported_modules(file) if module.startswith("stages.")}
    room = file.parent.name
    allowed = ALLOWED_ROOMS[room] | {room} if room in ALLOWED_ROOMS else set(ALLOWED_ROOMS)
    assert rooms <= allowed, f"{file.relative_to(ROOT)} may import stages.{', stages.'.join(sorted(allowed))} only"


@pytest.mark.parametrize("file", CONSUMER_FILES, ids=lambda file: file.name)
def test_the_consumer_imports_its_runtime_only_and_its_service_the_web_framework_too(file: Path) -> None:
    tops = {module.split(".")[0] for module in imported_modules(file)} - set(sys.stdlib_module_names)
    # What the extra `service` installs.
    service = {"starlette", "uvicorn", "prometheus_client", "python_multipart", "orjson"}
    serves = "service" in file.parts or file.name == "serve.py"
    allowed = {"lockstep", "numpy", "onnxruntime", "PIL"} | (service if serves else set())
    signing = {"signature.py": {"model_signing"}, "rebuilt.py": {"securesystemslib", "cryptography"}}
    allowed |= signing.get(file.name, set())  # what the extra `signing` installs
    allowed |= {"pyarrow"} if file.name == "output.py" else set()  # if it is there
    assert tops <= allowed


# 6. A stage's deps are its own file, the rooms that it imports, and its data.


def source_deps(name: str) -> set[str]:
    """The files of stages/ itself and the rooms that importing a stage runs."""
    return {"/".join(path.split("/")[:2]) for path in import_closure(ROOT / "stages" / f"{name}.py")}


@each_stage
def test_a_stages_deps_are_its_own_file_the_rooms_that_it_imports_and_its_data(name: str) -> None:
    deps = set(entry_paths(PIPELINE["stages"][name]["deps"]))
    data = (
        set(command_flags(name).values())
        - set(stage_outs(name))
        - {"params.yaml", *map(command_flags(name).get, UNTRACKED_FLAGS)}
    )
    wanted = source_deps(name) | data
    changes = [f"add the line '- {path}'" for path in sorted(wanted - deps)]
    changes += [f"drop the line '- {path}'" for path in sorted(deps - wanted)]
    assert not changes, f"dvc.yaml, stages.{name}.deps: {'; '.join(changes)}"


def test_init_files_hold_only_a_docstring_except_for_what_must_run_before_torch() -> None:
    for file in PIPELINE_FILES:
        if file.name == "__init__.py" and file != ROOT / "stages" / "__init__.py":
            assert [type(node) for node in ast.parse(file.read_text()).body] == [ast.Expr], file


# 7. One owner for each concern.


@pytest.mark.parametrize("name", STAGES)
def test_reports_are_tracked_by_git_and_large_files_by_dvc(name: str) -> None:
    entry = PIPELINE["stages"][name]
    for kind in ("metrics", "outs"):
        for out in entry.get(kind, []):
            path, options = (out, {}) if isinstance(out, str) else next(iter(out.items()))
            is_report = path.startswith("data/reports/")
            hint = "add cache: false, since git tracks reports" if is_report else "remove cache: false"
            assert options.get("cache", True) == (not is_report), f"dvc.yaml, {path}: {hint}"


def test_no_stage_sleeps_or_retries_and_no_flow_caches() -> None:
    for file in PIPELINE_FILES:
        names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        if "stages" in file.relative_to(ROOT).parts and file.name != "command.py":  # it watches its parent
            assert "sleep" not in names, file
        assert not {module.split(".")[0] for module in imported_modules(file)} & {
            "tenacity",
            "retry",
            "backoff",
            "sched",
        }, file
        assert "cache_key_fn" not in file.read_text(), file


# The committed run was made by the committed code.


def read_committed(path: str) -> str:
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_committed_run_was_made_with_the_versions_of_the_lock() -> None:
    pins = dict(
        line.split(";")[0].strip().split("==") for line in read_committed("requirements.lock").splitlines() if line
    )
    record = json.loads(read_committed("data/reports/environment.json"))
    assert record["libraries"] == {name: pins[name] for name in record["libraries"]}
    assert set(record["libraries"]) == set(LIBRARIES)


def test_the_published_model_is_that_of_the_committed_run() -> None:
    lock = YAML(typ="safe", pure=True).load(read_committed("dvc.lock"))
    outs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
    for name in ("model.onnx", "golden.json", "certificate.json", "CARD.md"):
        content = (ROOT / "lockstep" / "published" / name).read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert digest == outs[f"data/model/{name}"], "run `make publish` and commit lockstep/published"


def test_the_lock_names_no_host_and_pairs_torchvision_with_its_torch() -> None:
    import torch
    import torchvision

    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert f"torch=={torch.__version__.split('+')[0]}\n" in lock
    assert f"torchvision=={torchvision.__version__.split('+')[0]}\n" in lock
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]), torch.tensor([0.9, 0.8])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [0]  # a compiled operator: fails without its torch
