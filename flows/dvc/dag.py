"""dvc.yaml as records: the stages with their edges and their policies, and the artifacts."""

import posixpath
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.errors import FlowError


class Policy(BaseModel):
    """`meta.prefect` of a stage: what Prefect does about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retries: int = Field(0, ge=0)
    retry_delay_seconds: tuple[float, ...] = ()
    retry_on: tuple[int, ...] = ()  # exit statuses of the command; none named: every failure
    timeout_seconds: float | None = Field(None, gt=0)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    name: str
    command: str
    description: str
    upstream: tuple[str, ...]
    params: tuple[str, ...]  # sections or keys
    outs: tuple[str, ...]  # metrics among them
    tracked: tuple[str, ...]  # outs that git keeps
    metrics: tuple[str, ...]
    policy: Policy


@dataclass(frozen=True)
class Dag:
    stages: dict[str, Stage]  # in the order in which `dvc repro` runs them
    artifacts: dict[str, str]  # name to path

    def metrics(self, stage: str) -> Path:
        """The metrics file of a stage that has one."""
        return Path(self.stages[stage].metrics[0])

    def nearest(self, name: str, among: Container[str]) -> tuple[str, ...]:
        """The stages before this one; for each that is not among those that run, the ones before it."""
        found: dict[str, None] = {}
        for before in self.stages[name].upstream:
            found |= dict.fromkeys([before] if before in among else self.nearest(before, among))
        return tuple(found)

    def downstream(self, first: str) -> tuple[str, ...]:
        """The stage and all that come after it."""
        found = {first}
        for name, stage in self.stages.items():
            if found & set(stage.upstream):
                found.add(name)
        return tuple(name for name in self.stages if name in found)


def read_dag(root: Path) -> Dag:
    try:
        return parsed((root / "dvc.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise FlowError(f"{root / 'dvc.yaml'}: {error.strerror}: run this in the project's folder") from error


@lru_cache
def parsed(text: str) -> Dag:
    try:
        content = YAML(typ="safe", pure=True).load(text)
        entries: dict[str, dict[str, Any]] = content["stages"]
        plain(entries)
        outs = {name: paths(entry, "outs", "metrics", "plots") for name, entry in entries.items()}
        upstream = {name: tuple(edges(paths(entry, "deps"), outs)) for name, entry in entries.items()}
        stages = {name: stage(name, entries[name], upstream[name], outs[name]) for name in ordered(upstream)}
        artifacts = {name: entry["path"] for name, entry in (content.get("artifacts") or {}).items()}
    except (YAMLError, KeyError, TypeError, AttributeError) as error:
        raise FlowError(f"dvc.yaml: not a pipeline: {' '.join(str(error).split())}: `dvc status` says more") from error
    return Dag(stages, artifacts)


def stage(name: str, entry: Mapping[str, Any], upstream: tuple[str, ...], outs: tuple[str, ...]) -> Stage:
    command = entry["cmd"]
    return Stage(
        name,
        command if isinstance(command, str) else " && ".join(command),
        entry.get("desc", ""),
        upstream,
        tuple(param for param in entry.get("params", []) if isinstance(param, str)),
        outs,
        tuple(
            path for path, options in options_of(entry, "outs", "metrics", "plots") if not options.get("cache", True)
        ),
        paths(entry, "metrics"),
        policy(name, (entry.get("meta") or {}).get("prefect", {})),
    )


def policy(name: str, content: Any) -> Policy:
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("stages", name, "meta.prefect", *first["loc"])))
        known = ", ".join(Policy.model_fields)
        what = f"unknown key; known are {known}" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise FlowError(f"dvc.yaml: {key}: {what}") from error


def plain(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what only DVC can expand."""
    for name, entry in entries.items():
        if "foreach" in entry or "matrix" in entry:
            raise FlowError(f"dvc.yaml: stages.{name}: foreach and matrix are not read here: write the stages out")
        if re.search(r"(?<!\\)\$\{", str([entry.get(kind) for kind in ("deps", "outs", "metrics", "plots")])):
            raise FlowError(f"dvc.yaml: stages.{name}: templated paths are not read here: write them out")


def options_of(entry: Mapping[str, Any], *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each item is a path, or a path with its options."""
    for kind in kinds:
        for item in entry.get(kind) or []:
            path, options = (item, {}) if isinstance(item, str) else next(iter(item.items()))
            yield posixpath.normpath(posixpath.join(entry.get("wdir", ""), path)), options or {}


def paths(entry: Mapping[str, Any], *kinds: str) -> tuple[str, ...]:
    return tuple(path for path, _ in options_of(entry, *kinds))


def edges(deps: tuple[str, ...], outs: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The stages that make a dep, a folder around it, or something inside it, in the order of the deps."""
    found: dict[str, str] = {}
    for dep in deps:
        found |= {name: dep for name, made in outs.items() if any(inside(dep, out) or inside(out, dep) for out in made)}
    yield from found


def inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def ordered(upstream: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Every stage after those that it needs, otherwise as written."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise FlowError(f"dvc.yaml: a circle: {' -> '.join((*path, name))}")
        if name not in done:
            for needed in upstream[name]:
                visit(needed, (*path, name))
            done.append(name)

    for name in upstream:
        visit(name, ())
    return done


def select(dag: Dag, only: Sequence[str], first: str | None) -> tuple[str, ...]:
    """ONLY these stages, or the FIRST and all after it, or all."""
    for name in (*only, *([first] if first else [])):
        if name not in dag.stages:
            raise FlowError(f"no stage {name!r} in dvc.yaml, which has {', '.join(dag.stages)}")
    if only and first:
        raise FlowError("choose stages by --only or by --from, not by both")
    if first:
        return dag.downstream(first)
    return tuple(name for name in dag.stages if name in only or not only)
