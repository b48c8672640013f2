"""What would run, and why: what dvc.lock recorded against what is here."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.dag import Dag, Stage
from flows.dvc import dvc
from flows.param_file import flat, read_params
from flows.problem import Problem

NAMED = 3  # changes of a kind that are named; of more, their number is
Entry = Mapping[str, Any]  # a stage in dvc.lock


@dataclass(frozen=True)
class Plan:
    reasons: dict[str, str]  # of each selected stage, why it runs; empty: it is up to date
    unchecked: tuple[str, ...]  # stages whose params are not those of their last run

    def stale(self) -> list[str]:
        return [name for name, reason in self.reasons.items() if reason]

    def __str__(self) -> str:
        width = max(map(len, self.reasons), default=0)
        return "\n".join(f"{name:<{width}}  {why or 'up to date'}" for name, why in self.reasons.items())


async def make_plan(root: Path, dag: Dag, selected: tuple[str, ...], force: bool, changes: Mapping[str, Any]) -> Plan:
    """CHANGES are params that the run will change first."""
    here = {**flat(read_params(root / "params.yaml")), **changes}
    status, recorded = await asyncio.gather(dvc_status(root), asyncio.to_thread(read_lock, root))
    reasons: dict[str, str] = {}
    unchecked = []
    for name in selected:
        stage, entry = dag.stages[name], recorded.get(name)
        params = {key: value for key, value in here.items() if of_stage(key, stage)}
        why = [*planned(status.get(name, []), entry, params)]
        if entry is None or params != locked_params(entry):
            unchecked.append(name)
        before = [upstream for upstream in stage.upstream if reasons.get(upstream)]
        after = f"after {', '.join(before)}" if before else ""
        reasons[name] = "forced" if force else "; ".join(why) or after
    return Plan(reasons, tuple(unchecked))


def planned(status: list[Any], entry: Entry | None, params: Mapping[str, Any]) -> Iterator[str]:
    """Why a stage is stale by itself; nothing if it is not."""
    if entry is None:
        yield "never ran"
        return
    if "changed command" in status:
        yield "its command changed"
    yield from param_changes(locked_params(entry), params)
    kinds = {kind: paths for item in status if isinstance(item, dict) for kind, paths in item.items()}
    deps = {path: word for path, word in kinds.get("changed deps", {}).items() if isinstance(word, str)}
    yield from named("deps", [f"{path} {word}" for path, word in deps.items()])
    yield from named("outs", [f"{path} {word}" for path, word in kinds.get("changed outs", {}).items()])
    if "always changed" in status:
        yield "always changed"


def happened(before: Entry | None, after: Entry | None) -> str:
    """Why a stage ran, from its two entries in dvc.lock; nothing if what it ran on is the same."""
    if before is None or after is None:
        return "never ran"
    old, new = ({dep["path"]: dep.get("md5") for dep in entry.get("deps", [])} for entry in (before, after))
    moved = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    why = ["its command changed"] if before.get("cmd") != after.get("cmd") else []
    why += [*param_changes(locked_params(before), locked_params(after)), *named("deps", moved)]
    return "; ".join(why)


def param_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    nothing = object()
    names = [name for name in {**old, **new} if old.get(name, nothing) != new.get(name, nothing)]
    yield from named("params", [f"{name} {shown(old, name)} -> {shown(new, name)}" for name in names])


def shown(params: Mapping[str, Any], name: str) -> str:
    return json.dumps(params[name]).strip('"') if name in params else "nothing"


def named(kind: str, items: list[str]) -> Iterator[str]:
    if items:
        rest = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
        yield f"{kind} {', '.join(items[:NAMED])}{rest}"


def of_stage(param: str, stage: Stage) -> bool:
    return any(param == name or param.startswith(f"{name}.") for name in stage.params)


def locked_params(entry: Entry) -> dict[str, Any]:
    return flat(entry.get("params", {}).get("params.yaml", {}))


def read_lock(root: Path) -> dict[str, Entry]:
    path = root / "dvc.lock"
    content = YAML(typ="safe", pure=True).load(path) if path.exists() else None
    stages: dict[str, Entry] = (content or {}).get("stages", {})
    return stages


async def dvc_status(root: Path) -> dict[str, list[Any]]:
    """What DVC finds stale, by stage."""
    done = await dvc(["status", "--json"], root)
    for line in done.lines:
        if line.startswith("{"):
            content: dict[str, list[Any]] = json.loads(line)
            return content
    raise Problem("\n".join(line for line in done.lines if line.startswith("ERROR")) or "\n".join(done.lines[-3:]))


def in_order(root: Path, dag: Dag) -> None:
    """Put dvc.lock's stages in the order in which `dvc repro` writes them: side by side they end as they please."""
    path = root / "dvc.lock"
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    head, *entries = re.split(r"(?m)^(?=  [^\s-])", text)
    order = {f"  {name}:": place for place, name in enumerate(dag.stages)}
    ordered = "".join([head, *sorted(entries, key=lambda entry: order.get(entry.partition("\n")[0], len(order)))])
    if ordered != text:
        beside = path.with_name(f".{path.name}.partial")
        beside.write_text(ordered, encoding="utf-8")
        beside.replace(path)
