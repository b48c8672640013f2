"""Reads dvc.yaml: its stages with their edges and scheduling policies, and its artifacts."""

import json
import posixpath
import re
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from flows.dvc import expand_templates
from flows.dvc.params_file import edit_params_text
from flows.environment import environment
from flows.errors import FlowError

TEMPLATES = re.compile(r"\$\{|\b(foreach|matrix)[\"']?\s*:")  # what only DVC can expand


class PrefectOptions(BaseModel):
    """`meta.prefect` of a stage: how Prefect runs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retries: int = Field(0, ge=0)
    retry_delay_seconds: tuple[float, ...] = ()
    retry_on: tuple[int, ...] = ()  # exit statuses of the command; if empty, every failure
    timeout_seconds: float | None = Field(None, gt=0)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    name: str
    command: str
    description: str
    upstream: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]  # sections or keys of params.yaml
    outs: tuple[str, ...]  # including metrics and plots
    metrics: tuple[str, ...]
    options: PrefectOptions


@dataclass(frozen=True)
class Dag:
    stages: dict[str, Stage]  # in the order in which `dvc repro` runs them
    artifacts: dict[str, str]  # name to path

    def find(self, name: str) -> list[str]:
        """The stage of this name, or all stages of this `foreach` or `matrix`."""
        if found := [stage for stage in self.stages if name in (stage, group_name(stage))]:
            return found
        raise FlowError(f"no stage {name!r} in dvc.yaml, which has {', '.join(self.stages)}")

    def upstream_within(self, name: str, selected: Container[str]) -> tuple[str, ...]:
        """The nearest upstream stages that are selected: a stage that is not is replaced by its own upstream."""
        nearest: dict[str, None] = {}
        for upstream in self.stages[name].upstream:
            nearest |= dict.fromkeys([upstream] if upstream in selected else self.upstream_within(upstream, selected))
        return tuple(nearest)

    def select(self, only: Sequence[str], from_stage: str | None) -> tuple[str, ...]:
        """ONLY these stages, or FROM_STAGE and all downstream of it, or all."""
        if only and from_stage:
            raise FlowError("choose stages by --only or by --from, not by both")
        selected = {stage for name in (only or filter(None, [from_stage])) for stage in self.find(name)}
        if from_stage:
            for name, stage in self.stages.items():
                if selected & set(stage.upstream):
                    selected.add(name)
        return tuple(name for name in self.stages if name in selected or not selected)


def group_name(stage: str) -> str:
    """The name in dvc.yaml of a stage such as train@us, which DVC made from `foreach` or `matrix`."""
    return stage.partition("@")[0]


def read_dag(root: Path, changes: Mapping[str, Any] | None = None) -> Dag:
    """Read dvc.yaml in ROOT; its templates see params.yaml with these CHANGES, as in {"train.epochs": 5}."""
    try:
        text = (root / "dvc.yaml").read_text(encoding="utf-8")
    except OSError as error:
        raise FlowError(f"{root / 'dvc.yaml'}: {error.strerror}: run this in the project's folder") from error
    except UnicodeDecodeError as error:
        raise FlowError(f"{root / 'dvc.yaml'}: not UTF-8: {error.reason}") from error
    if TEMPLATES.search(text):
        text = expand(root, text, edit_params_text(root / "params.yaml", changes or {}))
    return parse_dag(text)


@lru_cache
def expand(root: Path, text: str, params: str) -> str:
    """dvc.yaml with its templates expanded by DVC, which takes about half a second."""
    command = ["python", expand_templates.__file__, "dvc.yaml", "params.yaml"]
    files = json.dumps([text, params])
    result = subprocess.run(
        command, cwd=root, env=environment(), input=files, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise FlowError(f"dvc.yaml: DVC cannot expand its templates: {' '.join(result.stderr.split())}")
    return result.stdout.splitlines()[-1]


@lru_cache
def parse_dag(text: str) -> Dag:
    try:
        content = YAML(typ="safe", pure=True).load(text)
        if not isinstance(content, Mapping) or "stages" not in content:
            raise TypeError("there is no section `stages`")
        entries: dict[str, dict[str, Any]] = content["stages"]
        if not all(isinstance(name, str) for name in entries):
            raise TypeError("the name of a stage is not a text")
        outs = {name: get_paths(entry, "outs", "metrics", "plots") for name, entry in entries.items()}
        upstream = {name: find_upstream(get_paths(entry, "deps"), outs) for name, entry in entries.items()}
        stages = {name: make_stage(name, entries[name], upstream[name], outs[name]) for name in sort_stages(upstream)}
        artifacts = {name: entry["path"] for name, entry in (content.get("artifacts") or {}).items()}
    except FlowError as error:
        raise FlowError(" ".join(str(error).split())) from error
    except Exception as error:  # of many types: what should be a list, a text or a mapping is something else
        message = " ".join(str(error).split()) or type(error).__name__
        raise FlowError(f"dvc.yaml: not a pipeline: {message:.500}: `dvc status` says more") from error
    return Dag(stages, artifacts)


def make_stage(name: str, entry: Mapping[str, Any], upstream: tuple[str, ...], outs: tuple[str, ...]) -> Stage:
    command = entry["cmd"]
    return Stage(
        name,
        command if isinstance(command, str) else " && ".join(command),
        str(entry.get("desc") or ""),
        upstream,
        get_paths(entry, "deps"),
        tuple(param for param in entry.get("params", []) if isinstance(param, str)),
        outs,
        get_paths(entry, "metrics"),
        make_prefect_options(name, (entry.get("meta") or {}).get("prefect", {})),
    )


def make_prefect_options(stage: str, content: Any) -> PrefectOptions:
    try:
        return PrefectOptions.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("stages", stage, "meta.prefect", *first["loc"])))
        known = ", ".join(PrefectOptions.model_fields)
        problem = f"unknown key; known are {known}" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise FlowError(f"dvc.yaml: {key}: {problem}") from error


def get_paths(entry: Mapping[str, Any], *kinds: str) -> tuple[str, ...]:
    """Paths from the project's folder. An item in dvc.yaml is a path, or {path: options}."""
    items = [item for kind in kinds for item in entry.get(kind) or []]
    paths = [item if isinstance(item, str) else next(iter(item)) for item in items]
    return tuple(posixpath.normpath(posixpath.join(entry.get("wdir", ""), path)) for path in paths)


def find_upstream(deps: Sequence[str], outs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The stages with an out that is a dep, contains it or is inside it, in the order of the deps."""
    upstream: dict[str, None] = {}
    for dep in deps:
        for name, paths in outs.items():
            if any(is_inside(dep, out) or is_inside(out, dep) for out in paths):
                upstream[name] = None
    return tuple(upstream)


def is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def sort_stages(upstream: Mapping[str, Sequence[str]]) -> list[str]:
    """Every stage after its upstream, otherwise in the order of dvc.yaml: the order of `dvc repro`."""
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise FlowError(f"dvc.yaml: a cycle: {' -> '.join((*path, name))}")
        if name not in order:
            for dependency in upstream[name]:
                visit(dependency, (*path, name))
            order.append(name)

    for name in upstream:
        visit(name, ())
    return order
