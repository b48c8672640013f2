"""The laws of the house, as tests: each says what would break it."""

import ast
import importlib
import inspect
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from ruamel.yaml import YAML

from flows.dvc.dag import read_dag
from stages.core.device import LIBRARIES
from stages.core.params import Machine, Section

ROOT = Path(__file__).parent.parent
DVC = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
EXPERIMENTS = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")
STAGES = list(DVC["stages"])
LOCAL = {"--checkpoints", "--measured"}  # flags whose files are of this machine: no product, and no out
SOURCES = sorted([*(ROOT / "stages").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])
CONSUMER = sorted((ROOT / "lockstep").rglob("*.py"))
each_stage = pytest.mark.parametrize("name", STAGES)


def paths(entries: list[Any]) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def outs(name: str) -> list[str]:
    entry = DVC["stages"][name]
    return [path for kind in ("outs", "metrics", "plots") for path in paths(entry.get(kind, []))]


def flags(name: str) -> dict[str, str]:
    words = shlex.split(DVC["stages"][name]["cmd"])
    assert words[:3] == ["python", "-m", f"stages.{name}"]
    return dict(zip(words[3::2], words[4::2], strict=True))


def section_of(name: str) -> type[Section]:
    module = importlib.import_module(f"stages.{name}")
    own = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    (section,) = [kind for kind in own if issubclass(kind, Section)]
    return section


