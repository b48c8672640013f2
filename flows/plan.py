"""Decides which stages run and why: compares dvc.lock and `dvc status` with dvc.yaml and params.yaml."""

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flows.dvc.dag import Dag, Stage
from flows.dvc.lock_file import LockEntry
from flows.dvc.params_file import flatten

LOST_ENTRY = "missing from dvc.lock, present in the last commit's"
MISSING = ("deleted", "not in cache")  # in `dvc status`
MAX_NAMED = 3  # changes of one kind that a reason names; the others are counted


@dataclass(frozen=True)
class Plan:
    reasons: dict[str, str]  # why each selected stage runs; empty if it is up to date

    def __str__(self) -> str:
        width = max(map(len, self.reasons), default=0)
        return "\n".join(f"{name:<{width}}  {reason or 'up to date'}" for name, reason in self.reasons.items())


def make_plan(
    dag: Dag,
    selected: tuple[str, ...],
    status: Mapping[str, list[Any]],
    lock_entries: Mapping[str, LockEntry],
    params: Mapping[str, Any],
    lost_entries: Container[str] = (),
    allow_missing: bool = False,
) -> Plan:
    """Explain each selected stage.

    STATUS is that of `dvc status`, LOCK_ENTRIES are those of dvc.lock, PARAMS the values that the run will use.
    LOST_ENTRIES are the stages that dvc.lock has in the last commit but not now. With ALLOW_MISSING data that is only
    missing here is no reason to run, as with `dvc repro --allow-missing`.
    """
    reasons: dict[str, str] = {}
    for name in selected:
        stage = dag.stages[name]
        stale_upstream = [upstream for upstream in stage.upstream if reasons.get(upstream)]
        new_deps = {out for upstream in stale_upstream for out in dag.stages[upstream].outs}
        stage_status = drop_missing(status.get(name, [])) if allow_missing else status.get(name, [])
        own_reasons = explain_stale(stage_status, lock_entries.get(name), stage_params(params, stage), new_deps)
        reason = LOST_ENTRY if name in lost_entries else "; ".join(own_reasons)
        reasons[name] = reason or (f"after {', '.join(stale_upstream)}" if stale_upstream else "")
    return Plan(reasons)


def drop_missing(status: list[Any]) -> list[Any]:
    """The status of a stage without the deps and outs whose data is missing."""
    return [
        {
            kind: {path: change for path, change in paths.items() if change not in MISSING}
            for kind, paths in item.items()
        }
        if isinstance(item, dict)
        else item
        for item in status
    ]


def needs_validation(
    dag: Dag, selected: tuple[str, ...], lock_entries: Mapping[str, LockEntry], params: Mapping[str, Any]
) -> list[str]:
    """The stages whose params differ from those of their last successful run."""
    used_sections = {name.partition(".")[0] for stage in dag.stages.values() for name in stage.params}
    if {name.partition(".")[0] for name in params} - {*used_sections, "promote"}:
        return [*selected]  # a section that no stage reads may be a misspelt one
    return [
        name
        for name in selected
        if name not in lock_entries or locked_params(lock_entries[name]) != stage_params(params, dag.stages[name])
    ]


def explain_stale(
    status: list[Any], entry: LockEntry | None, params: Mapping[str, Any], new_deps: set[str]
) -> Iterator[str]:
    """Why a stage is stale, apart from NEW_DEPS: files that an upstream stage is about to write again."""
    if entry is None:
        yield "never ran"
        return
    if "changed command" in status:
        yield "its command changed"
    yield from param_changes(locked_params(entry), params)
    changes = {kind: paths for item in status if isinstance(item, dict) for kind, paths in item.items()}
    deps, outs = changes.get("changed deps", {}), changes.get("changed outs", {})
    files = {path: change for path, change in deps.items() if isinstance(change, str)}  # others are params files
    yield from summarize_changes("deps", [f"{path} {change}" for path, change in files.items() if path not in new_deps])
    yield from summarize_changes("outs", [f"{path} {change}" for path, change in outs.items()])
    if "always changed" in status:
        yield "always changed"
    yield from summarize_changes("params in", [path for path in deps if path not in files and path != "params.yaml"])


def explain_run(before: LockEntry | None, after: LockEntry | None) -> str:
    """Why a stage ran, from its entries in dvc.lock before and after; empty if its inputs are the same."""
    if before is None or after is None:
        return "never ran"
    old, new = ({dep["path"]: dep.get("md5") for dep in entry.get("deps", [])} for entry in (before, after))
    deps = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    reasons = ["its command changed"] if before.get("cmd") != after.get("cmd") else []
    return "; ".join(
        [*reasons, *param_changes(locked_params(before), locked_params(after)), *summarize_changes("deps", deps)]
    )


def param_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    names = [name for name in {**old, **new} if (name in old, old.get(name)) != (name in new, new.get(name))]
    changes = [f"{name} {format_param(old, name)} -> {format_param(new, name)}" for name in names]
    yield from summarize_changes("params", changes)


def format_param(params: Mapping[str, Any], name: str) -> str:
    return json.dumps(params[name]).strip('"') if name in params else "nothing"


def summarize_changes(kind: str, items: list[str]) -> Iterator[str]:
    if items:
        rest = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
        yield f"{kind} {', '.join(items[:MAX_NAMED])}{rest}"


def stage_params(params: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The params that dvc.yaml names for the stage: keys, or all keys of a section."""
    prefixes = tuple(f"{name}." for name in stage.params)
    return {name: value for name, value in params.items() if f"{name}.".startswith(prefixes)}


def locked_params(entry: LockEntry) -> dict[str, Any]:
    return flatten(entry.get("params", {}).get("params.yaml", {}))
