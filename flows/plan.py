"""What would run, and why: what dvc.lock recorded against what is here."""

import asyncio
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dvc.command import dvc, hold_dvc_lock
from flows.dvc.dag import Dag, Stage
from flows.dvc.params_file import flatten
from flows.errors import FlowError

LOST = "missing from dvc.lock, present in the last commit's"
NAMED = 3  # changes of a kind that are named; of more, their number is
Entry = Mapping[str, Any]  # a stage in dvc.lock


@dataclass(frozen=True)
class Plan:
    reasons: dict[str, str]  # of each selected stage, why it runs; empty: it is up to date

    def stale(self) -> list[str]:
        return [name for name, reason in self.reasons.items() if reason]

    def __str__(self) -> str:
        width = max(map(len, self.reasons), default=0)
        return "\n".join(f"{name:<{width}}  {why or 'up to date'}" for name, why in self.reasons.items())


def make_plan(
    dag: Dag,
    selected: tuple[str, ...],
    status: Mapping[str, list[Any]],
    recorded: Mapping[str, Entry],
    params: Mapping[str, Any],
    lost: Container[str] = (),
) -> Plan:
    """STATUS is what DVC finds stale, RECORDED what is in dvc.lock, PARAMS those that the run will work with.

    LOST are stages that are in the last commit's dvc.lock, and not in this one.
    """
    reasons: dict[str, str] = {}
    for name in selected:
        stage = dag.stages[name]
        before = [upstream for upstream in stage.upstream if reasons.get(upstream)]
        made = {out for upstream in before for out in dag.stages[upstream].outs}
        why = "; ".join(planned(status.get(name, []), recorded.get(name), of_stage(params, stage), made))
        if name in lost:
            why = LOST
        reasons[name] = why or (f"after {', '.join(before)}" if before else "")
    return Plan(reasons)


def needs_validation(
    dag: Dag, selected: tuple[str, ...], recorded: Mapping[str, Entry], params: Mapping[str, Any]
) -> list[str]:
    """The stages whose params are not those of their last run, which proved them right."""
    known = {name.partition(".")[0] for stage in dag.stages.values() for name in stage.params}
    if {name.partition(".")[0] for name in params} - known:
        return [*selected]  # a section that no stage reads
    return [
        name
        for name in selected
        if name not in recorded or locked_params(recorded[name]) != of_stage(params, dag.stages[name])
    ]


def planned(status: list[Any], entry: Entry | None, params: Mapping[str, Any], made: set[str]) -> Iterator[str]:
    """Why a stage is stale by itself, whatever becomes of what stages before it have MADE; nothing if it is not."""
    if entry is None:
        yield "never ran"
        return
    if "changed command" in status:
        yield "its command changed"
    yield from param_changes(locked_params(entry), params)
    kinds = {kind: paths for item in status if isinstance(item, dict) for kind, paths in item.items()}
    deps = {
        path: word for path, word in kinds.get("changed deps", {}).items() if isinstance(word, str) and path not in made
    }
    yield from named("deps", [f"{path} {word}" for path, word in deps.items()])
    yield from named("outs", [f"{path} {word}" for path, word in kinds.get("changed outs", {}).items()])
    if "always changed" in status:
        yield "always changed"
    others = [path for path, word in kinds.get("changed deps", {}).items() if not isinstance(word, str)]
    yield from named("params in", [path for path in others if path != "params.yaml"])


def explain_run(before: Entry | None, after: Entry | None) -> str:
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


def of_stage(params: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The params that the stage depends on."""
    own = tuple(f"{name}." for name in stage.params)
    return {name: value for name, value in params.items() if f"{name}.".startswith(own)}


def locked_params(entry: Entry) -> dict[str, Any]:
    return flatten(entry.get("params", {}).get("params.yaml", {}))


async def read_lock(root: Path, *names: str) -> dict[str, Entry]:
    """What dvc.lock says of these stages, or of all."""
    async with hold_dvc_lock(root):
        _, entries = lock_entries(root)
    wanted = [text for name, text in entries.items() if not names or name in names]
    try:
        stages: dict[str, Entry] = await asyncio.to_thread(YAML(typ="safe", pure=True).load, "".join(wanted)) or {}
    except YAMLError as error:
        raise FlowError(f"dvc.lock: not valid YAML (a merge's conflict?): {' '.join(str(error).split())}") from error
    return stages


def lock_names(root: Path) -> list[str]:
    return [*lock_entries(root)[1]]


def lock_entries(root: Path) -> tuple[str, dict[str, str]]:
    """dvc.lock's text: what stands above its stages, and each of them. One entry is read six times as fast as all."""
    path = root / "dvc.lock"
    return split_entries(path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else "")


def split_entries(text: str) -> tuple[str, dict[str, str]]:
    head, *entries = re.split(r"(?m)^(?=  [^\s-])", text)
    return head, {entry.partition(":")[0].strip(): entry for entry in entries}


def write_lock(root: Path, text: str) -> None:
    beside = root / ".dvc.lock.partial"
    beside.write_text(text, encoding="utf-8", errors="surrogateescape")
    beside.replace(root / "dvc.lock")


async def dvc_status(root: Path, wait: Callable[[str], None]) -> dict[str, list[Any]]:
    """What DVC finds stale, by stage."""
    done = await dvc(["status", "--json"], root, wait=wait)
    for line in done.lines:
        if line.startswith("{"):
            content: dict[str, list[Any]] = json.loads(line)
            return content
    raise FlowError("\n".join(line for line in done.lines if line.startswith("ERROR")) or "\n".join(done.lines[-3:]))


async def sort_lockfile(root: Path, dag: Dag, known: Sequence[str]) -> None:
    """Put dvc.lock's new stages in the order in which `dvc repro` adds them: side by side they end as they please."""
    places = {name: place for place, name in enumerate([*known, *(name for name in dag.stages if name not in known)])}
    async with hold_dvc_lock(root):
        head, entries = lock_entries(root)
        ordered = sorted(entries, key=lambda name: places.get(name, len(places)))
        if ordered != [*entries]:
            write_lock(root, "".join([head, *(entries[name] for name in ordered)]))