def imported(file: Path) -> Iterator[str]:
    """The modules that a file names in its imports, at the top or inside."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides what it needs"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(file: Path) -> set[str]:
    """The project's files that importing this one runs, with those that its package's own file runs before."""
    package = file.parent / "__init__.py"
    found, waiting = set(), [file, *([package] if package == ROOT / "stages" / "__init__.py" else [])]
    while waiting:
        file = waiting.pop()
        found.add(file.relative_to(ROOT).as_posix())
        for module in imported(file):
            target = ROOT / (module.replace(".", "/") + ".py")
            if target.exists() and target.relative_to(ROOT).as_posix() not in found:
                waiting.append(target)
    return found


# 1. One name, six places.


def test_stages_modules_and_param_sections_have_the_same_names() -> None:
    modules = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(STAGES) == set(PARAMS) - {"machine"}


@each_stage
def test_a_stage_is_a_function_of_its_name_with_a_test_file(name: str) -> None:
    stage = getattr(importlib.import_module(f"stages.{name}"), name)
    assert inspect.isfunction(stage)
    assert (ROOT / "tests" / f"test_{name}.py").exists()
    assert DVC["stages"][name]["desc"]


def test_the_prefect_task_of_a_stage_and_its_run_have_the_stages_name() -> None:
    tree = ast.parse((ROOT / "flows" / "pipeline.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Task"]
    words = [{word.arg: ast.unparse(word.value) for word in call.keywords} for call in calls]
    assert [(of["name"], of["task_run_name"]) for of in words] == [("stage.name", "stage.name")]
    assert {name: stage.name for name, stage in read_dag(ROOT).stages.items()} == {name: name for name in STAGES}


# 2. dvc.yaml is the only file that knows a path or an edge.


def test_the_edges_and_the_order_that_the_flow_reads_are_dvcs_own() -> None:
    stages = read_dag(ROOT).stages
    drawn = subprocess.run(["dvc", "dag", "--dot"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.strip(" ;").replace('"', "") for line in drawn.splitlines() if "->" in line]
    assert {f"{before} -> {name}" for name, stage in stages.items() for before in stage.upstream} == set(lines)
    lock = YAML(typ="safe", pure=True).load(committed("dvc.lock"))
    assert list(stages) == list(lock["stages"])


@each_stage
def test_every_path_is_a_flag_made_from_the_functions_signature(name: str) -> None:
    signature = inspect.signature(getattr(importlib.import_module(f"stages.{name}"), name))
    needed = {key for key, parameter in signature.parameters.items() if parameter.default is parameter.empty}
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in signature.parameters.values())
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags(name)} == needed


@each_stage
def test_every_path_of_a_command_is_a_dep_an_out_or_of_this_machine_and_ignored_by_git(name: str) -> None:
    entry = DVC["stages"][name]
    known = {*paths(entry["deps"]), *outs(name), "params.yaml"}
    others = {flag: path for flag, path in flags(name).items() if path not in known}
    assert set(others) <= LOCAL
    for path in others.values():
        ignored = [
            subprocess.run(["git", "check-ignore", "-q", f"{path}{end}"], cwd=ROOT).returncode for end in ("/", "")
        ]
        assert 0 in ignored, f"{path} is neither a dep nor an out, and git does not ignore it"
    assert set(outs(name)) <= set(flags(name).values()), "an out that no flag names"


def test_no_source_names_a_path_of_the_pipeline() -> None:
    known = {path for name in STAGES for path in (*outs(name), *flags(name).values())} - {"params.yaml"}
    known |= {path.split("/")[-1] for path in known if "." in path}
    for file in SOURCES:
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
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"
    assert all(field.is_required() for field in section.model_fields.values()), "a default is a second params.yaml"
    section.model_validate(PARAMS[name])
    Machine.model_validate(PARAMS["machine"])


@each_stage
def test_a_stage_reads_its_own_section_and_the_machine_alone_and_depends_on_what_it_reads(name: str) -> None:
    trees = [ast.parse((ROOT / path).read_text()) for path in closure(ROOT / "stages" / f"{name}.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    reads = [call.args[1] for call in calls if getattr(call.func, "id", "") == "read_section"]
    sections = {argument.value for argument in reads if isinstance(argument, ast.Constant)}
    assert len(reads) == len(sections), "a section is read twice, or not by its name"
    assert name in sections <= {name, "machine"}
    assert set(DVC["stages"][name]["params"]) == sections


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_holds_overrides_of_params_and_nothing_else(name: str) -> None:
    changed: dict[str, Any] = {section: dict(keys) for section, keys in PARAMS.items()}
    for param, value in EXPERIMENTS[name].items():
        section, key = param.split(".")
        assert key in changed[section], param
        changed[section][key] = value
    for stage in STAGES:
        section_of(stage).model_validate(changed[stage])


# 4. A stage reads files, calls pure helpers, writes files, returns nothing; no work at import.


@each_stage
def test_a_stage_returns_nothing(name: str) -> None:
    stage = getattr(importlib.import_module(f"stages.{name}"), name)
    assert get_type_hints(stage)["return"] is type(None)


def test_importing_the_stages_and_flows_does_no_work(tmp_path: Path) -> None:
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in SOURCES]
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
# Writes into a folder or file that an `atomic_write` block of the caller makes, or that is no output.
INNER = {
    "image_folder.py:fetch",
    "published.py:fetch",
    "mirrors.py:copy",
    "preprocess.py:write_splits",
    "splits.py:__init__",
    "checkpoint.py:lock_folder",
    "train.py:fit",  # a checkpoint's own save
}


@pytest.mark.parametrize("file", [file for file in SOURCES if "stages" in file.parts], ids=lambda file: file.name)
def test_outputs_are_written_beside_their_place_and_then_renamed(file: Path) -> None:
    def look(node: ast.AST, function: str, atomic: bool) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            atomic = atomic or any("atomic_write(" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not atomic:
            writes = node.func.attr == "open" and any("w" in str(getattr(word, "value", "")) for word in node.args)
            if node.func.attr in WRITERS or writes:
                yield f"{file.name}:{function}"
        for child in ast.iter_child_nodes(node):
            yield from look(child, function, atomic)

    assert set(look(ast.parse(file.read_text()), "", atomic=False)) <= INNER


# 5. Who may import whom.


# Each room of stages/ with the rooms that it may import.
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "sources": {"core"},
    "network": {"core"},
    "training": {"core", "network"},
    "proof": {"core", "network"},
}


def test_every_folder_of_stages_is_a_room_of_the_plan() -> None:
    assert {file.parent.name for file in (ROOT / "stages").glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_go_one_way(file: Path) -> None:
    tops = {module.split(".")[0] for module in imported(file)}
    if "flows" in file.parts:
        assert not tops & {"stages", "torch", "onnx", "lockstep"}
        return
    assert not tops & {"dvc", "prefect", "flows"}
    rooms = {module.split(".")[1] for module in imported(file) if module.startswith("stages.")}
    allowed = ROOMS[file.parent.name] | {file.parent.name} if file.parent.name in ROOMS else set(ROOMS)
    assert rooms <= allowed, f"{file.relative_to(ROOT)} may import stages.{', stages.'.join(sorted(allowed))} only"


@pytest.mark.parametrize("file", CONSUMER, ids=lambda file: file.name)
def test_what_consumes_the_model_imports_its_runtime_and_the_web_framework_alone(file: Path) -> None:
    tops = {module.split(".")[0] for module in imported(file)} - set(sys.stdlib_module_names)
    web = {"fastapi", "starlette", "uvicorn"}
    assert tops <= {"lockstep", "numpy", "onnxruntime", "PIL"} | web
    library = closure(ROOT / "lockstep" / "predict.py")
    if file.relative_to(ROOT).as_posix() in library:
        assert not tops & web, "the library and the command need no web framework"


# 6. A stage's deps are its own file, the rooms that it imports, and its data.


def source_deps(name: str) -> set[str]:
    """The files of stages/ itself and the rooms that importing a stage runs."""
    return {"/".join(path.split("/")[:2]) for path in closure(ROOT / "stages" / f"{name}.py")}


@each_stage
def test_a_stages_deps_are_its_own_file_the_rooms_that_it_imports_and_its_data(name: str) -> None:
    deps = set(paths(DVC["stages"][name]["deps"]))
    data = set(flags(name).values()) - set(outs(name)) - {"params.yaml", *map(flags(name).get, LOCAL)}
    wanted = source_deps(name) | data
    changes = [f"add the line '- {path}'" for path in sorted(wanted - deps)]
    changes += [f"drop the line '- {path}'" for path in sorted(deps - wanted)]
    assert not changes, f"dvc.yaml, stages.{name}.deps: {'; '.join(changes)}"


def test_the_packages_own_files_hold_a_docstring_alone_but_for_what_must_precede_torch() -> None:
    for file in SOURCES:
        if file.name == "__init__.py" and file != ROOT / "stages" / "__init__.py":
            assert [type(node) for node in ast.parse(file.read_text()).body] == [ast.Expr], file


# 7. One owner for each concern.


@pytest.mark.parametrize("name", STAGES)
def test_what_dvc_shows_lives_in_git_and_what_is_large_in_its_cache(name: str) -> None:
    entry = DVC["stages"][name]
    for kind in ("metrics", "outs"):
        for out in entry.get(kind, []):
            path, options = (out, {}) if isinstance(out, str) else next(iter(out.items()))
            assert options.get("cache", True) == (not path.startswith("data/reports/")), path


def test_no_stage_sleeps_or_tries_again_and_no_flow_caches() -> None:
    for file in SOURCES:
        names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        if "stages" in file.relative_to(ROOT).parts and file.name != "command.py":  # it watches for the parent
            assert "sleep" not in names, file
        assert not {module.split(".")[0] for module in imported(file)} & {"tenacity", "retry", "backoff", "sched"}, file
        assert "cache_key_fn" not in file.read_text(), file


# What is committed is of what is committed.


def committed(path: str) -> str:
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_committed_run_was_made_with_the_versions_of_the_lock() -> None:
    pins = dict(line.split(";")[0].strip().split("==") for line in committed("requirements.lock").splitlines() if line)
    record = json.loads(committed("data/reports/environment.json"))
    assert record["libraries"] == {name: pins[name] for name in record["libraries"]}
    assert set(record["libraries"]) == set(LIBRARIES)


def test_the_lock_names_no_host_and_pairs_torchvision_with_its_torch() -> None:
    import torch
    import torchvision

    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert f"torch=={torch.__version__.split('+')[0]}\n" in lock
    assert f"torchvision=={torchvision.__version__.split('+')[0]}\n" in lock
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]), torch.tensor([0.9, 0.8])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [0]  # a compiled operator: fails without its torch
