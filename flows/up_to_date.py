"""Answers a run that would run no stage without a Prefect server, and prints what the run would print."""

import asyncio
from pathlib import Path

from flows.dvc.command import dvc_status
from flows.dvc.dag import read_dag
from flows.dvc.lock_file import read_lock, repair_lockfile
from flows.dvc.params_file import flatten, read_params
from flows.errors import FlowError
from flows.parameters import validate_params
from flows.plan import Plan, make_plan, needs_validation
from flows.report import StageResult, format_result
from flows.server import is_server_set
from flows.workspace import open_workspace

NOTHING_CHANGED = "Nothing that it depends on has changed"


def plan_without_server(root: Path, selected: tuple[str, ...] = ()) -> Plan | None:
    """The plan, if no stage has to run and no server is set, which would record the run.

    A temporary server takes ten seconds to start.
    """
    return asyncio.run(plan_and_look_for_server(root, selected))


async def plan_and_look_for_server(root: Path, selected: tuple[str, ...]) -> Plan | None:
    """At the same time, since each takes a second: DVC is a process of its own, and the other imports Prefect."""
    plan, is_set = await asyncio.gather(find_empty_plan(root, selected), asyncio.to_thread(is_server_set))
    return None if is_set else plan


async def find_empty_plan(root: Path, selected: tuple[str, ...]) -> Plan | None:
    """The plan of these stages, or of all, if none has to run. None also if a file has an error: a run reports it."""
    try:
        async with open_workspace(root, "tree", None, False, print):
            dag, params = read_dag(root), flatten(read_params(root / "params.yaml"))
            selected = selected or tuple(dag.stages)
            await repair_lockfile(root, dag, print)
            lock_entries = await read_lock(root)
            plan = make_plan(dag, selected, await dvc_status(root, print), lock_entries, params)
            if any(plan.reasons.values()):
                return None
            text = (root / "params.yaml").read_text(encoding="utf-8")
            await validate_params(root, text, needs_validation(dag, selected, lock_entries, params))
    except FlowError:
        return None
    return plan


def format_without_server(root: Path, plan: Plan) -> str:
    """What a run with an empty plan prints."""
    results = [StageResult(name, "UpToDate", NOTHING_CHANGED, True, None) for name in plan.reasons]
    parts = [str(plan), "\n".join(map(str, results)), format_result(root)]
    return "\n\n".join([*parts, "Nothing had to run, so no Prefect server was started."])
